"""Save what a training changed, and put it on, exchange it and take it off again.

The base values that a loaded delta replaces are kept on the CPU, on the model: a delta is small, and
a copy is the only way back that is exact to the bit. Everything is checked before anything changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from efftrain.errors import CheckpointError, ConfigError, NumericError
from efftrain.peft.blending import blend
from efftrain.peft.delta_file import Delta, DeltaInfo, read_delta, write_delta
from efftrain.peft.fingerprint import digest_by_part, digest_of_parts
from efftrain.peft.model_state import (
    base_of,
    frozen_of,
    held_in_float32,
    moved_statistics,
    state_of,
    write_values,
)
from efftrain.peft.patterns import did_you_mean
from efftrain.peft.precision import hold_float32, release_float32
from efftrain.peft.record import record_of
from efftrain.peft.selection import Selection


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
    state = state_of(model)
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
    keys = set(state) if complete else {*names, *record.base, *moved_statistics(model)}
    tensors = {name: state[name].detach().cpu().contiguous().clone() for name in sorted(keys)}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise NumericError(
                f"save_delta: {name} holds NaN or infinity; nothing was written: train again with a "
                "lower learning rate, or load the last good checkpoint"
            )
    parts = digest_by_part(frozen_of(model, keys))
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
    base = base_of(model)
    _check_fit(where, model, base, delta)
    if check_base:
        _check_base(where, model, delta)
    values = {
        name: blend(name, base[name].detach().cpu(), tensor, scale)
        for name, tensor in delta.tensors.items()
    }
    unload_delta(model)
    state, record = state_of(model), record_of(model)
    record.base = {name: state[name].detach().cpu().clone() for name in values}
    record.raised = hold_float32(model, held_in_float32(model, delta.tensors))
    record.loaded = delta.sha256
    write_values(state, values)
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
    if record.raised:
        release_float32(model, record.raised)
    write_values(state_of(model), record.base)
    record.base, record.loaded, record.raised = {}, "", ()
    return True


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
                "load it on the model that it was trained on (after add_ssf, add_affine or "
                "thaw_norms where that one had them)"
            )
        if tensor.shape != base[name].shape:
            raise CheckpointError(
                f"{where} does not fit {kind}: {name} is {list(tensor.shape)} in the delta and "
                f"{list(base[name].shape)} in the model; load it on the model it was trained on"
            )


def _check_base(where: str, model: nn.Module, delta: Delta) -> None:
    if not delta.base:
        return
    parts = digest_by_part(frozen_of(model, delta.tensors))
    if digest_of_parts(parts) == delta.base:
        return
    both = sorted(set(parts) | set(delta.base_parts))
    odd = [part for part in both if parts.get(part) != delta.base_parts.get(part)]
    raise CheckpointError(
        f"{where} was trained on another base: the frozen weights differ in {', '.join(odd[:6])}"
        f"{', …' if len(odd) > 6 else ''}; load the pretrained weights (and dtype) that it was "
        "trained on"
    )
