"""A small model, and a run of it under the doctor."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from efftrain.callbacks import Doctor
from efftrain.errors import ConfigError
from efftrain.peft import apply, select


class Net(nn.Module):
    """Two convolutions with batch norms, a layer norm, a head; some of it may not run."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.ln, self.fc = nn.LayerNorm(4), nn.Linear(4, 3)
        self.unused = nn.LayerNorm(4)
        self.register_buffer("count", torch.zeros(1))

    def body(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x)).relu().mean((2, 3))

    def forward(self, x):
        return self.fc(self.ln(self.body(x)))


class Module(pl.LightningModule):
    """Trains what requires a gradient, unless it is told otherwise."""

    def __init__(self, model, selection=None, optimizer=None, lr=0.01):
        super().__init__()
        self.model, self.selection = model, selection
        self.make, self.lr = optimizer, lr

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images).float(), labels)

    def configure_optimizers(self):
        if self.make is not None:
            return self.make(self.model)
        trains = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trains, lr=self.lr, weight_decay=0.0)


def batches(dtype=torch.float32, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    images = scale * torch.randn(24, 2, 8, 8, generator=draw)
    labels = torch.randint(0, 3, (24,), generator=draw)
    return DataLoader(TensorDataset(images.to(dtype), labels), 4)


def selected(method="norm", bn_stats="running", **options):
    torch.manual_seed(0)
    model = Net()
    selection = select(model, method, **{"exclude": ["unused"], **options})
    apply(model, selection, bn_stats=bn_stats)
    return model, selection


def fit(module, doctor, data=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[doctor], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=1, **options,
    )  # fmt: skip
    trainer.fit(module, data or batches())
    return trainer


def problem(module, doctor=None, kind=ConfigError, **options):
    with pytest.raises(kind) as caught:
        fit(module, doctor or Doctor(), **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)
