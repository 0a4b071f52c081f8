import json
import math
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import MobileNetV2ForImageClassification

from efftrain.models.digits import digits_mobilenetv2
from efftrain.paths import conf_dir
from efftrain.tags import find_tag

EXPERIMENTS = sorted(path.stem for path in conf_dir().glob("experiment/*.yaml"))
BN_CHANNELS = 7_040
"""Of the 52 BatchNorms: 14,080 scales and biases together."""
HEAD = 1280 * 10 + 10

TRAINABLE = {
    "digits_norm": 2 * BN_CHANNELS,
    "digits_norm_head": 2 * BN_CHANNELS + HEAD,
    "digits_head": HEAD,
    "digits_bias": BN_CHANNELS + 10,
    "digits_full": 408_650,
    "digits_pretrain": 408_650,
}


def scalars(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_the_counts_above_are_those_of_the_architecture():
    model = digits_mobilenetv2(pretrained=False)
    assert isinstance(model, MobileNetV2ForImageClassification)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 52
    assert sum(m.num_features for m in norms) == BN_CHANNELS


@pytest.mark.slow
def test_the_default_job_adapts_to_the_shifted_domain(command):
    result = command("train", "hydra.run.dir=run", timeout=1500, OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    run = command.folder / "run"

    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["metrics"]["before"]["val/acc"] < 0.4
    assert summary["metrics"]["after"]["val/acc"] >= 0.88
    assert summary["params"]["trainable_pct"] < 5
    assert summary["params"]["total"] == 408_650
    assert summary["params"]["trainable"] == TRAINABLE["digits_norm"]
    assert summary["delta"]["bytes"] == (run / "delta.safetensors").stat().st_size
    assert summary["config"]["peft"]["method"] == "norm"

    *_, last = result.stdout.strip().splitlines()
    assert shlex.split(last) == ["tensorboard", "--logdir", "run/tb"]
    assert "val/acc" in result.stdout
    assert "14,080 of 408,650 parameters (3.45 %)" in result.stdout

    check_curves(run, summary)
    check_evaluation(command, summary)


def check_curves(run: Path, summary: dict) -> None:
    """What TensorBoard reads back is what the summary says, in one run without children."""
    assert [path for path in (run / "tb").iterdir() if path.is_dir()] == []
    events = scalars(run / "tb")
    tags = events.Tags()["scalars"]
    for tag in tags:
        assert find_tag(tag) is not None or tag == "epoch", f"{tag} is not in efftrain/tags.py"
        assert all(math.isfinite(event.value) for event in events.Scalars(tag)), tag
    accuracy = [event.value for event in events.Scalars("val/acc")]
    assert accuracy[0] == pytest.approx(summary["metrics"]["before"]["val/acc"])
    assert accuracy[-1] == pytest.approx(summary["metrics"]["after"]["val/acc"])
    assert events.Scalars("params/trainable")[0].value == TRAINABLE["digits_norm"]

    steps = summary["time"]["steps"]
    assert steps == 12 * math.ceil(1347 / 32) - 3, "three steps are warm-up"
    timed_s = steps * summary["time"]["step_ms"] / 1000
    assert 0.5 * summary["time"]["train_s"] < timed_s < summary["time"]["train_s"]
    per_s = 32 / (summary["time"]["step_ms"] + summary["time"]["data_ms"]) * 1000
    assert summary["throughput"]["samples_per_s"] == pytest.approx(per_s, rel=0.1)

    hparams = events.PluginTagToContent("hparams")
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(hparams)
    assert b"val/acc" in hparams["_hparams_/experiment"]
    texts = set(events.Tags()["tensors"])
    assert {"config/text_summary", "summary/text_summary"} <= texts


def check_evaluation(command, summary: dict) -> None:
    """The run's own config and delta give its figures again."""
    result = command("eval", "run=run", "hydra.run.dir=evaluation")
    assert result.returncode == 0, result.stderr
    again = json.loads((command.folder / "evaluation" / "summary.json").read_text())
    assert again["metrics"] == pytest.approx(summary["metrics"]["after"], abs=1e-6)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_a_fast_step(verb, tmp_path, experiment):
    run = tmp_path / "some" / "new folder"
    code, out, err = verb(
        "train", f"experiment={experiment}", "debug=fast", f"hydra.run.dir='{run}'"
    )
    assert code == 0, err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["params"]["trainable"] == TRAINABLE[experiment]
    for name in ("delta.safetensors", "summary.md", "env.json", "train.log", ".hydra/config.yaml"):
        assert (run / name).is_file(), name
    assert list((run / "tb").glob("events.*"))
    last = out.strip().splitlines()[-1]
    assert shlex.split(last) == ["tensorboard", "--logdir", str(run / "tb")]


def test_norms_move_and_nothing_else_does(verb, tmp_path):
    code, _, err = verb("train", "debug=fast", f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 0, err
    delta = load_file(tmp_path / "run" / "delta.safetensors")
    assert sum(tensor.numel() for tensor in delta.values()) == 2 * BN_CHANNELS
    base = digits_mobilenetv2().state_dict()
    changed = [name for name, tensor in delta.items() if not torch.equal(tensor, base[name])]
    assert len(changed) == len(delta) == 104


def test_the_same_seed_gives_the_same_weights(verb, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, _, err = verb(
            "train", "debug=fast", f"seed={seed}", f"hydra.run.dir={tmp_path / name}"
        )
        assert code == 0, err
    a, b, c = (load_file(tmp_path / name / "delta.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(verb, tmp_path):
    sweep = tmp_path / "sweep"
    code, _, err = verb("train", "-m", "debug=fast", "peft=norm,head", f"hydra.sweep.dir={sweep}")
    assert code == 0, err
    methods = [json.loads((sweep / n / "summary.json").read_text())["method"] for n in "01"]
    assert methods == ["norm", "head"]


def test_a_sweep_does_not_write_over_another(verb, tmp_path):
    sweep = tmp_path / "sweep"
    (sweep / "0").mkdir(parents=True)
    (sweep / "0" / "summary.json").write_text("{}")
    code, _, err = verb("train", "-m", "debug=fast", "seed=1", f"hydra.sweep.dir={sweep}")
    assert code == 6
    assert err.startswith(f"efftrain: hydra.sweep.dir: {sweep} holds a run already")
    assert (sweep / "0" / "summary.json").read_text() == "{}"


def test_without_schedule_logger_or_callbacks_it_runs_all_the_same(verb, tmp_path):
    run = tmp_path / "run"
    code, out, err = verb(
        "train", "debug=fast", "scheduler=none", "logger=none", "callbacks=none",
        "trainer.enable_progress_bar=false", f"hydra.run.dir={run}",
    )  # fmt: skip
    assert code == 0, err
    assert "tensorboard" not in out
    assert (run / "delta.safetensors").is_file()


def test_an_endless_run_needs_no_schedule(verb):
    code, _, err = verb("train", "debug=fast", "trainer.max_epochs=-1")
    assert code == 2
    assert err.splitlines()[-1].startswith("efftrain: scheduler: needs to know the last step")


def test_nothing_held_out_means_no_metrics(verb, tmp_path):
    run = tmp_path / "run"
    code, _, err = verb(
        "train", "debug=fast", "trainer.limit_val_batches=0", f"hydra.run.dir={run}"
    )
    assert code == 0, err
    assert json.loads((run / "summary.json").read_text())["metrics"] == {"before": {}, "after": {}}


def test_an_evaluation_is_of_the_samples_of_the_run(verb, tmp_path):
    run = tmp_path / "run"
    assert verb("train", "debug=fast", f"hydra.run.dir={run}")[0] == 0
    code, out, err = verb("eval", f"run={run}")
    assert code == 0, err
    after = json.loads((run / "summary.json").read_text())["metrics"]["after"]
    line = next(line for line in out.splitlines() if line.startswith("val/acc"))
    assert line.split()[1] == line.split()[-1] == f"{after['val/acc']:.4f}"


def test_a_damaged_config_of_a_run_is_a_checkpoint_error(verb, tmp_path):
    run = tmp_path / "run"
    assert verb("train", "debug=fast", f"hydra.run.dir={run}")[0] == 0
    (run / ".hydra" / "config.yaml").write_text("a: [")
    code, _, err = verb("eval", f"run={run}")
    assert code == 4
    assert len(err.strip().splitlines()) == 1


def test_casting_the_whole_model_is_refused(verb):
    code, _, err = verb("train", "debug=fast", "trainer.precision=bf16-true")
    assert code == 2
    assert "trainer.precision=bf16-true casts the norms that train as well" in err


def test_a_failed_job_of_a_sweep_leaves_its_reason_and_the_next_runs(verb, tmp_path):
    sweep = tmp_path / "sweep"
    code, _, err = verb(
        "train", "-m", "debug=fast", "peft.head=no.such,null", "peft=head",
        f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    assert code == 2
    assert "peft.head" in err
    assert "Traceback" in (sweep / "0" / "train.log").read_text()
    assert (sweep / "1" / "summary.json").is_file()


NAN_LOSS = """
import torch

class NanLoss(torch.nn.CrossEntropyLoss):
    def forward(self, scores, labels):
        loss = super().forward(scores, labels)
        return loss * float("nan") if torch.is_grad_enabled() else loss
"""


def test_a_loss_that_is_not_finite_stops_the_run(verb, tmp_path, monkeypatch):
    (tmp_path / "nan_loss.py").write_text(NAN_LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("efftrain.config.allow._TRUSTED", frozenset({"nan_loss"}))
    run = tmp_path / "run"
    loss = "task.loss={_target_: nan_loss.NanLoss}"
    code, _, err = verb("train", "debug=fast", loss, f"hydra.run.dir={run}")
    assert code == 5, err
    assert "train/loss is nan in epoch 0, batch 0; lower optim.lr" in err
    assert not (run / "delta.safetensors").exists()


def test_weights_that_are_not_finite_stop_the_run_before_the_first_step(verb, tmp_path):
    weights = digits_mobilenetv2().state_dict()
    weights["classifier.bias"] = torch.full((10,), float("nan"))
    save_file(weights, tmp_path / "nan.safetensors")
    code, _, err = verb("train", "debug=fast", f"model.pretrained={tmp_path / 'nan.safetensors'}")
    assert code == 5, err
    assert "val/loss is nan before the first step" in err
    assert "epoch 1" not in err


def test_recalibrated_statistics_are_measured_on_the_new_data_and_travel(verb, tmp_path):
    run = tmp_path / "run"
    code, _, err = verb(
        "train", "debug=fast", "peft.bn_stats=recalibrate", "peft.recalibrate_batches=2",
        f"hydra.run.dir={run}",
    )  # fmt: skip
    assert code == 0, err
    delta = load_file(run / "delta.safetensors")
    base = digits_mobilenetv2().state_dict()
    stem = "mobilenet_v2.conv_stem.first_conv.normalization"
    assert not torch.equal(delta[f"{stem}.running_mean"], base[f"{stem}.running_mean"])
    assert sum("running_var" in name for name in delta) == 52


def test_norms_and_head_can_have_rates_of_their_own(verb, tmp_path):
    run = tmp_path / "run"
    code, _, err = verb(
        "train", "debug=fast", "peft=norm_head", "peft.norm_lr=0.02", "peft.head_lr=0.001",
        "scheduler=constant", f"hydra.run.dir={run}",
    )  # fmt: skip
    assert code == 0, err
    events = scalars(run / "tb")
    assert events.Scalars("lr/norm")[0].value == pytest.approx(0.02)
    assert events.Scalars("lr/head")[0].value == pytest.approx(0.001)
