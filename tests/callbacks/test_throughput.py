import logging

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from efftrain.callbacks import Throughput
from efftrain.callbacks.throughput import KnowsFlops
from efftrain.measure.peak_flops import find_peak
from tests.callbacks.conftest import ListLogger, SleepyModule, SleepyValidation, loader
from tests.callbacks.sleepy_parts import SleepyParts, agree, sleepy_loader


def test_the_rate_is_samples_over_time(train):
    meter = Throughput(warmup_steps=0)
    logger = train(meter, SleepyModule(0.05), loader(40, 4))
    rates = logger.values("throughput/samples_per_s")
    assert 0.9 * 4 / 0.05 < max(rates) <= 4 / 0.05
    assert meter.samples == 40


def test_a_short_last_batch_counts_as_what_it_is(train):
    meter = Throughput(warmup_steps=0)
    train(meter, batches=loader(10, 4))
    assert meter.samples == 4 + 4 + 2


def test_waiting_for_data_lowers_the_rate(train):
    meter = Throughput(warmup_steps=2)
    train(meter, SleepyModule(0.02), loader(40, 4, wait_s=0.06))
    assert meter.samples_per_s == pytest.approx(4 / 0.08, rel=0.25)


def test_validation_does_not_lower_the_rate(train):
    meter = Throughput(warmup_steps=0)
    module = SleepyValidation(0.05, validation_s=0.5)
    train(meter, module, loader(8, 4), loader(4, 4), val_check_interval=1, max_epochs=2)
    assert meter.samples == 16
    assert meter.samples_per_s == pytest.approx(4 / 0.05, rel=0.25)


def test_nothing_measured_is_none():
    assert Throughput().samples_per_s is None


def test_what_is_left_after_the_last_window_belongs_to_the_run(train):
    meter = Throughput(warmup_steps=1)
    logger = train(meter, batches=loader(40, 4), log_every_n_steps=4)
    assert logger.steps("throughput/samples_per_s") == [4, 8]
    assert meter.samples == 9 * 4


def test_batches_that_nobody_can_count_have_no_rate(train):
    meter = Throughput(warmup_steps=0, count_samples=lambda batch: None)
    assert train(meter).rows == []
    assert meter.samples_per_s is None


def test_who_knows_better_counts_the_samples(train):
    meter = Throughput(warmup_steps=0, count_samples=lambda batch: 2 * len(batch[0]))
    train(meter, batches=loader(10, 4))
    assert meter.samples == 20


