from dataclasses import replace
from pathlib import Path

import pytest

from efftrain.paths import RunFolder
from efftrain.render.quantity import bytes_text, duration_text
from efftrain.render.summary import print_summary, summary_markdown
from efftrain.run import Figure, RunSummary

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
    figures=(
        Figure("memory/saved_measured_mib", "MiB", predicted=20.0, measured=24.0),
        Figure("throughput/samples_per_s", "1/s", measured=1234.5),
        Figure("size/delta_kib", "KiB", predicted=0.5, measured=0.5),
    ),
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


def test_markdown_has_before_and_after_and_predicted_and_measured():
    lines = summary_markdown(SUMMARY).splitlines()
    assert "| val/acc | 0.2500 | 0.9375 |" in lines
    assert "| val/loss |  | 0.5000 |" in lines
    assert "| trainable | 50 of 2,000 parameters (2.50 %) |" in lines
    assert "| delta | 2.0 KiB in delta.safetensors |" in lines
    assert "| memory/saved_measured_mib (MiB) | 20.00 | 24.00 | +20.0 % |" in lines
    assert "| throughput/samples_per_s (1/s) |  | 1,234 |  |" in lines
    assert "| size/delta_kib (KiB) | 0.5000 | 0.5000 | +0.0 % |" in lines


def test_the_terminal_shows_the_same_figures(capsys, tmp_path):
    print_summary(SUMMARY, RunFolder(tmp_path))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["val/acc", "0.2500", "0.9375"] in rows
    assert ["memory/saved_measured_mib", "(MiB)", "20.00", "24.00", "+20.0", "%"] in rows


def test_json_leaves_out_what_is_not_known():
    efficiency = SUMMARY.to_dict()["efficiency"]
    assert efficiency["throughput/samples_per_s"] == {"unit": "1/s", "measured": 1234.5}
    assert efficiency["memory/saved_measured_mib"] == {
        "unit": "MiB", "predicted": 20.0, "measured": 24.0, "difference_pct": 20.0
    }  # fmt: skip


@pytest.mark.parametrize("predicted", [None, 0.0])
def test_there_is_no_difference_from_nothing(predicted):
    assert Figure("x/y", "", predicted, 3.0).difference_pct is None


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


def test_without_the_callbacks_there_is_no_table_of_costs(capsys, tmp_path):
    bare = replace(SUMMARY, time={"train_s": 1.0}, throughput={}, figures=())
    print_summary(bare, RunFolder(tmp_path))
    for text in (summary_markdown(bare), capsys.readouterr().out):
        assert "predicted" not in text
        assert "steps" not in text
