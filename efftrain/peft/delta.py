"""Save what a training changed, and put it on, exchange it and take it off again.

The base values that a loaded delta replaces are kept on the CPU, on the model: a delta is small, and
a copy is the only way back that is exact to the bit. Everything is checked before anything changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from efftrain.errors import CheckpointError, ConfigError, NumericError
from efftrain.peft.apply import running_statistics
from efftrain.peft.delta_file import Delta, DeltaInfo, read_delta, write_delta
from efftrain.peft.fingerprint import digest_by_part, digest_of_parts
from efftrain.peft.patterns import did_you_mean
from efftrain.peft.record import record_of
from efftrain.peft.selection import Selection
from efftrain.peft.tree import join, own_buffers, walk


def save_delta(
    model: nn.Module,
    path: Path | str,
    *,
    selection: Selection | None = None,
    metadata: Mapping[str, str] | None = None,
) -> DeltaInfo:
    """Write the trained parameters, and the running statistics that moved, to one small file.

    Where every parameter trained, the file is the model's complete state.

    Args:
        model: The trained model.
        path: A `.safetensors` file to create or replace.
        selection: What trained; by default what `apply` switched on, and without that whatever
            requires a gradient.
        metadata: Entries of your own, kept in the file.

    Returns:
        Path, size and SHA-256.

    Raises:
        ConfigError: Nothing trains.
        NumericError: A trained value is not finite; nothing is written.
        MachineError: The folder cannot be written.
    """
    return write_delta(collect_delta(model, selection, metadata), path)


def collect_delta(
    model: nn.Module,
    selection: Selection | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Delta:
    """As `save_delta`, kept in memory.

    Args:
        model: The trained model.
        selection: What trained.
        metadata: Entries of your own.
    """
    record = record_of(model)
    selection = selection or record.selection
    state = _state(model)
    if selection is None:
        names = tuple(name for name, p in model.named_parameters() if p.requires_grad)
        groups, method = {"other": names}, "custom"
    else:
        names, groups, method = selection.names, dict(selection.groups), selection.method
    if not names:
        raise ConfigError(
            f"save_delta: no parameter of {type(model).__name__} trains; call select and apply "
            "first, or pass selection="
        )
    unknown = [name for name in names if name not in state]
    if unknown:
        raise ConfigError(
            f"save_delta: {type(model).__name__} has no parameter {unknown[0]}"
            f"{did_you_mean(unknown[0], state)}; the selection belongs to another model"
        )
    complete = len(names) == len(dict(model.named_parameters()))
    keys = set(state) if complete else {*names, *record.base, *_moved_statistics(model)}
    tensors = {name: state[name].detach().cpu().contiguous().clone() for name in sorted(keys)}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise NumericError(
                f"save_delta: {name} holds NaN or infinity; nothing was written: train again with a "
                "lower learning rate, or load the last good checkpoint"
            )
    parts = digest_by_part({name: one for name, one in _base(model).items() if name not in keys})
    return Delta(
        tensors=tensors,
        method=method,
        groups=groups,
        bn_stats=record.bn_stats or "update",
        base=digest_of_parts(parts) if parts else "",
        base_parts=parts,
        user=dict(metadata or {}),
    )


def load_delta(
    model: nn.Module,
    delta: Path | str | Delta,
    scale: float = 1.0,
    *,
    check_base: bool = True,
) -> Delta:
    """Put a delta on the model that it was trained on: base + scale x (trained - base).

    Args:
        model: The base model; changed in place.
        delta: A file, or a delta in memory.
        scale: 1 is the trained model, 0 the base; in between often generalises better (Wortsman et
            al. 2022, WiSE-FT).
        check_base: Compare the frozen weights with those the delta was trained on. Switch it off
            only for a base that you changed knowingly, such as a quantized one.

    Returns:
        The delta that was loaded.

    Raises:
        CheckpointError: The file is damaged, or the delta belongs to another model. The model is as
            before.
        ConfigError: A delta is loaded already.
    """
    record = record_of(model)
    if record.base:
        raise ConfigError(
            "load_delta: this model carries a delta already; exchange it with swap_delta, or call "
            "unload_delta first"
        )
    return swap_delta(model, delta, scale, check_base=check_base)


def swap_delta(
    model: nn.Module,
    delta: Path | str | Delta,
    scale: float = 1.0,
    *,
    check_base: bool = True,
) -> Delta:
    """Exchange the loaded delta for another one of the same base; see `load_delta`.

    Args:
        model: A model with or without a delta; changed in place.
        delta: A file, or a delta in memory.
        scale: How much of it.
        check_base: Compare the frozen weights first.

    Raises:
        CheckpointError: As `load_delta`; the delta that was loaded stays.
    """
    where = "delta" if isinstance(delta, Delta) else f"delta {delta}"
    delta = delta if isinstance(delta, Delta) else read_delta(delta)
    base = _base(model)
    _check_fit(where, model, base, delta)
    if check_base:
        _check_base(where, base, delta)
    values = {
        name: blend(name, base[name].detach().cpu(), tensor, scale)
        for name, tensor in delta.tensors.items()
    }
    unload_delta(model)
    state, record = _state(model), record_of(model)
    record.base = {name: state[name].detach().cpu().clone() for name in values}
    record.loaded = delta.sha256
    _write(state, values)
    return delta


def unload_delta(model: nn.Module) -> bool:
    """Take the loaded delta off: every value is the base's again, to the bit.

    Args:
        model: Changed in place; without a delta nothing happens.

    Returns:
        Whether there was a delta.
    """
    record = record_of(model)
    if not record.base:
        return False
    _write(_state(model), record.base)
    record.base, record.loaded = {}, ""
    return True


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


def _check_fit(where: str, model: nn.Module, base: Mapping[str, Tensor], delta: Delta) -> None:
    """Names and shapes: all that the delta names is there, and nothing that it needs is missing."""
    kind = type(model).__name__
    stated = [name for names in delta.groups.values() for name in names]
    missing = [name for name in stated if name not in delta.tensors]
    if not delta.base:  # a complete state
        missing += [name for name in base if name not in delta.tensors]
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(set(missing))} tensors that it should hold, first {missing[0]}; "
            "write it again with save_delta"
        )
    for name, tensor in delta.tensors.items():
        if name not in base:
            raise CheckpointError(
                f"{where} does not fit {kind}: the model has no {name}{did_you_mean(name, base)}; "
                "load it on the model that it was trained on"
            )
        if tensor.shape != base[name].shape:
            raise CheckpointError(
                f"{where} does not fit {kind}: {name} is {list(tensor.shape)} in the delta and "
                f"{list(base[name].shape)} in the model; load it on the model it was trained on"
            )


def _check_base(where: str, base: Mapping[str, Tensor], delta: Delta) -> None:
    if not delta.base:
        return
    parts = digest_by_part({name: one for name, one in base.items() if name not in delta.tensors})
    if digest_of_parts(parts) == delta.base:
        return
    both = sorted(set(parts) | set(delta.base_parts))
    odd = [part for part in both if parts.get(part) != delta.base_parts.get(part)]
    raise CheckpointError(
        f"{where} was trained on another base: the frozen weights differ in {', '.join(odd[:6])}"
        f"{', …' if len(odd) > 6 else ''}; load the pretrained weights (and dtype) that it was "
        "trained on"
    )


def _moved_statistics(model: nn.Module) -> set[str]:
    """Keys of the running statistics that belong into the delta."""
    record = record_of(model)
    now = running_statistics(model)
    if record.bn_stats not in ("running", "batch"):
        return set(now)  # they follow the data, or nobody said that they do not
    return {
        name
        for name, buffer in now.items()
        if name not in record.buffers or not torch.equal(buffer, record.buffers[name])
    }


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by state-dict key, each tensor once."""
    state: dict[str, Tensor] = dict(model.named_parameters())
    for path, module in walk(model):
        for name, buffer in own_buffers(module, persistent=True).items():
            state[join(path, name)] = buffer
    return state


def _base(model: nn.Module) -> dict[str, Tensor]:
    """The state as it is without the loaded delta."""
    return {**_state(model), **record_of(model).base}


def _write(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
