"""Memory of each device where several train one model together, estimated from one device's step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal, cast

from torch import Tensor, nn

from efftrain.errors import ConfigError
from efftrain.profiling.peak import StepPeak

Strategy = Literal["single", "ddp", "fsdp"]

_DDP = (
    "DistributedDataParallel's buckets hold the gradients of all trainable parameters a second time, "
    "from the start on; the batch is that of one device; the network's own buffers are left out"
)
_DDP_VIEWS = (
    "gradients are views of DistributedDataParallel's buckets, which are there all the time; the "
    "batch is that of one device; the network's own buffers are left out"
)
_FSDP = (
    "fully_shard with its defaults: parameters, gradients and optimizer state are split along the "
    "first dimension, padded to equal parts; whole at once are the parameters outside the units, of a "
    "unit and the next one, and the copy that the next one is gathered in; and a unit's gradients "
    "twice, as they are made and as they are sent; the batch is that of one device; activations, the "
    "update's temporaries and buffers are not split"
)


@dataclass(frozen=True)
class DevicePeak:
    """What one device holds, in bytes; an estimate, but for a single one.

    Attributes:
        device_peak_bytes: The most at any moment; not more than the sum of the parts.
        parameter_bytes: Of the parameters that it keeps between steps.
        gradient_bytes: Of the gradients that it keeps from backward to the update.
        optimizer_bytes: Of the optimizer's state.
        bucket_bytes: Of DDP's buckets.
        unsharded_bytes: Of what FSDP puts together from all devices for a while.
        working_bytes: Of activations, temporaries, buffers and the batch.
        strategy: How the devices share the work.
        devices: How many there are.
        assumptions: What the estimate rests on; "" for a single device, which is predicted.
    """

    device_peak_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    bucket_bytes: int
    unsharded_bytes: int
    working_bytes: int
    strategy: Strategy
    devices: int
    assumptions: str

    @property
    def obtained(self) -> Literal["predicted", "estimated"]:
        """How the figures were got."""
        return "estimated" if self.assumptions else "predicted"

    def to_dict(self) -> dict[str, Any]:
        """The figures by name, and how they were got."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**found, "obtained": self.obtained}


def estimate_per_device(
    peak: StepPeak,
    model: nn.Module,
    strategy: Strategy = "single",
    *,
    devices: int = 1,
    units: Sequence[str] = (),
    gradient_as_bucket_view: bool = False,
) -> DevicePeak:
    """Estimate what each device holds at most.

    Args:
        peak: Of a step of one device's batch, on one device.
        model: That step's model, with `requires_grad` as it trains; meta device is enough.
        strategy: `ddp`: torch's DistributedDataParallel. `fsdp`: torch's `fully_shard` (FSDP2) on each
            unit and on the model. Both as they are by default.
        devices: That train together.
        units: Paths of the modules that are sharded on their own, in the order in which they run;
            none: the whole model is put together at once.
        gradient_as_bucket_view: As DistributedDataParallel's.

    Returns:
        The estimate, with its assumptions.

    Raises:
        ConfigError: A unit that is no module of the model, or no device.

    Source: torch/csrc/distributed/c10d/reducer.cpp (`initialize_buckets`);
    torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py, _fsdp_collectives.py (2.13)
    """
    if devices < 1:
        raise ConfigError(f"devices={devices}: at least one trains")
    if strategy == "fsdp":
        return _fully_sharded(peak, model, devices, units)
    buckets = 0
    held = peak.step_peak_bytes
    working = peak.buffer_bytes + peak.batch_bytes + peak.working_peak_bytes
    gradients = peak.gradient_bytes
    if strategy == "ddp":
        buckets = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
        held += buckets
        if gradient_as_bucket_view:
            gradients = 0
            held = peak.parameter_bytes + peak.optimizer_bytes + working + buckets
    views = _DDP_VIEWS if gradient_as_bucket_view else _DDP
    return DevicePeak(
        device_peak_bytes=held,
        parameter_bytes=peak.parameter_bytes,
        gradient_bytes=gradients,
        optimizer_bytes=peak.optimizer_bytes,
        bucket_bytes=buckets,
        unsharded_bytes=0,
        working_bytes=working,
        strategy=strategy,
        devices=devices,
        assumptions=views if strategy == "ddp" else "",
    )


def _fully_sharded(
    peak: StepPeak, model: nn.Module, devices: int, units: Sequence[str]
) -> DevicePeak:
    parameters = list(model.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    whole = sum(_bytes(p) for p in trainable)
    shards = sum(_shard_bytes(p, devices) for p in trainable)
    kept = sum(_shard_bytes(p, devices) for p in parameters)
    state = round(peak.optimizer_bytes * shards / whole) if whole else 0
    unsharded = _unsharded_bytes(model, units)
    working = peak.buffer_bytes + peak.batch_bytes + peak.working_peak_bytes
    return DevicePeak(
        device_peak_bytes=kept + shards + state + unsharded + working,
        parameter_bytes=kept,
        gradient_bytes=shards,
        optimizer_bytes=state,
        bucket_bytes=0,
        unsharded_bytes=unsharded,
        working_bytes=working,
        strategy="fsdp",
        devices=devices,
        assumptions=_FSDP,
    )


def _unsharded_bytes(model: nn.Module, units: Sequence[str]) -> int:
    """The most that is whole at once."""
    modules: dict[str, nn.Module] = dict(cast(Any, model).named_modules())
    unknown = [path for path in units if path not in modules]
    if unknown:
        raise ConfigError(f"units: no module of the model is named {', '.join(unknown)}")
    seen: set[int] = set()
    own: dict[str, list[nn.Parameter]] = {}
    for path in sorted(units, key=lambda path: -path.count(".")):  # the innermost has a parameter
        own[path] = [p for p in modules[path].parameters() if id(p) not in seen]
        seen.update(id(p) for p in own[path])
    rest = [p for p in model.parameters() if id(p) not in seen]
    sizes = [sum(_bytes(p) for p in own[path]) for path in units]
    gradients = [
        sum(_bytes(p) for p in group if p.requires_grad) for group in [*own.values(), rest]
    ]
    root = sum(_bytes(p) for p in rest)
    two = max((a + b for a, b in pairwise(sizes)), default=sum(sizes))
    return root + two + max([*sizes, root]) + 2 * max(gradients)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _shard_bytes(tensor: Tensor, devices: int) -> int:
    """Of one device's part: rows of the first dimension, as many on each device."""
    if not tensor.dim():
        return _bytes(tensor)
    rows = -(-tensor.shape[0] // devices)
    return rows * math.prod(tensor.shape[1:]) * tensor.element_size()
