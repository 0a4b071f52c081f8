"""What has to hold before a step: what trains, what the optimizers hold, in which mode norms are."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from efftrain.errors import ConfigError
from efftrain.peft import get_bn_stats
from efftrain.peft.bn_stats import find_tracking
from efftrain.peft.tree import join, own_buffers, walk


class Selected(Protocol):
    """What trains, as `efftrain.select` returns it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that train."""
        ...

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Role to names."""
        ...


@dataclass(frozen=True)
class Subject:
    """A LightningModule's tensors, under the names that its model gives them.

    Attributes:
        model: The part of it that the selection is about; all of it where there is none.
        trainable: Parameters that require a gradient.
        frozen: Those that do not.
        buffers: What its state dict holds beside them.
        selection: What should train; None where nobody said.
    """

    model: nn.Module
    trainable: dict[str, nn.Parameter]
    frozen: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    selection: Selected | None

    @classmethod
    def of(cls, module: nn.Module, selection: Selected | None) -> Subject:
        """Look a LightningModule over.

        Args:
            module: A tensor that has several names in it counts under the first.
            selection: What should train in it, or in one of its children.
        """
        path, model = _find_model(module, selection)
        parameters = {_short(name, path): p for name, p in module.named_parameters()}
        buffers = {
            _short(join(at, name), path): buffer
            for at, layer in walk(module)
            for name, buffer in own_buffers(layer, persistent=True).items()
        }
        return cls(
            model=model,
            trainable={name: p for name, p in parameters.items() if p.requires_grad},
            frozen={name: p for name, p in parameters.items() if not p.requires_grad},
            buffers=buffers,
            selection=selection,
        )

    def staying(self, may_move: Iterable[str], bn_stats: str) -> dict[str, Tensor]:
        """Frozen parameters and buffers that no step may change.

        Args:
            may_move: Patterns of others that may.
            bn_stats: The policy in force. Under `update` running statistics follow the data: of all
                batch norms where a selection was applied, which states the policy; else, in plain
                training, of those batch norms of which something trains.
        """
        moving: set[str] = set()
        for path, layer in find_tracking(self.model) if bn_stats == "update" else ():
            trains = any(p.requires_grad for p in layer.parameters(recurse=False))
            if self.selection is not None or trains:
                moving |= {f"{path}.{name}" for name, _ in layer.named_buffers(recurse=False)}
        tensors: dict[str, Tensor] = {**self.frozen, **self.buffers}
        return {
            name: one
            for name, one in tensors.items()
            if one.numel() and name not in moving and not _matches(name, may_move)
        }

    def groups(self) -> dict[str, list[str]]:
        """The trainable names in groups that should each move: by role, or vectors and matrices."""
        if self.selection is not None:
            found = {role: list(names) for role, names in self.selection.groups.items()}
        else:
            found = {"vectors": [], "matrices": []}
            for name, parameter in self.trainable.items():
                found["vectors" if parameter.ndim < 2 else "matrices"].append(name)
        kept = {
            role: [name for name in names if name in self.trainable]
            for role, names in found.items()
        }
        return {role: names for role, names in kept.items() if names}


def check_trainable(subject: Subject) -> None:
    """The parameters that require a gradient are those of the selection.

    Raises:
        ConfigError: Nothing trains, or a parameter is selected and frozen, or trains unselected.
    """
    if not subject.trainable:
        raise ConfigError(
            "nothing trains: no parameter requires a gradient. A freeze that turns scale and bias "
            "into buffers, as timm's does, cannot be undone with requires_grad; apply a selection"
        )
    if subject.selection is None:
        return
    chosen = set(subject.selection.names)
    own = dict(subject.model.named_parameters())
    for name in subject.selection.names:
        if name not in subject.trainable:
            what = "does not require a gradient" if name in own else "is not in the model"
            raise ConfigError(
                f"{name} is selected and {what}; apply the selection last, after whatever freezes "
                "or replaces layers"
            )
    for name in own:
        if name in subject.trainable and name not in chosen:
            raise ConfigError(
                f"{name} requires a gradient and is not selected; apply the selection last, or add "
                f"it with peft.also=[{name}]"
            )


