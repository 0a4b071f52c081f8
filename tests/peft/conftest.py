"""Small models for the tests of `efftrain.peft`, and a loop that trains them."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def convnet() -> Callable[[], nn.Sequential]:
    """Two convolutions with batch norms, and a head `fc`: 3 channels in, 5 classes out."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        layers = OrderedDict(
            conv1=nn.Conv2d(3, 4, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(4),
            act=nn.ReLU(),
            conv2=nn.Conv2d(4, 6, 3, padding=1),
            bn2=nn.BatchNorm2d(6),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(6, 5),
        )
        return nn.Sequential(layers)

    return build


@pytest.fixture
def transformer() -> Callable[[], nn.Sequential]:
    """Two encoder layers of torch, width 8, and a head: four LayerNorms inside."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        return nn.Sequential(OrderedDict(encoder=encoder, head=nn.Linear(8, 3)))

    return build


@pytest.fixture
def images() -> Tensor:
    """[8, 3, 8, 8], not centred on 0, so that a batch norm's statistics have somewhere to go."""
    return 2 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 1


@pytest.fixture
def train() -> Callable[..., None]:
    """A few steps of AdamW on what requires a gradient."""

    def steps(model: nn.Module, batch: Tensor, count: int = 3, lr: float = 1e-2) -> None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.0)
        for _ in range(count):
            optimizer.zero_grad()
            model(batch).float().square().mean().backward()
            optimizer.step()

    return steps
