"""Switch on what a selection names, and nothing else. No module is wrapped or replaced."""

from __future__ import annotations

from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft.bn_stats import POLICIES, STILL, set_bn_stats
from efftrain.peft.model_state import running_statistics
from efftrain.peft.patterns import did_you_mean
from efftrain.peft.precision import hold_float32
from efftrain.peft.record import record_of
from efftrain.peft.selection import Selection


def apply(
    model: nn.Module,
    selection: Selection,
    *,
    bn_stats: str = "running",
    float32_norms: bool = True,
) -> None:
    """Make exactly the selected parameters trainable, and hold the batch norms' statistics.

    Gradients of frozen parameters are dropped: an optimizer that was built before would still
    move a weight by a stale one.

    Args:
        model: The model that the selection was made for, or one of the same names. Changed in
            place: `requires_grad`, `.grad` and the mode of batch norms; names, types and state-dict
            keys stay.
        selection: From `select`.
        bn_stats: `running`, `batch`, `update` or `recalibrate`; see `set_bn_stats`.
        float32_norms: In a model of low precision, hold the norms that train in float32, and the
            statistics that move; see `hold_float32`. Otherwise small steps are rounded away.

    Raises:
        ConfigError: A selected name is not in the model, or cannot have a gradient (an integer or
            quantized tensor); an unknown policy. The model is as before.
    """
    parameters = dict(model.named_parameters())
    _check(model, parameters, selection)
    if bn_stats not in POLICIES:
        raise ConfigError(
            f"peft.bn_stats={bn_stats} is not a policy{did_you_mean(bn_stats, POLICIES)}; "
            f"allowed are {', '.join(POLICIES)}"
        )
    record = record_of(model)
    if not record.selection:
        record.buffers = running_statistics(model)
    set_bn_stats(model, bn_stats)
    chosen = frozenset(selection.names)
    for name, parameter in parameters.items():
        if name in chosen:
            parameter.requires_grad_(True)
        else:
            parameter.requires_grad_(False)
            parameter.grad = None
    if float32_norms:
        moving = () if bn_stats in STILL else running_statistics(model)
        hold_float32(model, [*selection.groups.get("norm", ()), *moving])
    record.selection, record.bn_stats = selection, bn_stats


def _check(model: nn.Module, parameters: dict[str, nn.Parameter], selection: Selection) -> None:
    problems: list[str] = []
    for name in selection.names:
        parameter = parameters.get(name)
        if parameter is None:
            problems.append(
                f"peft.apply: {type(model).__name__} has no parameter {name}"
                f"{did_you_mean(name, parameters)}; the selection was made for another model, "
                "call select on this one"
            )
        elif not (parameter.is_floating_point() or parameter.is_complex()):
            problems.append(
                f"peft.apply: {name} holds {str(parameter.dtype).removeprefix('torch.')} and "
                "cannot have a gradient; leave it out with peft.exclude"
            )
    if problems:
        raise ConfigError(*problems[:5])
