"""Which pixels an element of the last feature map depends on, found by running the model.

A strip of an image is filled with NaN, and whatever depends on it turns NaN: no table of operators,
no gradients that vanish. Where the graph predicts the field, three runs confirm it; where it cannot,
bisection finds the field from nothing. Values of weights play no part; only their shapes do.

Of the usual operators only `where`, `nan_to_num`, `fmax` and `argmax` swallow a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from efftrain.errors import ConfigError
from efftrain.graph.observer import describe, tensors_in
from efftrain.graph.rehearsal import Rehearsal, rehearse
from efftrain.profiling.receptive_field import ReceptiveField

HEIGHT = 64
WIDEST = 4096


@dataclass(frozen=True)
class Span:
    """The pixels that the middle position of the last feature map depends on.

    Attributes:
        first: The leftmost column.
        last: The rightmost column.
        width: Of the strip that was probed.
    """

    first: int
    last: int
    width: int

    @property
    def size(self) -> int:
        """Columns."""
        return self.last - self.first + 1


def verify_receptive_field(
    model: nn.Module, field: ReceptiveField, *, channels: int = 3, height: int = HEIGHT
) -> ReceptiveField:
    """Confirm a predicted receptive field, or find one that the graph could not tell.

    Args:
        model: With weights, on any device; run in eval mode on a copy.
        field: From `find_receptive_field` of the same model.
        channels: Of the image.
        height: Of the strip that is run; as wide as it takes.

    Returns:
        The field with `verified` set, and with the size that the probe found where the graph had
        none. Global pools are cut, as in `ReceptiveField.size`.

    Raises:
        ConfigError: The model has no weights (meta device).
    """
    if field.operation < 0:
        return field

    def run(rehearsal: Rehearsal) -> ReceptiveField:
        rehearsal.model.eval()
        device = next((p.device for p in rehearsal.model.parameters()), torch.device("cpu"))
        shape = (1, channels, height)

        def middle_is_nan(width: int, poison: Callable[[Tensor], None]) -> tuple[bool, int]:
            image = torch.zeros(*shape, width, device=device)
            poison(image)
            with torch.no_grad(), _Tap(field.operation) as tap:
                rehearsal.model(image)
            return _middle(tap.result, width, height)

        if field.size is not None:
            return replace(field, verified=_confirm(field, middle_is_nan))
        span = _bisect(middle_is_nan)
        if span is None:
            return replace(field, mixes_globally=True, verified=True)
        return replace(field, size=span.size, verified=True)

    return rehearse(run, model, torch.zeros(1, channels, height, height), values=True)


_Probe = Callable[[int, Callable[[Tensor], None]], tuple[bool, int]]


def _confirm(field: ReceptiveField, probe: _Probe) -> bool:
    """NaN at either end arrives; NaN everywhere else does not."""
    size, stride = field.size or 1, field.stride or 1
    # room for the field of the middle position, and a strip that is told from its channels
    width = math.ceil(max(2 * size + 4 * stride, 8 * HEIGHT) / (2 * stride)) * 2 * stride
    _, positions = probe(width, lambda image: None)
    first = field.start + (positions // 2) * stride
    last = first + size - 1

    def outside(image: Tensor) -> None:
        image[..., :first] = torch.nan
        image[..., last + 1 :] = torch.nan

    def column(position: int) -> Callable[[Tensor], None]:
        def fill(image: Tensor) -> None:
            image[..., position] = torch.nan

        return fill

    return (
        0 < first < last + 1 < width
        and not probe(width, outside)[0]
        and probe(width, column(first))[0]
        and probe(width, column(last))[0]
    )


def _bisect(probe: _Probe) -> Span | None:
    """The field's ends, on strips that grow until it touches neither border; None if it always does."""
    width = 512
    while width <= WIDEST:
        span = _ends(width, probe)
        if span is not None and span.first > 0 and span.last < width - 1:
            return span
        width *= 2
    return None


def _ends(width: int, probe: _Probe) -> Span | None:
    def reaches(first: int, last: int) -> bool:
        def fill(image: Tensor) -> None:
            image[..., first:last] = torch.nan

        return probe(width, fill)[0]

    if not reaches(0, width):
        return None
    low, high = 0, width - 1
    while low < high:  # the smallest column whose left side arrives
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(0, middle + 1) else (middle + 1, high)
    first, high = low, width - 1
    while low < high:  # the largest column whose right side arrives
        middle = (low + high + 1) // 2
        low, high = (middle, high) if reaches(middle, width) else (low, middle - 1)
    return Span(first, low, width)


def _middle(result: Tensor, width: int, height: int) -> tuple[bool, int]:
    """Whether the middle position is NaN, and how many positions lie side by side.

    The map may be [N, C, h, w], [N, h, w, C] or [N, h x w, C].
    """
    shape = result.shape
    if len(shape) == 3:
        positions = round((shape[1] * width / height) ** 0.5)
        row = shape[1] // positions // 2
        return bool(result[0, row * positions + positions // 2].isnan().any()), positions
    if len(shape) != 4:
        raise ConfigError(f"a feature map of shape {list(shape)} cannot be probed for NaN")

    def unlike_the_strip(rows: int, columns: int) -> float:
        return abs(math.log(columns * height / (rows * width)))

    channels_last = unlike_the_strip(*shape[1:3]) < unlike_the_strip(*shape[2:4])
    image = result[0].permute(2, 0, 1) if channels_last else result[0]
    rows, columns = image.shape[1:]
    return bool(image[:, rows // 2, columns // 2].isnan().any()), columns


class _Tap(TorchDispatchMode):
    """Takes the result of one operation, and cuts global pools.

    A pool over all positions carries every NaN everywhere; cut, the rest of the field shows.
    """

    def __init__(self, number: int) -> None:
        cast(Any, super()).__init__()
        self._number = number
        self._seen = -1
        self.result = torch.empty(0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result: Any = func(*args, **(kwargs or {}))
        self._seen += 1
        if self._seen == self._number:
            self.result = tensors_in([result])[0]
        name = describe(func).name
        if name == "_adaptive_avg_pool2d" and result.shape[-2:] == (1, 1):
            return result.nan_to_num()
        if name == "mean" and _over_positions(args):
            return result.nan_to_num()
        return result


def _over_positions(args: tuple[Any, ...]) -> bool:
    image, dims = args[0], args[1] if len(args) > 1 else None
    if image.dim() != 4 or dims is None:
        return False
    return {dim % 4 for dim in dims} in ({2, 3}, {1, 2})
