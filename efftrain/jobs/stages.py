"""The stages of a run that a signal can stop: evaluating and fitting."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from efftrain.errors import INTERRUPTED, TERMINATED
from efftrain.jobs.assemble import Parts
from efftrain.peft import recalibrate
from efftrain.run import Status
from efftrain.task import split_batch

EXIT_CODES: dict[Status, int] = {
    "finished": 0,
    "interrupted": INTERRUPTED,
    "terminated": TERMINATED,
}


def fit(trainer: pl.Trainer, parts: Parts) -> Status:
    """Train until the end, or until a signal."""
    return _until_signal(trainer, lambda: trainer.fit(parts.task, datamodule=parts.data))


def evaluate(trainer: pl.Trainer, parts: Parts) -> tuple[Status, dict[str, float]]:
    """Metrics on the held-out split, as plain numbers.

    Returns:
        Where a signal stopped the evaluation or there is nothing held out, what was measured last.
    """
    results: list[Any] = []
    status = _until_signal(
        trainer,
        lambda: results.extend(trainer.validate(parts.task, datamodule=parts.data, verbose=False)),
    )
    if status != "finished" or not results:
        return status, last_metrics(trainer)
    return status, {name: float(value) for name, value in results[0].items()}


def last_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Held-out metrics of the last validation that came to its end."""
    known = trainer.callback_metrics
    return {name: float(value) for name, value in known.items() if name.startswith("val/")}


def measure_statistics(trainer: pl.Trainer, parts: Parts, batches: int) -> None:
    """Set the BatchNorms' statistics to those of training batches, where the Trainer computes.

    Args:
        trainer: Says on which device.
        parts: Model and data.
        batches: How many; they are kept in memory, since each layer needs a pass of its own.
    """
    device = trainer.strategy.root_device
    parts.data.setup("fit")
    loader = iter(parts.data.train_dataloader())
    inputs = [split_batch(batch)[0] for _, batch in zip(range(batches), loader, strict=False)]
    parts.model.to(device)

    def forward(model: nn.Module, batch: Any) -> Any:
        moved = move_data_to_device(batch, device)
        return model(**moved) if isinstance(moved, dict) else model(moved)

    recalibrate(parts.model, inputs, forward)


def _until_signal(trainer: pl.Trainer, run: Callable[[], object]) -> Status:
    """Run a stage, and tell a signal from a failure.

    Lightning turns both signals into `SystemExit`: SIGINT with code 1, SIGTERM with code 0.
    """
    try:
        run()
    except SystemExit:
        if trainer.received_sigterm:
            return "terminated"
        if trainer.interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has ignored it
            return "interrupted"
        raise
    return "finished"
