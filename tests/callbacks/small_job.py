"""A small convolutional net and its training, with costs that can be counted by hand."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from efftrain.jobs.expected_warnings import expected_warnings
from efftrain.peft import apply, select
from efftrain.task import Task
from tests.callbacks.conftest import ListLogger

SIDE, CLASSES = 8, 3


class Net(nn.Module):
    """Per sample: 8 x 8 x 4 outputs of 2 x 9 products, and 4 x 3 in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm, self.act, self.fc = nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.norm(self.conv(x))).mean((2, 3)))


MACS = SIDE * SIDE * 4 * 2 * 9 + 4 * CLASSES
PARAMETERS = {"norm": 8, "head": 4 * CLASSES + CLASSES, "other": 4 * 2 * 9}


class Plain(pl.LightningModule):
    """A LightningModule as people write it, which nothing is known about."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model or Net()
        self.calls = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.calls += 1
        images, labels = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/acc", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def make_task(method: str = "full", model: nn.Module | None = None) -> Task:
    model = model or Net()
    selection = select(model, method)
    apply(model, selection, bn_stats="running")
    return Task(
        model,
        selection,
        nn.CrossEntropyLoss(),
        {"acc": MulticlassAccuracy(CLASSES)},
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0),
    )


def batches(samples: int = 24, batch_size: int = 4) -> DataLoader:
    images = torch.randn(samples, 2, SIDE, SIDE)
    return DataLoader(
        TensorDataset(images, torch.randint(0, CLASSES, (samples,))), batch_size=batch_size
    )


def fit(module, callbacks, data=None, validation=None, logger=None, **options):
    """Returns the logger, and the trainer."""
    logger = logger or ListLogger()
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=callbacks, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        **{"max_epochs": 1, "log_every_n_steps": 1, **options},
    )  # fmt: skip
    with expected_warnings():
        trainer.fit(module, data or batches(), validation or batches(samples=4))
    return logger, trainer
