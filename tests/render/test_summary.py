from pathlib import Path

import pytest

from efftrain.paths import RunFolder
from efftrain.render.quantity import bytes_text, duration_text
from efftrain.render.summary import print_summary, summary_markdown
from efftrain.run import RunSummary

SUMMARY = RunSummary(
    status="finished",
    run_dir="out",
    method="norm",
    seed=3,
    before={"val/acc": 0.25},
    after={"val/acc": 0.9375, "val/loss": 0.5},
    params={"total": 2000, "trainable": 50, "trainable_pct": 2.5},
    time={"train_s": 67.2, "steps": 10, "step_p50_ms": 12.34},
    throughput={"samples_per_s": 1234.5},
    delta={"path": "delta.safetensors", "bytes": 2048},
    config={},
)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (3 * 1024**2, "3.0 MiB"),
     (5 * 1024**3, "5.0 GiB")],
)  # fmt: skip
def test_bytes_are_in_binary_units(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (41.23, "41.2 s"), (60, "1 min 00 s"), (187, "3 min 07 s")],
)
def test_durations_have_minutes_above_one(seconds, text):
    assert duration_text(seconds) == text


def test_markdown_has_before_and_after_and_the_figures():
    text = summary_markdown(SUMMARY)
    assert "| val/acc | 0.2500 | 0.9375 |" in text
    assert "| val/loss |  | 0.5000 |" in text
    assert "| trainable | 50 of 2,000 parameters (2.50 %) |" in text
    assert "| delta | 2.0 KiB in delta.safetensors |" in text
    assert "| step | 12.3 ms (median of 10) |" in text
    assert "| throughput | 1,234 samples/s |" in text or "1,235 samples/s" in text


def test_the_last_line_opens_the_curves_also_with_a_blank_in_the_path(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("my runs/one"))
    folder.tensorboard.mkdir(parents=True)
    print_summary(SUMMARY, folder)
    *_, last = capsys.readouterr().out.strip().splitlines()
    assert last == "tensorboard --logdir 'my runs/one/tb'"


def test_where_there_are_no_curves_nothing_points_to_them(capsys, tmp_path):
    print_summary(SUMMARY, RunFolder(tmp_path))
    assert "tensorboard" not in capsys.readouterr().out


def test_what_was_not_measured_is_left_out():
    bare = SUMMARY.__class__(**{**vars(SUMMARY), "time": {"train_s": 1.0}, "throughput": {}})
    text = summary_markdown(bare)
    assert "step" not in text
    assert "throughput" not in text
