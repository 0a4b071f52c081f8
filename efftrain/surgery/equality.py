"""Whether two models compute the same, and how far apart they are."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efftrain.errors import ConfigError
from efftrain.surgery.inputs import Inputs, call, tensors_in

TOLERANCES = {
    torch.float64: 1e-5,  # not 1e-12: many norms compute in float32 whatever they are given
    torch.float32: 1e-3,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""Largest relative error at which two models count as equal, by the coarsest dtype in them.

In float32 a folded ResNet-50 or MobileNetV2 is 1e-6 off, in bfloat16 a folded LLaMA 1e-2: its folded
weights are rounded once more. One channel that is 1 % wrong in a ResNet-50 shows as more than 1e-5."""


@dataclass(frozen=True)
class Equality:
    """How far a model's outputs are from another's.

    Attributes:
        equal: Whether the relative error is within the tolerance, and what is not finite is so in
            both at the same places.
        max_abs: Largest absolute difference of two elements.
        max_rel: Largest of `max_abs` of one output tensor over that tensor's largest magnitude.
        tolerance: What `max_rel` was held against.
        dtype: The coarsest floating dtype among the first model's parameters and outputs.
        inputs: How many inputs were compared.
    """

    equal: bool
    max_abs: float
    max_rel: float
    tolerance: float
    dtype: str
    inputs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def check_equal(
    model: nn.Module,
    other: nn.Module,
    inputs: Iterable[Inputs],
    tolerance: float | None = None,
) -> Equality:
    """Run two models in eval mode on the same inputs and compare every tensor that they return.

    Both start from the same random state, so a model that draws random numbers can be compared.

    Args:
        model: The reference. Its mode is as before afterwards.
        other: The model under test.
        inputs: One entry for each call.
        tolerance: Largest relative error; by default `TOLERANCES` of the dtype.

    Returns:
        The largest errors over all inputs and outputs.

    Raises:
        ConfigError: There are no inputs, or the model returns no floating-point tensor.
    """
    max_abs = max_rel = 0.0
    finite = True
    dtypes = {parameter.dtype for parameter in model.parameters()}
    count = 0
    for one in inputs:
        count += 1
        pairs = list(zip(_outputs(model, one), _outputs(other, one), strict=True))
        if not pairs:
            raise ConfigError(f"check_equal: {type(model).__name__} returns no floating tensor")
        for expected, found in pairs:
            dtypes.add(expected.dtype)
            here, there = expected.double(), found.double()
            usable = here.isfinite()
            finite &= torch.equal(here[~usable], there[~usable]) or _same_nan(here, there)
            finite &= bool(there[usable].isfinite().all())
            if not bool(usable.any()):
                continue
            error = float((here[usable] - there[usable]).abs().max())
            size = float(here[usable].abs().max())
            max_abs = max(max_abs, error)
            max_rel = max(max_rel, error / size if size else error)
    if not count:
        raise ConfigError("check_equal: no inputs given; pass at least one")
    coarsest = max(
        (dtype for dtype in dtypes if dtype.is_floating_point),
        key=lambda dtype: torch.finfo(dtype).eps,
    )
    limit = TOLERANCES.get(coarsest, max(TOLERANCES.values())) if tolerance is None else tolerance
    return Equality(
        equal=finite and max_rel <= limit,
        max_abs=max_abs,
        max_rel=max_rel,
        tolerance=limit,
        dtype=str(coarsest).removeprefix("torch."),
        inputs=count,
    )


@contextmanager
def in_eval(model: nn.Module) -> Generator[None]:
    """Eval mode without gradients, and afterwards every module in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            if "train" in vars(module):  # a policy of its own, which may set more than the mode
                module.train(mode)
        for module, mode in modes:
            object.__setattr__(module, "training", mode)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with in_eval(model), torch.random.fork_rng([*devices]):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
        return [one for one in tensors_in(call(model, inputs)) if one.is_floating_point()]


def _same_nan(here: Tensor, there: Tensor) -> bool:
    """NaN is unequal to itself, so it is compared by its places."""
    return torch.equal(here.isnan(), there.isnan()) and torch.equal(
        here[here.isinf()], there[there.isinf()]
    )
