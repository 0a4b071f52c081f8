"""Compare a reduced model's gradients with plain autograd's, on a batch of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from efftrain.errors import NumericError
from efftrain.memory.forward import plain_backward

TOLERANCE = 1e-3
"""Of all gradients as one vector, in float32: statistics of the batch amplify rounding a thousandfold."""


@dataclass(frozen=True)
class GradientCheck:
    """How far a reduced model's gradients are from plain autograd's.

    Attributes:
        error: Of all gradients as one vector, relative to plain autograd's.
        worst: Name of the parameter whose gradient is furthest off, relative to all gradients.
        loss_error: Of the loss, relative.
        tolerance: What was allowed.
    """

    error: float
    worst: str
    loss_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether both are within the tolerance; a figure that is not a number is not."""
        return self.error <= self.tolerance and self.loss_error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "passed": self.passed}


def check_gradients(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any], Tensor] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> GradientCheck:
    """Run a step twice, reduced and plain, and compare loss and gradients.

    Args:
        model: After `reduce_memory`, in the mode that it trains in. Gradients, running statistics and
            random numbers are afterwards as they were.
        batch: A tensor, a sequence of positional arguments or a mapping of keyword arguments.
        loss_fn: From the model's output to a scalar; without, its `loss`, or the mean of the output.
        tolerance: Of the relative error.

    Returns:
        The errors.

    Raises:
        NumericError: They are over the tolerance, or not numbers.
    """
    with _undisturbed(model):
        loss, found = _step(model, batch, loss_fn)
    with _undisturbed(model), plain_backward():
        expected_loss, expected = _step(model, batch, loss_fn)
    off = {name: _distance(grad, found.get(name)) for name, grad in expected.items()}
    off |= {name: float("inf") for name in found.keys() - expected.keys()}
    size = sum(float(grad.double().square().sum()) for grad in expected.values())
    check = GradientCheck(
        error=(sum(off.values()) / size) ** 0.5 if size else sum(off.values()),
        worst=max(off, key=lambda name: off[name], default=""),
        loss_error=abs(loss - expected_loss) / (abs(expected_loss) or 1.0),
        tolerance=tolerance,
    )
    if not check.passed:
        raise NumericError(
            f"memory.check: gradients differ from plain autograd by {check.error:.2e} (loss by "
            f"{check.loss_error:.2e}, allowed {tolerance:.0e}), most of all at {check.worst}; train "
            "with memory=off and report this model"
        )
    return check


def _step(
    model: nn.Module, batch: Any, loss_fn: Callable[[Any], Tensor] | None
) -> tuple[float, dict[str, Tensor]]:
    with torch.enable_grad():
        loss = _loss(_call(model, batch), loss_fn)
        cast(Any, loss).backward()
    return float(loss.detach()), {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**cast("Mapping[str, Any]", batch))
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return model(*cast("Sequence[Any]", batch))
    return model(batch)


def _loss(output: Any, loss_fn: Callable[[Any], Tensor] | None) -> Tensor:
    if loss_fn is not None:
        return loss_fn(output)
    loss = getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    if not isinstance(output, Tensor):
        output = getattr(output, "logits", None)
        if output is None:
            raise NumericError("memory.check: the model returns no tensor; give a loss_fn")
    return cast(Tensor, output).float().square().mean()


def _distance(expected: Tensor, found: Tensor | None) -> float:
    """Squared; infinite where it is missing or not a number."""
    if found is None:
        return float("inf")
    value = float((expected.double() - found.double()).square().sum())
    return value if value == value else float("inf")


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Generator[None, None, None]:
    """Start from the same buffers and random numbers each time, without gradients."""
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with cast(Any, torch.random).fork_rng():
            yield
    finally:
        for parameter, grad in grads:
            parameter.grad = grad
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
