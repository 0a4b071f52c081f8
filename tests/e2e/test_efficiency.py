"""A short run of the command leaves event files that TensorBoard's own reader finds right.

Each event has the wall clock at which it was written, which no timer of a callback has anything to do
with: between two windows that no validation lies between, it says how long their steps took.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from efftrain.measure.energy_meter import find_counters
from efftrain.measure.peak_memory import find_peak_meter
from efftrain.models.digits import digits_mobilenetv2
from efftrain.tags import TAGS, find_tag

pytestmark = pytest.mark.slow  # all of them wait for one run of some 15 s

BATCH, EVERY, EPOCHS = 32, 5, 2
STEPS_OF_EPOCH = math.ceil(1347 / BATCH)
NORMS = 14_080
IMAGES = {"memory/kept_by_layer", "time/parts", "predicted/layers", "predicted/memory"}
CARDS = {"config", "summary", "efficiency", "activation_memory"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the default job, in a process of its own."""
    folder = tmp_path_factory.mktemp("efficiency")
    executable = Path(sys.executable).with_name("efftrain")
    done = subprocess.run(
        [str(executable), "train", "hydra.run.dir=run", f"trainer.max_epochs={EPOCHS}"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "EFFTRAIN_CACHE": str(folder / "empty")},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def values(events: EventAccumulator, tag: str) -> list[float]:
    return [event.value for event in events.Scalars(tag)]


def test_every_figure_that_applies_is_there_and_no_other(events: EventAccumulator):
    tags = events.Tags()["scalars"]
    for tag in tags:
        assert find_tag(tag) is not None or tag == "epoch", f"{tag} is not in efftrain/tags.py"
        assert all(map(math.isfinite, values(events, tag))), tag
    there = {"", "feature maps"}
    there |= {"counter"} if find_counters("cpu") else set()
    there |= {"peak meter"} if find_peak_meter(torch.device("cpu")) else set()
    for tag in TAGS:
        logged = any(find_tag(name) is tag for name in tags)
        assert logged == (tag.needs in there), f"{tag.name} was {'' if logged else 'not '}logged"


def test_each_figure_says_its_unit(events: EventAccumulator):
    for name in events.Tags()["scalars"]:
        tag = find_tag(name)
        if tag is not None:
            described = events.SummaryMetadata(name).summary_description
            assert described.endswith(tag.meaning), name
            assert not tag.unit or described.startswith(f"**{tag.unit}**, "), name


def windows_s(events: EventAccumulator) -> dict[int, float]:
    """Wall clock of each window of steps within an epoch, by its last step."""
    # the last event of a window: whoever logs after it belongs to the next
    clocks = {e.step: e.wall_time for e in events.Scalars("throughput/samples_per_s")}
    return {
        last: clocks[last] - clocks[first]
        for first, last in pairwise(sorted(clocks))
        if last - first == EVERY and first // STEPS_OF_EPOCH == (last - 1) // STEPS_OF_EPOCH
    }


def test_step_times_are_those_of_the_wall_clock(events: EventAccumulator):
    """Wait, transfer and step are all that there is in a loop; a callback or logger is in none."""
    clocks = windows_s(events)
    assert len(clocks) > 8
    parts = ("time/step_ms", "time/data_ms", "time/h2d_ms")
    logged = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in parts}
    ratios = [
        sum(logged[tag][step] for tag in parts) * EVERY / 1000 / seconds
        for step, seconds in clocks.items()
    ]
    assert median(ratios) == pytest.approx(1, abs=0.05)
    inside = ("time/forward_ms", "time/backward_ms", "time/optimizer_ms")
    for name in inside:
        logged[name] = {e.step: e.value for e in events.Scalars(name)}
    shares = [
        sum(logged[tag][step] for tag in inside) / logged["time/step_ms"][step] for step in clocks
    ]
    assert 0.9 < median(shares) <= 1.001


def test_throughput_is_samples_over_time(events: EventAccumulator):
    rates = {e.step: e.value for e in events.Scalars("throughput/samples_per_s")}
    ratios = [rates[step] * s / (EVERY * BATCH) for step, s in windows_s(events).items()]
    assert median(ratios) == pytest.approx(1, abs=0.05)


