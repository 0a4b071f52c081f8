"""A tensor that is written to after a layer has read it is not what a result can be made from again."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from efftrain.memory import reduce_memory


class Overwriting(nn.Module):
    """Plain torch keeps only the frozen linear layer's weight, so its input may be written to."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 32).requires_grad_(False)
        self.last = nn.Linear(32, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm(x) + 0.0
        wide = self.wide(read)
        read.mul_(0)
        return self.last(functional.gelu(wide)) + read


def test_a_result_is_kept_where_what_it_was_made_from_is_written_to() -> None:
    plain = Overwriting()
    reduced = copy.deepcopy(plain)
    reduce_memory(reduced, "recompute")
    x = torch.randn(4, 8)
    for model in (plain, reduced):
        model(x).square().sum().backward()
    wanted, got = (torch.cat([p.grad for p in m.norm.parameters()]) for m in (plain, reduced))
    assert wanted.norm() > 0
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-6)
