"""Make a model keep less between forward and backward, and take it back.

Types, module names and state-dict keys stay as they were: each module's `forward` is shadowed by an
object in the instance, and while the model runs, torch's functions are taken for ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast, get_args

import torch
from torch import nn
from torch.nn.modules.conv import (
    _ConvNd,  # pyright: ignore[reportPrivateUsage]  # the base of every convolution
)

from efftrain.errors import ConfigError
from efftrain.memory.forward import ReducedForward
from efftrain.memory.report import LeftModule, MemoryReport, ReducedModule
from efftrain.memory.special import find_special
from efftrain.memory.survey import describe

Mode = Literal["exact", "recompute"]
MODES: tuple[str, ...] = get_args(Mode)


def reduce_memory(model: nn.Module, mode: str = "exact") -> MemoryReport:
    """Keep only what the gradients of this model's trainable parameters need.

    Call it after choosing what trains: a layer whose weight is trained keeps what it needs for that,
    and decides at each call; calling again after a change looks at the model anew.

    Under `torch.compile` the model runs as it is written: see `joint_graph`.

    Args:
        model: Changed in place: `forward` of its modules, in the instances. Nothing that others see by
            name.
        mode: `exact`: the gradients of plain torch, up to the order of rounding. `recompute`: the same,
            and cheap layers that expand are computed again in backward rather than kept.

    Returns:
        What keeps less, what was left alone, and why.

    Raises:
        ConfigError: An unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f"memory.mode={mode} is not a mode; allowed are off, {', '.join(MODES)}")
    restore_memory(model)
    reduced: list[ReducedModule] = []
    left: list[LeftModule] = []
    masks = _find_masks(model)
    for path, module in _walk(model):
        if not _runs_python(module):
            if isinstance(module, torch.jit.ScriptModule):
                left.append(LeftModule(path, type(module).__name__, "compiled by TorchScript"))
            continue
        special = None if "forward" in module.__dict__ else find_special(module)
        module.__dict__["forward"] = ReducedForward(
            module,
            recompute=mode == "recompute",
            masks=masks[module],
            outermost=module is model,
            special=special,
        )
        known = describe(module, special is not None, masks[module])
        kind = type(module).__name__
        if known.keeps is not None:
            reduced.append(ReducedModule(path, kind, known.keeps))
        elif known.reason is not None:
            left.append(LeftModule(path, kind, known.reason))
    return MemoryReport(mode, tuple(reduced), tuple(left))


def restore_memory(model: nn.Module) -> None:
    """Take `reduce_memory` back: every module has the forward that it had before.

    Args:
        model: Changed in place; one that was not reduced stays as it is.
    """
    for _, module in _walk(model):
        reduced = module.__dict__.get("forward")
        if isinstance(reduced, ReducedForward):
            if reduced.before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = reduced.before


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    found: object = model.named_modules()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    yield from cast("Iterator[tuple[str, nn.Module]]", found)


def _runs_python(module: nn.Module) -> bool:
    """Whether a module has a forward of its own that Python runs."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    return type(module).forward is not nn.Module.forward or "forward" in module.__dict__


def _find_masks(model: nn.Module) -> dict[nn.Module, bool]:
    """Whether an activation in a module may keep a mask of its own.

    A trainable convolution or linear layer keeps its input, which mostly is an activation's output;
    plain torch's activation shares that, and a mask would come on top. So an activation goes by the
    smallest part of the model around it that has such layers: are any of them trained?
    """
    masks: dict[nn.Module, bool] = {}

    def visit(module: nn.Module, around: bool) -> None:
        layers = [m for m in module.modules() if isinstance(m, (_ConvNd, nn.Linear))]
        if layers:
            around = not any(layer.weight.requires_grad for layer in layers)
        masks.setdefault(module, around)
        for child in module.children():
            visit(child, around)

    visit(model, True)
    return masks
