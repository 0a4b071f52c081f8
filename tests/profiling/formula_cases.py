"""Layers and calls, with their multiply-accumulates counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Functional(nn.Module):
    """A function as a model, with a weight where it takes one."""

    def __init__(self, function: Callable[..., Tensor], *weight: int) -> None:
        super().__init__()
        self.function = function
        if weight:
            self.weight = nn.Parameter(torch.zeros(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parameters())


class WithLayer(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


IMAGE = torch.zeros(2, 16, 32, 32)
SEQUENCE = torch.zeros(2, 64, 32)
HEADS = torch.zeros(2, 4, 64, 8)

FORWARD = {
    "conv": (nn.Conv2d(16, 32, 3, padding=1), IMAGE, 2 * 32 * 32 * 32 * 16 * 9),
    "strided": (nn.Conv2d(16, 32, 3, stride=2), IMAGE, 2 * 15 * 15 * 32 * 16 * 9),
    "grouped": (nn.Conv2d(16, 32, 3, padding=1, groups=4), IMAGE, 2 * 32 * 32 * 32 * 4 * 9),
    "depthwise": (nn.Conv2d(16, 16, 3, padding=1, groups=16), IMAGE, 2 * 16 * 32 * 32 * 9),
    "conv1d": (nn.Conv1d(64, 8, 5), SEQUENCE, 2 * 28 * 8 * 64 * 5),
    "conv3d": (nn.Conv3d(1, 4, 3), torch.zeros(2, 1, 8, 8, 8), 2 * 6**3 * 4 * 27),
    "unbatched": (nn.Conv2d(16, 32, 1), IMAGE[0], 32 * 32 * 32 * 16),
    # each of 16 x 32 x 32 input elements meets 32 / 4 channels of 2 x 2
    "transposed": (nn.ConvTranspose2d(16, 32, 2, stride=2, groups=4), IMAGE, 2 * 16 * 1024 * 32),
    "linear": (nn.Linear(32, 48), SEQUENCE, 2 * 64 * 32 * 48),
    "functional": (Functional(lambda x, w: F.linear(x, w), 48, 32), SEQUENCE, 2 * 64 * 32 * 48),
    "matmul": (Functional(lambda x, w: x @ w, 32, 48), SEQUENCE, 2 * 64 * 32 * 48),
    "vector": (Functional(lambda x, w: x[0] @ w, 32), SEQUENCE, 64 * 32),
    "scores": (Functional(lambda x: x @ x.mT), SEQUENCE, 2 * 64 * 64 * 32),
    "einsum": (Functional(lambda x: torch.einsum("bnd,bmd->bnm", x, x)), SEQUENCE, 2 * 64**2 * 32),
    "einsum3": (
        Functional(lambda x, w: torch.einsum("bnd,de,bme->bnm", x, w, x), 32, 32),
        SEQUENCE,
        2 * 64 * 32 * 32 + 2 * 64 * 64 * 32,
    ),
    "sdpa": (
        Functional(lambda x: F.scaled_dot_product_attention(x, x, x)),
        HEADS,
        2 * 2 * 4 * 64 * 64 * 8,
    ),
    "grouped_query": (
        Functional(
            lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True)
        ),
        HEADS,
        2 * 2 * 4 * 64 * 64 * 8,
    ),
    "multihead": (
        SelfAttention(),
        SEQUENCE,
        4 * 2 * 64 * 32 * 32 + 2 * 2 * 64 * 64 * 32,
    ),
    "encoder": (
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True),
        SEQUENCE,
        4 * 2 * 64 * 32 * 32 + 2 * 2 * 64 * 64 * 32 + 2 * 2 * 64 * 32 * 64,
    ),
    "lstm": (nn.LSTM(32, 40, batch_first=True), SEQUENCE, 2 * 64 * 4 * 40 * (32 + 40)),
    "gru": (nn.GRU(32, 40, batch_first=True), SEQUENCE, 2 * 64 * 3 * 40 * (32 + 40)),
    "cell": (
        WithLayer(
            lambda cell, x: torch.stack([cell(x[:, i])[0] for i in range(64)]), nn.LSTMCell(32, 40)
        ),
        SEQUENCE,
        2 * 64 * 4 * 40 * (32 + 40),
    ),
    "bilinear": (
        WithLayer(lambda bilinear, x: bilinear(x, x), nn.Bilinear(32, 32, 8)),
        SEQUENCE,
        2 * 64 * 8 * 32 * 32,
    ),
    "addbmm": (
        Functional(
            lambda x: torch.addbmm(x[0, :, :5], x.mT, x[..., :5]),
        ),
        torch.zeros(2, 32, 32),
        2 * 32 * 32 * 5,
    ),
    "int8": (
        Functional(lambda x: torch._int_mm(x, x)),
        torch.zeros(32, 32, dtype=torch.int8),
        32**3,
    ),
    "distance": (Functional(lambda x: torch.cdist(x, x, p=1.0)), SEQUENCE, 2 * 64 * 64 * 32),
    "interpolate": (Functional(lambda x: F.interpolate(x, scale_factor=2.0)), IMAGE, 0),
}