def check_optimizers(subject: Subject, optimizers: Sequence[Optimizer]) -> None:
    """Together the optimizers hold each trainable parameter once, and nothing else.

    Raises:
        ConfigError: A parameter is missing, frozen or held twice; names it.
    """
    held = Counter(
        parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    names = {p: name for name, p in {**subject.frozen, **subject.trainable}.items()}
    build = "build it from the parameters that require a gradient, after freezing"
    for parameter, times in held.items():
        name = names.get(parameter)
        if name is None:
            kind = type(subject.model).__name__
            raise ConfigError(
                f"the optimizer holds a tensor {list(parameter.shape)} that is no parameter of "
                f"{kind}, perhaps of another copy; {build}"
            )
        if name in subject.frozen:
            raise ConfigError(f"the optimizer holds {name}, which is frozen; {build}")
        if times > 1:
            raise ConfigError(f"the optimizer holds {name} {times} times; {build}")
    for name, parameter in subject.trainable.items():
        if parameter not in held:
            raise ConfigError(f"{name} requires a gradient and no optimizer holds it; {build}")


def check_modes(subject: Subject, bn_stats: str) -> None:
    """Batch norms are in the mode that their policy prescribes, and frozen ones hold still.

    Args:
        subject: What is trained.
        bn_stats: The policy when training started.

    Raises:
        ConfigError: One is not; names it.
    """
    found = get_bn_stats(subject.model)
    if found != bn_stats:
        raise ConfigError(
            f"peft.bn_stats was {bn_stats} when training started and is {found} now; something "
            "called set_bn_stats in between"
        )
    for path, layer in find_tracking(subject.model) if bn_stats == "update" else ():
        trains = any(p.requires_grad for p in layer.parameters(recurse=False))
        if layer.training and not trains and subject.selection is None:
            raise ConfigError(
                f"{path} ({type(layer).__name__}) is frozen and in training mode: it normalises by "
                'the batch; hold it with efftrain.peft.set_bn_stats(model, "running")'
            )


def warnings_of(subject: Subject, optimizers: Sequence[Optimizer], bn_stats: str) -> list[str]:
    """What may be meant, and mostly is not, a line each."""
    found: list[str] = []
    norms = set(subject.selection.groups.get("norm", ())) if subject.selection else set()
    ids = {id(subject.trainable[name]): name for name in sorted(norms & subject.trainable.keys())}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            decayed = [ids[id(p)] for p in group["params"] if id(p) in ids]
            if decayed and group.get("weight_decay", 0.0):
                found.append(
                    f"weight_decay={group['weight_decay']} pulls {decayed[0]} and {len(decayed) - 1} "
                    "more norm parameters towards 0, whatever they learn; use peft.param_groups"
                )
    for path, layer in find_tracking(subject.model) if bn_stats == "update" else ():
        variance: Tensor = layer.get_buffer("running_var")
        if layer.training and variance.dtype in (torch.bfloat16, torch.float16):
            found.append(
                f"{path}.running_var is {variance.dtype}, in which small steps are rounded away; "
                "keep running statistics in float32"
            )
            break
    return found


def _find_model(module: nn.Module, selection: Selected | None) -> tuple[str, nn.Module]:
    """The part of a LightningModule in which all selected names are, `model` first."""
    model = getattr(module, "model", None)
    candidates: list[tuple[str, nn.Module]] = [("", module), *module.named_children()]
    if isinstance(model, nn.Module):
        candidates.insert(0, ("model", model))
    if selection is None:
        return "", module
    wanted = set(selection.names)
    for path, one in candidates:
        if wanted <= {name for name, _ in one.named_parameters()}:
            return path, one
    return candidates[0]


def _short(name: str, path: str) -> str:
    return name.removeprefix(f"{path}.") if path else name


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(name == one or fnmatch.fnmatch(name, one) for one in patterns)
