"""Ask a small module what it does: feed it noise, and see whether it normalises.

A normalization layer takes the scale out of its input: f(2x) = f(x), up to its epsilon, while f
still depends on x. A layer scale, a PReLU, a gate or a tanh does not do that, whatever its name is.
A response norm (ConvNeXt V2's GRN) does it in the part that it adds: f(x) = x + w x n(x) with
n(2x) = n(x), where n depends on x.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from efftrain.peft.tree import own_parameters

# Large against every epsilon in use (1e-3 and below), so that epsilon cannot hide the invariance.
_AMPLITUDE = 8.0
_TOLERANCE = 1e-2
# A size that a module merely mentions may be an image's: no input of gigabytes for a question.
_MOST_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class Probe:
    """What a module showed.

    Attributes:
        normalises: Whether it takes the scale out of its input.
        scale: Local name of the parameter that multiplies the normalised input, or None.
        bias: Local name of the parameter that is added to it, or None.
        offset: Whether the scale is applied as (1 + w), so that w = 0 is the identity.
    """

    normalises: bool
    scale: str | None = None
    bias: str | None = None
    offset: bool = False


def probe(module: nn.Module) -> Probe | None:
    """Find out by running it whether a module normalises, and what its parameters do.

    The module itself is never run or changed: a float32 copy on the CPU is, with parameters of our
    own, so that a model without weights (meta device) and a trained one give the same answer.

    Args:
        module: A module whose parameters are vectors.

    Returns:
        What it showed; None where it cannot be run alone.
    """
    state = torch.get_rng_state()  # foreign code may draw from it
    try:
        # whatever device, precision or warning filter the caller has set is not the module's doing
        with (
            warnings.catch_warnings(),
            torch.device("cpu"),
            torch.autocast("cpu", enabled=False),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            return _probe(_trial_copy(module))
    except Exception:  # foreign code may raise anything; then there is no answer
        return None
    finally:
        torch.set_rng_state(state)


def _probe(trial: nn.Module) -> Probe | None:
    generator = torch.Generator().manual_seed(0)
    answer = None
    for shape in _input_shapes(trial):
        if math.prod(shape) > _MOST_ELEMENTS:
            continue
        first, second, beside = (_noise(shape, generator) for _ in range(3))
        # a batch norm shows itself only in training: in eval it divides by stored statistics
        for training in (False, True):
            trial.train(training)
            _fill(trial, 1.0)
            output, doubled = _run(trial, first, beside), _run(trial, 2 * first, beside)
            if output is None or doubled is None:
                continue
            if _is_same(output, doubled) and _has_values(output):
                return _roles(trial, first, second, beside)
            if _is_response_norm(trial, first, second, beside):
                return _roles(trial, first, second, beside)
            answer = Probe(normalises=False)
    return answer


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return _AMPLITUDE * torch.randn(shape, generator=generator, dtype=torch.float32)


def _trial_copy(module: nn.Module) -> nn.Module:
    """A runnable stand-in: float32, on the CPU."""
    trial = copy.deepcopy(module)
    if any(tensor.is_meta for tensor in [*trial.parameters(), *trial.buffers()]):
        trial.to_empty(device="cpu")
        for name, buffer in trial.named_buffers():
            buffer.fill_(1 if name.endswith("var") else 0)  # a variance divides: never 0
    return trial.to(device="cpu", dtype=torch.float32)


def _fill(trial: nn.Module, value: float) -> None:
    for parameter in trial.parameters():
        parameter.fill_(value)


def _declared_width(trial: nn.Module) -> int:
    """The width that a norm without parameters was made for; any will do where it does not say."""
    declared: Any = getattr(trial, "normalized_shape", None)
    if not isinstance(declared, tuple) or not declared:
        return 8
    return cast("tuple[int, ...]", declared)[-1]


def _input_shapes(trial: nn.Module) -> Iterator[tuple[int, ...]]:
    """Layouts in use, channels C at each place, and those that the module's own sizes suggest.

    The other sizes differ from the width, so that a wrong layout fails instead of broadcasting.
    """
    widths = {p.numel() for p in own_parameters(trial).values() if p.numel() > 1}
    for width in sorted(widths) or [_declared_width(trial)]:
        batch, high, wide = [size for size in (3, 4, 5, 6) if size != width][:3]
        yield (batch, high, width)  # [N, L, C]
        yield (batch, width, high, wide)  # [N, C, H, W]
        yield (batch, width)
        yield (batch, high, wide, width)  # [N, H, W, C]
        yield (batch, width, high)  # [N, C, L]
        yield (batch, high, width, wide)  # [N, L, heads, C], a scale for each head
        yield (batch, width, high, wide, wide)  # [N, C, D, H, W]
        for value in vars(trial).values():
            if isinstance(value, int) and 1 < value < width and width % value == 0:
                yield (batch, high, value, width // value)  # heads, or their size
                yield (batch, high, width // value, value)
            elif isinstance(value, tuple):
                sizes = cast("tuple[object, ...]", value)
                if sizes and all(isinstance(size, int) for size in sizes):
                    yield (batch, high, *cast("tuple[int, ...]", sizes), width)


def _run(trial: nn.Module, given: Tensor, beside: Tensor) -> Tensor | None:
    """The module's output if it has as many elements as the input, and is finite.

    A second input goes in where one is needed: a gate, or the keys beside the queries. Of several
    outputs, those of the inputs' shape are joined.
    """
    for inputs in ((given,), (given, beside)):
        try:
            output: object = trial(*inputs)
        except Exception:  # a layout or a signature that the module does not take
            continue
        parts = cast("tuple[object, ...]", output) if isinstance(output, tuple) else (output,)
        found = [
            part.float().reshape(given.shape)
            for part in parts
            if isinstance(part, Tensor) and part.numel() == math.prod(given.shape)
        ]
        if found:
            joined = torch.stack(found)
            return joined if bool(joined.isfinite().all()) else None
    return None


def _is_same(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= _TOLERANCE * float(one.abs().max())


def _has_values(output: Tensor) -> bool:
    """Whether the output is neither constant nor a mere sign or step."""
    ordered = output.flatten().sort().values
    distinct = int((ordered.diff() > 0).sum())
    return float(output.std()) > _TOLERANCE and distinct > output.numel() // 4


def _is_response_norm(trial: nn.Module, first: Tensor, second: Tensor, beside: Tensor) -> bool:
    """Whether f(x) = x + w x n(x) + b, where n ignores the scale of x and depends on x."""
    _fill(trial, 0.0)
    silent = _run(trial, first, beside)
    if silent is None or not torch.equal(silent, first.expand_as(silent)):
        return False
    _fill(trial, 1.0)
    responses: list[Tensor] = []
    for given in (first, second):
        once, twice, thrice = (_run(trial, times * given, beside) for times in (1, 2, 3))
        if once is None or twice is None or thrice is None:
            return False
        if not _is_same(twice - once, thrice - twice):
            return False
        responses.append((twice - once) / given - 1)  # the difference is free of the bias
    return float((responses[0] - responses[1]).abs().max()) > _TOLERANCE


def _roles(trial: nn.Module, first: Tensor, second: Tensor, beside: Tensor) -> Probe:
    """Switch on one parameter at a time, the others 0: a bias adds the same to any input."""
    own = own_parameters(trial)

    def outputs(chosen: str | None) -> list[Tensor]:
        for name, parameter in own.items():
            parameter.fill_(1.0 if name == chosen else 0.0)
        results = [_run(trial, first, second), _run(trial, second, beside)]
        return [torch.zeros(1, *first.shape) if one is None else one for one in results]

    silent = outputs(None)
    scale = bias = None
    offset = False
    for name in own:
        here, there = (on - off for on, off in zip(outputs(name), silent, strict=True))
        if max(float(here.abs().max()), float(there.abs().max())) < _TOLERANCE:
            continue  # acts only beside others: a threshold, an activation's slope
        if torch.allclose(here, there, atol=_TOLERANCE):
            bias = bias or name
        elif scale is None:
            scale = name
            # what it scales is there although it is 0
            offset = bool((silent[0].abs() > _TOLERANCE)[here.abs() > _TOLERANCE].any())
    return Probe(True, scale, bias, offset)
