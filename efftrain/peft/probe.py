"""Ask a small module what it does: feed it noise, and see whether it normalises.

A normalization layer takes the scale out of its input: f(2x) = f(x), up to its epsilon, while f
still depends on x. A layer scale, a PReLU, a gate or a tanh does not do that, whatever its name is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Large against every epsilon in use (1e-3 and below), so that epsilon cannot hide the invariance.
_AMPLITUDE = 8.0
_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Probe:
    """What a module showed.

    Attributes:
        scale: Local name of the parameter that multiplies the normalised input, or None.
        bias: Local name of the parameter that is added to it, or None.
        offset: Whether the scale is applied as (1 + w), so that w = 0 is the identity.
    """

    scale: str | None
    bias: str | None
    offset: bool


def probe(module: nn.Module) -> Probe | None:
    """Find out by running it whether a module normalises, and what its parameters do.

    The module itself is never run or changed: a float32 copy on the CPU is, with parameters of our
    own, so that a model without weights (meta device) and a trained one give the same answer.

    Args:
        module: A module whose parameters are vectors.

    Returns:
        The roles of its parameters; None where it does not normalise or cannot be run alone.
    """
    state = torch.get_rng_state()  # foreign code may draw from it
    try:
        with torch.no_grad():
            return _probe(_trial_copy(module))
    except Exception:  # foreign code may raise anything; then there is no answer
        return None
    finally:
        torch.set_rng_state(state)


def _probe(trial: nn.Module) -> Probe | None:
    noise = torch.Generator().manual_seed(0)
    widths = {p.numel() for p in trial.parameters(recurse=False) if p.numel() > 1}
    for width in sorted(widths) or [8]:
        for shape in _input_shapes(width):
            first, second, gate = (
                _AMPLITUDE * torch.randn(shape, generator=noise) for _ in range(3)
            )
            # a batch norm shows itself only in training: in eval it divides by stored statistics
            for training in (False, True):
                trial.train(training)
                if _is_scale_invariant(trial, first, gate):
                    return _roles(trial, first, second, gate)
    return None


def _trial_copy(module: nn.Module) -> nn.Module:
    """A runnable stand-in: float32, on the CPU, without gradients, all parameters 1."""
    trial = copy.deepcopy(module)
    if any(tensor.is_meta for tensor in [*trial.parameters(), *trial.buffers()]):
        trial.to_empty(device="cpu")
        for name, buffer in trial.named_buffers():
            buffer.fill_(1 if name.endswith("var") else 0)  # a variance divides: never 0
    trial.to(device="cpu", dtype=torch.float32)
    for parameter in trial.parameters():
        parameter.fill_(1.0)
    return trial


def _input_shapes(width: int) -> Iterator[tuple[int, ...]]:
    """Layouts in use: [N, L, C], [N, C, H, W], [N, C], [N, H, W, C], [N, C, L], [N, C, D, H, W].

    The other sizes differ from the width, so that a wrong layout fails instead of broadcasting.
    """
    batch, high, wide = [size for size in (3, 4, 5, 6) if size != width][:3]
    yield (batch, high, width)
    yield (batch, width, high, wide)
    yield (batch, width)
    yield (batch, high, wide, width)
    yield (batch, width, high)
    yield (batch, width, high, wide, wide)


def _run(trial: nn.Module, given: Tensor, gate: Tensor) -> Tensor | None:
    """The module's output where it has the input's shape; a second input goes in where needed."""
    for inputs in ((given,), (given, gate)):
        try:
            output = trial(*inputs)
        except Exception:  # a layout or a signature that the module does not take
            continue
        if isinstance(output, Tensor) and output.shape == given.shape:
            return output.float() if bool(output.isfinite().all()) else None
    return None


def _is_scale_invariant(trial: nn.Module, given: Tensor, gate: Tensor) -> bool:
    """Whether f(2x) = f(x), f varies with x, and f is not a mere sign or step of x."""
    output, doubled = _run(trial, given, gate), _run(trial, 2 * given, gate)
    if output is None or doubled is None or float(output.std()) < _TOLERANCE:
        return False
    size = float(output.abs().max())
    if float((doubled - output).abs().max()) > _TOLERANCE * size:
        return False
    ordered = output.flatten().sort().values
    distinct = int((ordered.diff() > 0).sum())
    return distinct > output.numel() // 4


def _roles(trial: nn.Module, first: Tensor, second: Tensor, gate: Tensor) -> Probe:
    """Switch on one parameter at a time, the others 0: a bias adds the same to any input."""
    own = dict(trial.named_parameters(recurse=False))

    def outputs(chosen: str | None) -> tuple[Tensor, Tensor]:
        for name, parameter in own.items():
            parameter.fill_(1.0 if name == chosen else 0.0)
        results = _run(trial, first, gate), _run(trial, second, gate)
        return tuple(torch.zeros(()) if one is None else one for one in results)  # type: ignore[return-value]

    silent = outputs(None)
    scale = bias = None
    for name in own:
        change = [on - off for on, off in zip(outputs(name), silent, strict=True)]
        if all(float(one.abs().max()) < _TOLERANCE for one in change):
            continue  # acts only beside others (a threshold, an activation's slope)
        varies = change[0].shape != change[1].shape or not torch.allclose(
            change[0], change[1], atol=_TOLERANCE
        )
        if varies and scale is None:
            scale = name
        elif not varies and bias is None:
            bias = name
    offset = scale is not None and float(silent[0].abs().max()) > _TOLERANCE
    return Probe(scale, bias, offset)
