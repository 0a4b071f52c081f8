"""Measure the statistics of every batch norm anew, over one data set, exactly.

torch's own way (`torch.optim.swa_utils.update_bn`) averages the batches' statistics: that gives
every batch the same weight, misses the variance between batches, and normalises the layers above by
single batches while it measures those below. Here mean and variance are those of all elements
together, and a layer is measured when all layers before it are final. What the model then computes
in eval mode on the same data has mean 0 and variance 1 at every batch norm, before scale and bias.

That takes one pass per batch norm, each only as deep as the layer it measures, so about half as
many full passes as there are layers. Measuring all layers in every pass until nothing moves does
not get there sooner: on a ResNet-18 the values settle only when the last layer has had its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import (
    _BatchNorm,  # pyright: ignore[reportPrivateUsage]  # the base of every batch norm
)

from efftrain.errors import ConfigError, NumericError
from efftrain.peft.bn_stats import find_tracking

Forward = Callable[[nn.Module, Any], object]


@dataclass(frozen=True)
class Recalibration:
    """What `recalibrate` did.

    Attributes:
        layers: Paths of the layers that were measured, in the order in which they run.
        batches: Batches in the data set.
        passes: How often the data was gone through; most passes end before the last layer.
        exact: Whether each layer was measured behind final statistics of all before it. Not so for
            `exact=False`, nor for a layer that one forward runs more than once.
    """

    layers: tuple[str, ...]
    batches: int
    passes: int
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None = None,
    *,
    exact: bool = True,
) -> Recalibration:
    """Set the running statistics of all batch norms to those of a data set.

    Args:
        model: Its batch norms' buffers change, nothing else; modes and policy are as before.
        batches: A list or a DataLoader, the same content each time it is iterated. Sizes may
            differ: elements are what counts. A few thousand samples are enough for most models.
        forward: Runs one batch; by default `model(batch)`, `model(batch[0])` for a tuple or list,
            `model(**batch)` for a mapping, without `labels`.
        exact: Measure layer after layer. Otherwise all in one pass, each behind layers that
            normalise by single batches (Wu and Johnson 2021): then only layers with no batch norm
            before them are exact, and the larger the batches, the better the others.

    Returns:
        What was measured, and how.

    Raises:
        ConfigError: No batch, no batch norm, or an iterator that can be read only once.
        NumericError: An activation is not finite; the statistics are as before.
    """
    layers = {path: one for path, one in find_tracking(model) if isinstance(one, _BatchNorm)}
    if not layers:
        raise ConfigError(
            f"recalibrate: {type(model).__name__} has no batch norm with running statistics"
        )
    if exact and iter(batches) is batches:
        raise ConfigError(
            "recalibrate: batches can be read only once; pass a list or a DataLoader, or "
            "exact=False"
        )
    before = {path: _statistics(layer) for path, layer in layers.items()}
    run = forward or _forward
    try:
        with _measuring_mode(model, list(layers.values()), by_batch=not exact):
            return (_layer_by_layer if exact else _all_at_once)(model, layers, batches, run)
    except BaseException:
        for path, layer in layers.items():
            _restore(layer, before[path])
        raise


class _ReachedError(BaseException):
    """The layer to measure has its input; the rest of the forward is not needed.

    Not an Exception, so that a model that catches those does not swallow it.
    """


class _Moments:
    """Mean and summed squared deviation per channel, merged batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.calls = 0
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, given: Tensor) -> None:
        """Take in one batch, [N, C, ...] or [N, C]."""
        axes = [axis for axis in range(given.dim()) if axis != 1]
        values = given.detach().double()
        count = values.numel() // values.shape[1]
        squares = values.var(axes, correction=0) * count
        step = values.mean(axes) - self.mean
        total = self.count + count
        self.mean = self.mean + step * (count / total)
        self.squares = self.squares + squares + step**2 * (self.count * count / total)
        self.count = total
        self.calls += 1

    def over_all_ranks(self) -> tuple[Tensor, Tensor]:
        """Population mean and variance, over every process where there are several."""
        mean, squares = cast(Tensor, self.mean), cast(Tensor, self.squares)
        count = torch.tensor(float(self.count), dtype=torch.float64, device=mean.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everywhere = _sum_over_ranks(count)
            shared = _sum_over_ranks(mean * count) / everywhere
            squares = _sum_over_ranks(squares + count * (mean - shared) ** 2)
            mean, count = shared, everywhere
        return mean, squares / count


def _sum_over_ranks(values: Tensor) -> Tensor:
    total = values.clone()
    torch.distributed.all_reduce(total)  # pyright: ignore[reportUnknownMemberType]
    return total


def _layer_by_layer(
    model: nn.Module, layers: dict[str, _BatchNorm], batches: Iterable[Any], run: Forward
) -> Recalibration:
    order = _order_of_calls(model, layers, batches, run)
    count = 0
    for path, calls in order.items():
        moments, count = _one_pass(model, {path: layers[path]}, batches, run, stop_after=calls)
        _store(path, layers[path], moments[path], count)
    once = all(calls == 1 for calls in order.values())
    return Recalibration(tuple(order), count, len(order), exact=once)


def _all_at_once(
    model: nn.Module, layers: dict[str, _BatchNorm], batches: Iterable[Any], run: Forward
) -> Recalibration:
    moments, count = _one_pass(model, layers, batches, run)
    if not count:
        raise ConfigError("recalibrate: there is no batch to measure on")
    for path, found in moments.items():
        _store(path, layers[path], found, count)
    return Recalibration(tuple(moments), count, 1, exact=False)


def _order_of_calls(
    model: nn.Module, layers: dict[str, _BatchNorm], batches: Iterable[Any], run: Forward
) -> dict[str, int]:
    """How often the first batch calls each layer, in the order of the first calls."""
    for batch in batches:
        moments, _ = _one_pass(model, layers, [batch], run)
        return {path: found.calls for path, found in moments.items()}
    raise ConfigError("recalibrate: there is no batch to measure on")


def _one_pass(
    model: nn.Module,
    layers: dict[str, _BatchNorm],
    batches: Iterable[Any],
    run: Forward,
    stop_after: int | None = None,
) -> tuple[dict[str, _Moments], int]:
    """Moments of what reaches each layer, and the number of batches.

    Args:
        model: In measuring mode.
        layers: Which to measure.
        batches: The data.
        run: Runs one batch.
        stop_after: End each forward at this call of the layer.
    """
    moments: dict[str, _Moments] = {}
    calls = 0

    def measure(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def take_in(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal calls
            moments.setdefault(path, _Moments()).add(inputs[0])
            calls += 1
            if calls == stop_after:
                raise _ReachedError

        return take_in

    hooks = [layer.register_forward_pre_hook(measure(path)) for path, layer in layers.items()]
    count = 0
    try:
        for batch in batches:
            calls = 0
            with suppress(_ReachedError):
                run(model, batch)
            count += 1
    finally:
        for hook in hooks:
            hook.remove()
    return moments, count


def _store(path: str, layer: _BatchNorm, moments: _Moments, batches: int) -> None:
    mean, variance = moments.over_all_ranks()
    if not bool(mean.isfinite().all() & variance.isfinite().all()):
        raise NumericError(
            f"recalibrate: what reaches {path} is not finite; check the data and the weights"
        )
    layer.get_buffer("running_mean").copy_(mean)
    layer.get_buffer("running_var").copy_(variance)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(batches)


def _statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor, Tensor | None]:
    batches = layer.num_batches_tracked
    return (
        layer.get_buffer("running_mean").clone(),
        layer.get_buffer("running_var").clone(),
        None if batches is None else batches.clone(),
    )


def _restore(layer: _BatchNorm, statistics: tuple[Tensor, Tensor, Tensor | None]) -> None:
    mean, variance, batches = statistics
    layer.get_buffer("running_mean").copy_(mean)
    layer.get_buffer("running_var").copy_(variance)
    if layer.num_batches_tracked is not None and batches is not None:
        layer.num_batches_tracked.copy_(batches)


@contextmanager
def _measuring_mode(model: nn.Module, layers: list[_BatchNorm], by_batch: bool) -> Generator[None]:
    """Dropout off, no gradients, nothing tracked; afterwards every mode is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    tracks = [(layer, layer.track_running_stats) for layer in layers]
    model.eval()
    for layer in layers:
        layer.training = by_batch
        layer.track_running_stats = False
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, tracked in tracks:
            layer.track_running_stats = tracked
        for module, mode in modes:
            module.training = mode


def _forward(model: nn.Module, batch: Any) -> object:
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, dict):
        given = cast("dict[str, Any]", batch)
        return model(**{key: value for key, value in given.items() if key != "labels"})
    return model(batch[0])
