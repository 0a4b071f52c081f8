"""From a job's config to the step that it would run: the model with what trains, a made batch, the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from efftrain.causal_lm import CausalLMTask
from efftrain.config.build import build
from efftrain.data.first_batch import REFUSALS, explain_loss
from efftrain.errors import ConfigError, MachineError
from efftrain.jobs.assemble import make_task
from efftrain.jobs.memory import reduce
from efftrain.jobs.selection import choose
from efftrain.models.sample_batch import sample_batch
from efftrain.peft import Selection
from efftrain.task import Task, scores_of

AUTOCAST: dict[str, torch.dtype | None] = {
    "None": None,
    "32": None,
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""What Lightning's `trainer.precision` means for a step; others change the model itself."""


@dataclass(frozen=True)
class Rehearsed:
    """A step that can be run on shapes.

    Attributes:
        model: With the selection applied, in the modes that it trains in.
        selection: What trains.
        batch: What the model is called with.
        loss_fn: From the model's output to a scalar; None for the sum of the outputs.
        optimizer: Makes the optimizer of the job.
        autocast: Low precision of the step; None where the config asks for none.
    """

    model: nn.Module
    selection: Selection
    batch: Any
    loss_fn: Callable[[Any], Tensor] | None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    autocast: torch.dtype | None


def rehearsed(
    config: DictConfig, method: str | None = None, memory: str | None = None
) -> Rehearsed:
    """Build what a job would train, without its data.

    Args:
        config: Checked against `ProfileConfig`.
        method: Another PEFT method than the config's.
        memory: Another memory mode than the config's.

    Raises:
        ConfigError: The model cannot be built on the meta device, or the batch does not suit it.
    """
    peft = config.peft.copy()
    if method is not None:
        peft.method = method
    mode = config.memory.copy()
    if memory is not None:
        mode.mode = memory
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = _build_model(config)
    batch = sample_batch(
        model,
        samples=config.batch_size,
        input_size=config.input_size,
        seq_len=config.seq_len,
        device=config.device,
    )
    selection = choose(model, peft, lambda m: m(**batch) if isinstance(batch, dict) else m(batch))
    reduce(model, mode)
    return Rehearsed(
        model=model,
        selection=selection,
        batch=batch,
        loss_fn=_task_loss(make_task(config, model, selection)) if config.loss == "task" else None,
        optimizer=build(config.optim, "optim"),
        autocast=_autocast(config.trainer.get("precision")),
    )


def _build_model(config: DictConfig) -> nn.Module:
    if config.device not in ("cpu", "meta"):
        if not getattr(torch, config.device).is_available():
            raise MachineError(f"device={config.device}: there is none; leave device=cpu")
        return build(config.model, "model").to(config.device)
    if config.device == "cpu":
        return build(config.model, "model")
    if config.model.get("pretrained"):
        raise ConfigError(
            "device=meta has no weights to load: set model.pretrained=false, and name the "
            "architecture by model.name"
        )
    with torch.device("meta"):
        return build(config.model, "model")


def _autocast(precision: Any) -> torch.dtype | None:
    if str(precision) not in AUTOCAST:
        raise ConfigError(
            f"trainer.precision={precision} cannot be predicted; it can be "
            f"{', '.join(name for name in AUTOCAST if name != 'None')}"
        )
    return AUTOCAST[str(precision)]


def _task_loss(task: Task) -> Callable[[Any], Tensor]:
    """The task's loss, on labels of 0: a class for each sample (or pixel), or the next token."""

    def loss_fn(output: Any) -> Tensor:
        scores = scores_of(output)
        is_causal = isinstance(task, CausalLMTask)
        shape = scores.shape[:2] if is_causal else (*scores.shape[:1], *scores.shape[2:])
        labels = scores.new_zeros(shape, dtype=torch.long)
        try:
            return task.loss(*task.align(scores, labels))
        except REFUSALS as error:
            raise explain_loss(task.loss, scores, labels, error) from error

    return loss_fn