def test_achieved_flops_are_those_predicted_over_the_time_of_a_step(events: EventAccumulator):
    (flops,) = set(values(events, "flops/step_gflop"))
    achieved = {e.step: e.value for e in events.Scalars("throughput/achieved_gflops")}
    steps_ms = {e.step: e.value for e in events.Scalars("time/step_ms")}
    ratios = [achieved[n] * steps_ms[n] / 1000 / flops for n in windows_s(events)]
    assert median(ratios) == pytest.approx(1, abs=0.05), "the optimizer's own FLOP are not in it"


def test_percentiles_are_in_their_order(events: EventAccumulator):
    p50, p90, p99 = (values(events, f"time/step_p{n}_ms")[:-1] for n in (50, 90, 99))
    assert all(a <= b <= c for a, b, c in zip(p50, p90, p99, strict=False))


def test_counts_are_those_of_the_architecture(events: EventAccumulator):
    model = digits_mobilenetv2(pretrained=False)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert set(values(events, "params/total")) == {total}
    assert set(values(events, "params/trainable/norm")) == {NORMS}
    assert set(values(events, "size/fp32_mib")) == {4 * total / 1024**2}
    assert set(values(events, "receptive_field/size")) == {
        491
    }  # torchvision's MobileNetV2 has it, too


def test_kept_memory_is_what_was_predicted(events: EventAccumulator):
    (predicted,) = set(values(events, "memory/saved_mib"))
    measured = values(events, "memory/saved_measured_mib")[0]
    assert measured == pytest.approx(predicted, rel=0.001)
    causes = [tag for tag in events.Tags()["scalars"] if tag.startswith("memory/saved/")]
    assert sum(values(events, tag)[0] for tag in causes) == pytest.approx(measured)


def test_the_peak_is_a_little_more_than_what_is_kept(run: Path, events: EventAccumulator):
    if "memory/device_peak_mib" in events.Tags()["scalars"]:
        peaks = values(events, "memory/device_peak_mib")
        kept = values(events, "memory/saved_measured_mib")[0]
        assert all(kept < peak < 2.5 * kept for peak in peaks), peaks


def test_accuracy_is_there_against_its_cost(events: EventAccumulator):
    points = events.Scalars("val_by_gflop/acc")
    per_epoch = 1347 / BATCH * values(events, "flops/step_gflop")[0]
    expected = [0.0, *(per_epoch * epoch for epoch in range(1, EPOCHS + 1))]
    assert [point.step for point in points] == pytest.approx(expected, rel=0.03)
    assert [p.value for p in points] == pytest.approx(values(events, "val/acc")[: len(points)])


def test_pictures_cards_and_layout_are_there(events: EventAccumulator):
    assert set(events.Tags()["images"]) == IMAGES
    cards = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert cards >= CARDS
    assert "custom_scalars__config__" in cards


def test_hyperparameters_stand_beside_accuracy_and_cost(events: EventAccumulator):
    experiment = events.PluginTagToContent("hparams")["_hparams_/experiment"]
    for name in (b"val/acc", b"params/trainable", b"memory/saved_measured_mib", b"size/delta_kib"):
        assert name in experiment


def test_the_summary_says_the_same(run: Path, events: EventAccumulator):
    summary = json.loads((run / "summary.json").read_text())
    figures = summary["efficiency"]
    assert figures["size/delta_kib"]["difference_pct"] == 0, "predicted to the byte"
    assert figures["size/delta_kib"]["measured"] == summary["delta"]["bytes"] / 1024
    kept = figures["memory/saved_measured_mib"]
    assert kept["measured"] == pytest.approx(values(events, "memory/saved_measured_mib")[0])
    assert figures["time/step_p50_ms"]["measured"] == summary["time"]["step_p50_ms"]
    for name, figure in figures.items():
        assert figure["unit"] == find_tag(name).unit
    text = (run / "summary.md").read_text()
    assert "| figure | predicted | measured | difference |" in text
    assert "| size/delta_kib (KiB) | 72.52 | 72.52 | +0.0 % |" in text
