import logging

import lightning.pytorch as pl
import pytest

from efftrain.callbacks import FiniteLoss, LearningRate, progress_bar
from efftrain.callbacks.progress import PlainProgress
from efftrain.errors import NumericError
from tests.callbacks.conftest import SleepyModule, loader


class NanAt(SleepyModule):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if batch_idx >= self.batch else loss


def test_learning_rates_are_logged_by_group(train):
    logger = train(LearningRate())
    assert logger.values("lr/head") == [0.1] * 3
    assert logger.values("lr/bias") == [0.5] * 3


@pytest.mark.parametrize(("batch", "every"), [(0, 50), (2, 50), (1, 1)])
def test_a_loss_that_is_not_finite_stops_the_run(train, batch, every):
    with pytest.raises(NumericError, match="train/loss is nan in epoch 0") as caught:
        train(FiniteLoss(every_n_steps=every), NanAt(batch))
    assert caught.value.exit_code == 5


def test_a_finite_loss_does_not(train):
    train(FiniteLoss(every_n_steps=1))


def test_without_a_terminal_each_epoch_is_one_line(train, caplog):
    assert isinstance(progress_bar(), PlainProgress)
    with caplog.at_level(logging.INFO, logger="efftrain.callbacks.progress"):
        pl.Trainer(
            accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
            enable_model_summary=False, callbacks=[progress_bar()],
        ).fit(SleepyModule(), loader(12, 4))  # fmt: skip
    lines = [r.message for r in caplog.records if r.name == "efftrain.callbacks.progress"]
    assert [line.split()[:2] for line in lines] == [["epoch", "1/2"], ["epoch", "2/2"]]


def test_a_long_epoch_says_how_far_it_is(caplog):
    with caplog.at_level(logging.INFO, logger="efftrain.callbacks.progress"):
        pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
            enable_model_summary=False, callbacks=[PlainProgress(every_s=0.0)],
        ).fit(SleepyModule(), loader(12, 4))  # fmt: skip
    lines = [r.message for r in caplog.records if r.name == "efftrain.callbacks.progress"]
    assert any("batch 2/3" in line for line in lines)
