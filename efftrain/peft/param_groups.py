"""The selection as an optimizer's parameter groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft.patterns import did_you_mean
from efftrain.peft.selection import Selection


def param_groups(
    model: nn.Module,
    selection: Selection,
    lr: float | None = None,
    weight_decay: float = 0.0,
    norm_lr: float | None = None,
    head_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Group what trains by role, with rates and weight decay of its own.

    Norms and biases get no weight decay: it would pull a scale from 1 to 0, and one written as
    (1 + w) towards its pretrained value. A tensor that is tied under several names appears once.

    Args:
        model: With the selection applied.
        selection: Names the parameters.
        lr: Rate of every group that has none of its own; None leaves it to the optimizer.
        weight_decay: Of the matrices and kernels of the head and the other parameters.
        norm_lr: Rate of the norms.
        head_lr: Rate of the head.

    Returns:
        Groups with "name", "params", "weight_decay" and, where known, "lr", as torch's optimizers
        take them.

    Raises:
        ConfigError: A selected name is not in the model.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = [name for name in selection.names if name not in parameters]
    if missing:
        raise ConfigError(
            f"param_groups: {type(model).__name__} has no parameter {missing[0]}"
            f"{did_you_mean(missing[0], parameters)}; the selection was made for another model, "
            "call select on this one"
        )
    rates = {"norm": norm_lr, "head": head_lr}
    groups: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for role, names in selection.groups.items():
        for name in names:
            parameter = parameters[name]
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            decays = role in ("head", "other") and parameter.ndim > 1 and weight_decay > 0
            group_name = f"{role}_decayed" if decays else role
            group = groups.setdefault(group_name, {"name": group_name, "params": []})
            group["params"].append(parameter)
            group["weight_decay"] = weight_decay if decays else 0.0
            rate = rates.get(role)
            rate = lr if rate is None else rate
            if rate is not None:
                group["lr"] = rate
    return list(groups.values())
