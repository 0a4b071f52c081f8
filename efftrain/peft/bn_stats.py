"""One stated policy for the running statistics of every batch norm, trained or not.

`running`: normalise by the stored statistics, which never move. The default for fine-tuning: what
trains is what is served, samples do not depend on each other, and the layer is cheaper.
`batch`: normalise by the batch while training; the stored statistics never move.
`update`: plain torch: normalise by the batch while training, and let the statistics follow.
`recalibrate`: as `running`, on statistics that `recalibrate` has measured on the new data before.

`model.train()` undoes a plain `.eval()` on a batch norm (pytorch #66073), so the policy sits on the
instance: its `train` is replaced by an object that lets torch do its work and then puts right what
the policy says. Types, parameter names and state-dict keys stay; `update` takes everything back.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.instancenorm import (
    _InstanceNorm,  # pyright: ignore[reportPrivateUsage]  # the base of every instance norm
)

from efftrain.errors import ConfigError
from efftrain.peft.patterns import did_you_mean
from efftrain.peft.tree import own_buffers, walk

POLICIES = ("running", "batch", "update", "recalibrate")

STILL = ("running", "batch")
"""Policies under which the stored statistics never move."""


class HeldMode:
    """Stands in for the `train` method of one layer, so that the policy survives `.train()`.

    It is part of the layer's instance state: it is copied, pickled and sent to workers with it.

    Args:
        layer: The layer whose statistics are held.
        policy: One of `running`, `recalibrate` or `batch`.
    """

    def __init__(self, layer: nn.Module, policy: str) -> None:
        """Remember what to put back when the policy is lifted."""
        self.layer = layer
        self.policy = policy
        self.switch = "momentum" if isinstance(layer, _InstanceNorm) else "track_running_stats"
        self.before: object = getattr(layer, self.switch, None)

    def __call__(self, mode: bool = True) -> nn.Module:
        """Set the mode of the layer and of what lies in it, within the policy."""
        layer = self.layer
        type(layer).train(layer, mode)
        if self.policy != "batch":
            _set(layer, "training", False)
        elif isinstance(layer, _InstanceNorm):
            # it writes its statistics even where it does not track; a step of 0 leaves them
            _set(layer, "momentum", 0.0)
        else:
            # in training: by the batch; in eval: as stored
            _set(layer, "track_running_stats", False)
        return layer

    def lift(self) -> None:
        """Give the layer its own `train` back, and the mode that torch would have it in."""
        mode = self.layer.training
        self.layer.__dict__.pop("train", None)
        if self.policy == "batch":
            _set(self.layer, self.switch, self.before)
        self.layer.train(mode)


def _set(layer: nn.Module, name: str, value: object) -> None:
    """Set a plain attribute, past `nn.Module.__setattr__`, which is for parameters and modules."""
    object.__setattr__(layer, name, value)


def moves_in_training(module: nn.Module) -> bool:
    """Whether a layer keeps running statistics that plain training would move.

    A frozen batch norm stores a variance, too, and has no momentum to move it by.
    """
    return "running_var" in own_buffers(module) and hasattr(module, "momentum")


def find_tracking(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer whose running statistics training would move, by path."""
    for path, module in walk(model):
        if moves_in_training(module):
            yield path, module


def set_bn_stats(model: nn.Module, policy: str = "running") -> tuple[str, ...]:
    """Hold, or let go of, the running statistics of all batch norms of a model.

    Args:
        model: Changed in place: the mode of its batch norms, nothing that others see by name. Do it
            after `SyncBatchNorm.convert_sync_batchnorm`, which builds new layers.
        policy: One of `POLICIES`.

    Returns:
        Paths of the layers that the policy applies to.

    Raises:
        ConfigError: An unknown policy, or `batch` for a layer that cannot do it.
    """
    if policy not in POLICIES:
        raise ConfigError(
            f"peft.bn_stats={policy} is not a policy{did_you_mean(policy, POLICIES)}; "
            f"allowed are {', '.join(POLICIES)}"
        )
    layers = list(find_tracking(model))
    for path, layer in layers:
        if policy == "batch" and not hasattr(layer, "track_running_stats"):
            raise ConfigError(
                f"peft.bn_stats=batch: {path} ({type(layer).__name__}) has no switch for tracking; "
                "allowed for it are running, update, recalibrate"
            )
    for _, layer in layers:
        held = layer.__dict__.get("train")
        if isinstance(held, HeldMode):
            held.lift()
        if policy == "update":
            if held is not None:
                layer.train(model.training)
            continue
        mode = model.training
        layer.__dict__["train"] = HeldMode(layer, policy)
        layer.train(mode)
    return tuple(path for path, _ in layers)


def get_bn_stats(model: nn.Module) -> str:
    """The policy in force: the one that all batch norms share, `update` where none was set.

    Raises:
        ConfigError: The batch norms follow different policies, or one left the mode that its
            policy prescribes; the message names the layer.
    """
    policies: dict[str, str] = {}
    for path, layer in find_tracking(model):
        held = layer.__dict__.get("train")
        policy = held.policy if isinstance(held, HeldMode) else "update"
        policies.setdefault(policy, path)
        if policy in ("running", "recalibrate") and layer.training:
            raise ConfigError(
                f"peft.bn_stats={policy}: {path} ({type(layer).__name__}) is in training mode; "
                "something set its `training` directly, call set_bn_stats again"
            )
    if len(policies) > 1:
        listed = ", ".join(f"{policy} at {path}" for policy, path in policies.items())
        raise ConfigError(f"peft.bn_stats: the batch norms disagree ({listed}); set it again")
    return next(iter(policies), "update")