class Reader(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["input_ids"].float().mean().reshape(1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def sentences(lengths, batch_size):
    """Batches of sentences, each padded to the longest of its batch."""

    def pad(some):
        longest = max(some)
        ids = torch.ones(len(some), longest, dtype=torch.long)
        mask = torch.tensor([[1] * length + [0] * (longest - length) for length in some])
        return {"input_ids": ids, "attention_mask": mask}

    return DataLoader(lengths, batch_size, collate_fn=pad)


def test_tokens_are_counted_without_padding(train):
    meter = Throughput(warmup_steps=0)
    logger = train(meter, Reader(), sentences([3, 9, 5, 5, 7], 2))
    assert meter.tokens == 3 + 9 + 5 + 5 + 7
    assert meter.samples == 5
    rates = zip(
        logger.values("throughput/tokens_per_s"), logger.values("throughput/samples_per_s"), strict=True
    )  # fmt: skip
    assert [tokens / samples for tokens, samples in rates] == pytest.approx([12 / 2, 10 / 2, 7 / 1])


def test_images_have_no_tokens(train):
    assert train(Throughput(warmup_steps=0)).values("throughput/tokens_per_s") == []


def test_flops_of_the_samples_over_the_time_of_their_steps():
    """40 MFLOP for the 4 samples of a step, however long their data take."""
    meter = Throughput(warmup_steps=1, flops_per_sample=10e6, peak_flops_per_s=4e9)
    module = SleepyParts({"data": 0.05, "h2d": 0.05, "forward": 0.05, "backward": 0.05})
    logger = run([meter], module, sleepy_loader(module, 6))
    achieved = logger.values("throughput/achieved_gflops")
    slept = zip(module.naps.steps_ms("forward"), module.naps.steps_ms("backward"), strict=True)
    steps_ms = [forward + backward for forward, backward in slept]
    assert agree([1000 * 0.040 / gflops for gflops in achieved], steps_ms[1:])
    shares = [100 * gflops / 4 for gflops in achieved]
    assert logger.values("throughput/mfu_pct") == pytest.approx(shares)


class Cost(pl.Callback):
    flops_per_sample = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.flops_per_sample = 10e6 if batch_idx >= 2 else None


def run(callbacks, module=None, batches=None, **options):
    logger = ListLogger()
    pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=callbacks, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=1, log_every_n_steps=1,
        **options,
    ).fit(module or SleepyModule(), batches or loader(20, 4))  # fmt: skip
    return logger


def test_flops_are_another_callbacks_once_it_knows_them():
    assert isinstance(Cost(), KnowsFlops)
    logger = run([Throughput(warmup_steps=0), Cost()])
    assert logger.steps("throughput/samples_per_s") == [1, 2, 3, 4, 5]
    assert logger.steps("throughput/achieved_gflops") == [3, 4, 5]
    own = run([Throughput(warmup_steps=0, flops_per_sample=1.0), Cost()])
    assert own.steps("throughput/achieved_gflops") == [1, 2, 3, 4, 5]


def test_an_unknown_device_has_no_mfu_and_is_told_so_once(caplog):
    with caplog.at_level(logging.INFO, logger="efftrain.callbacks.throughput"):
        logger = run([Throughput(warmup_steps=0, flops_per_sample=1e6)])
    assert logger.values("throughput/mfu_pct") == []
    (line,) = [r.message for r in caplog.records if r.name == "efftrain.callbacks.throughput"]
    assert "no peak is known of" in line
    assert "32-true" in line
    assert "peak_flops_per_s" in line


@pytest.mark.parametrize(
    ("precision", "tflops"), [("32-true", 91.6), ("bf16-mixed", 362.05), ("64-true", None)]
)
def test_the_peak_is_that_of_the_device_and_the_arithmetic(monkeypatch, precision, tflops):
    monkeypatch.setattr("efftrain.callbacks.throughput.device_name", lambda _: "NVIDIA L40S")
    logger = run([Throughput(0, flops_per_sample=1e9)], precision=precision)
    achieved = logger.values("throughput/achieved_gflops")
    expected = [100 * 1e9 * gflops / (tflops * 1e12) for gflops in achieved] if tflops else []
    assert logger.values("throughput/mfu_pct") == pytest.approx(expected)


def test_what_mfu_is_of_is_said_once_in_a_card(monkeypatch):
    cards = []
    monkeypatch.setattr("efftrain.callbacks.throughput.device_name", lambda _: "NVIDIA L40S")
    monkeypatch.setattr("efftrain.callbacks.throughput.log_text", lambda *card: cards.append(card))
    run([Throughput(0, flops_per_sample=1e9)], precision="bf16-mixed")
    ((_, title, text),) = cards
    assert title == "throughput"
    assert "362.05 TFLOP/s: NVIDIA L40S, dense bfloat16 (NVIDIA L40S data sheet)" in text


class Convolves(SleepyModule):
    def __init__(self):
        super().__init__()
        self.never_used = torch.nn.Conv2d(1, 1, 1)


def test_a_network_with_convolutions_may_round_to_tf32(monkeypatch):
    monkeypatch.setattr("efftrain.callbacks.throughput.device_name", lambda _: "NVIDIA L40S")
    logger = run([Throughput(0, flops_per_sample=1e9)], Convolves())
    (pct, *_), (gflops, *_) = (
        logger.values(f"throughput/{name}") for name in ("mfu_pct", "achieved_gflops")
    )
    assert pct == pytest.approx(
        100 * gflops * 1e9 / (find_peak("NVIDIA L40S").tflops["tf32"] * 1e12)
    )
