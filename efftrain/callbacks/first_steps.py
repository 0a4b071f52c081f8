"""What has to hold in a step: who gets a gradient, who moves, and who does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from efftrain.callbacks.preflight import Subject
from efftrain.callbacks.witness import Sample, Witness, local, read_together
from efftrain.errors import ConfigError, NumericError
from efftrain.peft.bn_stats import find_tracking

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class FirstSteps:
    """Watches the tensors and layers of a model through some optimizer steps.

    Args:
        module: The LightningModule.
        subject: Its tensors.
        bn_stats: The policy in force.
        may_move: Patterns of tensors that may move although nothing trains them.
        is_training: Whether the forward pass that is going on is one of training.

    Attributes:
        steps: Optimizer steps so far.
        in_backward: Whether backward is going on: what runs then, checkpointing runs again.
        still: What must not move.
    """

    def __init__(
        self,
        module: nn.Module,
        subject: Subject,
        bn_stats: str,
        may_move: Iterable[str],
        is_training: Callable[[], bool],
    ) -> None:
        """Remember all values, and listen which layers run."""
        self.steps = 0
        self.in_backward = False
        self.still = Witness(subject.staying(may_move, bn_stats))
        self._subject = subject
        self._sample = Sample(subject.trainable)
        self._is_training = is_training
        self._tracking = {id(layer): path for path, layer in find_tracking(subject.model)}
        self._owners: dict[str, set[int]] = {}
        self._ran: set[int] = set()
        self._ran_twice = ""
        self._fed: set[str] = set()
        self._pulled: set[str] = set()
        self._hooks: list[Any] = []
        self._listen(module)

    @property
    def unused(self) -> tuple[str, ...]:
        """Trainable parameters that have never got a gradient."""
        return tuple(name for name in self._subject.trainable if name not in self._fed)

    def stop(self) -> None:
        """Take the hooks off; nothing of the watch is left on the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def look_at_gradients(self, optimizer: Optimizer, *, skips_infinite: bool) -> None:
        """Each trainable parameter that the optimizer holds, and whose layer ran, has a gradient.

        Args:
            optimizer: The one that is about to step.
            skips_infinite: Whether a scaler leaves out steps with infinite gradients, so that these
                are no fault.

        Raises:
            ConfigError: One has none.
            NumericError: One is not finite.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        names: list[str] = []
        looks: list[Tensor] = []
        for name, parameter in self._subject.trainable.items():
            gradient = parameter.grad
            if id(parameter) not in held:
                continue
            if gradient is None:
                self._explain_missing(name)
                continue
            values = local(gradient.coalesce().values() if gradient.is_sparse else gradient)
            names.append(name)
            looks.append((~values.isfinite()).sum() + _ONE_PULLS * (values != 0).any())
        self._fed.update(names)
        for name, look in zip(names, read_together(looks), strict=True):
            if look >= _ONE_PULLS:
                self._pulled.add(name)
            if look % _ONE_PULLS and not skips_infinite:
                raise NumericError(
                    f"the gradient of {name} is not finite in step {self.steps + 1}; lower optim.lr "
                    "or set trainer.gradient_clip_val=1"
                )

    def look_at_what_stays(self) -> None:
        """After a step: nothing moved that no selection names, and no layer was updated twice.

        Raises:
            ConfigError: Something was.
        """
        self.steps += 1
        if self._ran_twice:
            raise ConfigError(
                f"{self._ran_twice} updates its running statistics a second time when checkpointing "
                "runs it again; set peft.bn_stats=running"
            )
        moved = self.still.moved()
        if not moved:
            return
        name, others = moved[0], f"{len(moved)} tensors did"
        if name in self._subject.frozen:
            raise ConfigError(
                f"{name} is frozen and moved in step {self.steps} ({others}): the optimizer holds it, "
                "or something else writes to it; if that is meant, name it in "
                "callbacks.doctor.may_move"
            )
        is_statistic = name.rpartition(".")[2] in _STATISTICS
        raise ConfigError(
            f"{name} is a buffer that nothing selects and moved in step {self.steps} ({others}); "
            + (
                "hold it with peft.bn_stats=running, "
                if is_statistic
                else "no delta would hold it; "
            )
            + "or name it in callbacks.doctor.may_move"
        )

    def count_changed(self) -> dict[str, tuple[int, int, int]]:
        """For each group: elements of the sample that changed, all of them, tensors with gradients.

        A group is a role of the selection. Of several processes each counts its own shards.
        """
        changed = self._sample.changed()
        return {
            role: (
                sum(changed[name][0] for name in names),
                sum(changed[name][1] for name in names),
                sum(name in self._pulled for name in names),
            )
            for role, names in self._subject.groups().items()
        }

    def explain_stuck(self, role: str, optimizers: Sequence[Optimizer]) -> NumericError:
        """Why a group that got gradients is as it was."""
        names = self._subject.groups()[role]
        rates = [float(group["lr"]) for one in optimizers for group in one.param_groups]
        dtype = str(self._subject.trainable[names[0]].dtype).removeprefix("torch.")
        return NumericError(
            f"nothing changed in {self.steps} steps in {len(names)} trainable tensors, first "
            f"{names[0]}: in {dtype} a step of lr={max(rates):g} is rounded away; raise optim.lr, or "
            "train in float32"
        )

    def _explain_missing(self, name: str) -> None:
        if name in self._fed or self._ran.isdisjoint(self._owners[name]):
            return
        raise ConfigError(
            f"{name} got no gradient in step {self.steps + 1} although its layer ran: something cuts "
            "the graph, such as detach(), no_grad() or checkpointing with use_reentrant=True; use "
            "use_reentrant=False"
        )

    def _listen(self, module: nn.Module) -> None:
        names = {id(parameter): name for name, parameter in self._subject.trainable.items()}
        for layer in module.modules():
            own = [names[id(p)] for p in layer.parameters(recurse=False) if id(p) in names]
            for name in own:
                self._owners.setdefault(name, set()).add(id(layer))
            if own or id(layer) in self._tracking:
                self._hooks.append(layer.register_forward_pre_hook(self._note_run))

    def _note_run(self, layer: nn.Module, _: object) -> None:
        if not self._is_training():
            return
        self._ran.add(id(layer))
        updates = layer.training and bool(getattr(layer, "track_running_stats", True))
        if self.in_backward and updates and id(layer) in self._tracking:
            self._ran_twice = f"{self._tracking[id(layer)]} ({type(layer).__name__})"


_ONE_PULLS = 1 << 40  # above any count of elements that are not finite: two answers in one number


def is_warming_up(optimizers: Iterable[Optimizer]) -> bool:
    """Whether a schedule still keeps every rate below half of what it was built with."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return all(group["lr"] < 0.5 * group.get("initial_lr", 0.0) for group in groups)
