"""What a LightningModule trains: its network, who of it trains, and whether that has changed."""

from __future__ import annotations

from typing import TypeVar, cast

import lightning.pytorch as pl
from torch import nn

from efftrain.peft import Selection
from efftrain.peft.anatomy import Anatomy

C = TypeVar("C", bound=pl.Callback)


def find_callback(trainer: pl.Trainer, kind: type[C]) -> C | None:
    """The first of the Trainer's callbacks of a kind."""
    callbacks: list[pl.Callback] = vars(trainer)["callbacks"]  # set without being declared
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def network_of(module: nn.Module) -> nn.Module:
    """The network of a LightningModule: its `model` where all parameters lie in that, else itself.

    Names of parameters and modules are then those that the network itself has. What `torch.compile`
    has wrapped is unwrapped.
    """
    found = getattr(module, "model", None)
    network = cast(nn.Module, getattr(found, "_orig_mod", found))
    if not isinstance(network, nn.Module):
        return module
    own = {id(parameter) for parameter in network.parameters()}
    return network if all(id(p) in own for p in module.parameters()) else module


def selection_of(module: nn.Module) -> Selection | None:
    """What was selected to train; None where the LightningModule does not say."""
    selection = getattr(module, "selection", None)
    return selection if isinstance(selection, Selection) else None


def trainable_by_role(module: nn.Module) -> dict[str, int]:
    """Elements that train by role (norm, head, bias, other); roles of which none does are left out.

    Args:
        module: A LightningModule. What its selection does not name is looked up in the network.
    """
    network, selection = network_of(module), selection_of(module)
    groups = selection.groups if selection is not None else {}
    roles = {name: role for role, names in groups.items() for name in names}
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not roles.keys() >= trainable.keys():
        anatomy = Anatomy.of(network)
        roles |= {name: anatomy.role(name) for name in trainable.keys() - roles.keys()}
    found: dict[str, int] = {}
    for name, parameter in trainable.items():
        found[roles[name]] = found.get(roles[name], 0) + parameter.numel()
    return found


class TrainableWatch:
    """Notices that other parameters train than before.

    Args:
        module: Whose parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        """Remember who trains now."""
        self._parameters = list(module.parameters())
        self._known = self._look()

    def has_changed(self) -> bool:
        """Whether somebody else trains than when this was asked last."""
        before, self._known = self._known, self._look()
        return self._known != before

    def _look(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self._parameters]
