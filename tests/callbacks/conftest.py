"""A tiny Trainer run with sleeps, for callbacks that time things."""

import time

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, TensorDataset


class ListLogger(Logger):
    """Keeps what was logged."""

    def __init__(self):
        super().__init__()
        self.rows = []

    @property
    def name(self):
        return "list"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, params, *args, **kwargs):
        self.rows.append((None, dict(params)))

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def values(self, tag):
        return [metrics[tag] for _, metrics in self.rows if tag in metrics]

    def steps(self, tag):
        return [step for step, metrics in self.rows if tag in metrics]


class SleepyModule(pl.LightningModule):
    """A linear model whose step takes a given time."""

    def __init__(self, step_s=0.0):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.step_s = step_s

    def training_step(self, batch, batch_idx):
        time.sleep(self.step_s)
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(
            [{"params": [self.layer.weight], "name": "head"},
             {"params": [self.layer.bias], "name": "bias", "lr": 0.5}],
            lr=0.1,
        )  # fmt: skip


class SleepyValidation(SleepyModule):
    """One that also takes its time to validate."""

    def __init__(self, step_s, validation_s):
        super().__init__(step_s)
        self.validation_s = validation_s

    def validation_step(self, batch, batch_idx):
        time.sleep(self.validation_s)


def loader(samples, batch_size, wait_s=0.0):
    def collate(items):
        time.sleep(wait_s)
        return (torch.stack([item[0] for item in items]),)

    return DataLoader(TensorDataset(torch.zeros(samples, 3)), batch_size, collate_fn=collate)


@pytest.fixture
def train():
    """Fit a module with a callback; returns the logger."""

    def run(callback, module=None, batches=None, validation=None, **options):
        logger = ListLogger()
        trainer = pl.Trainer(
            accelerator="cpu", logger=logger, callbacks=[callback], enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            **{"max_epochs": 1, "log_every_n_steps": 1, **options},
        )  # fmt: skip
        trainer.fit(module or SleepyModule(), batches or loader(12, 4), validation)
        return logger

    return run
