"""Values between two deltas, or between a delta and its base."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from efftrain.errors import CheckpointError
from efftrain.peft.delta_file import Delta, read_delta


def interpolate(a: Path | str | Delta, b: Path | str | Delta, weight: float) -> Delta:
    """The delta between two of the same base: (1 - weight) x a + weight x b.

    Args:
        a: A file, or a delta in memory.
        b: Another one.
        weight: The share of b. 0 and 1 give back a and b to the bit.

    Returns:
        A delta to load, or to write with `write_delta`.

    Raises:
        CheckpointError: A file is damaged, or the two differ in base, names or shapes.
    """
    first, second = (one if isinstance(one, Delta) else read_delta(one) for one in (a, b))
    odd = sorted(set(first.tensors) ^ set(second.tensors))
    odd += [
        name
        for name, tensor in first.tensors.items()
        if name in second.tensors and tensor.shape != second.tensors[name].shape
    ]
    if odd:
        raise CheckpointError(
            f"interpolate: the deltas hold different tensors ({len(odd)}, first {odd[0]}); "
            "both have to come from the same method on the same model"
        )
    if first.base != second.base:
        raise CheckpointError(
            "interpolate: the deltas belong to different base models; train both on the same one"
        )
    tensors = {
        name: blend(name, tensor, second.tensors[name], weight)
        for name, tensor in first.tensors.items()
    }
    nearer = second if weight > 0.5 else first
    return Delta(
        tensors=tensors,
        method=nearer.method,
        groups=nearer.groups,
        bn_stats=nearer.bn_stats,
        base=nearer.base,
        base_parts=nearer.base_parts,
        user={**nearer.user, "interpolated": repr(weight)},
    )


def blend(name: str, start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Start + weight x (end - start), exact at 0 and 1; a counter is taken from the nearer side.

    Raises:
        CheckpointError: A variance would become negative (weights outside 0 to 1).
    """
    if weight == 1.0 or weight == 0.0:
        return end if weight == 1.0 else start
    if not end.is_floating_point():
        return end if weight > 0.5 else start
    mixed = start.double() + weight * (end.double() - start.double())
    if name.endswith("running_var") and bool((mixed < 0).any()):
        raise CheckpointError(
            f"{name} would become negative at {weight}; allowed with running statistics is 0 to 1"
        )
    return mixed.to(end.dtype)
