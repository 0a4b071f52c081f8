"""`efftrain profile`: the figures, the forms that it prints, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

QUICK = ("ceilings=false", "second_opinion=false", "figures=false")


@pytest.mark.parametrize(
    ("name", "params", "macs", "field"),
    [("resnet50", 25_557_032, 4_089_184_256, 427), ("mobilenet_v2", 3_504_872, 300_774_272, 491)],
)
def test_well_known_models_have_their_published_figures(verb, name, params, macs, field):
    code, out, err = verb(
        "profile", "model=torchvision", f"model.name={name}", "format=json", *QUICK
    )
    assert code == 0, err
    report = json.loads(out)  # nothing else on standard output
    assert report["params"]["total"] == params
    assert report["macs"]["forward"] == macs
    assert report["receptive_field"]["size"] == field
    assert report["method"] == "norm"
    assert "latency" not in report  # no machine was asked for


def test_the_job_of_train_is_the_job_that_is_profiled(verb):
    code, out, err = verb(
        "profile", "experiment=digits_head", "batch_size=32", "format=json", *QUICK
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["params"]["trainable"] == 1280 * 10 + 10
    assert report["batch_size"] == 32
    # the head alone: its weights' gradient, 32 samples
    assert report["macs"]["by_phase"]["backward_weights"] == 32 * 1280 * 10
    assert report["macs"]["by_phase"]["backward_inputs"] == 0


def test_every_form_lies_in_the_run_folder(verb):
    code, out, err = verb("profile", "hydra.run.dir=run", "ceilings=false", "format=table")
    assert code == 0, err
    folder = Path("run")
    found = {path.name for path in folder.iterdir() if path.is_file()}
    assert {"summary.json", "summary.md", "layers.csv", "report.html"} <= found
    assert "figures.png" in found
    assert "<svg" in (folder / "report.html").read_text()
    report = json.loads((folder / "summary.json").read_text())
    assert report["params"]["total"] == 408_650
    assert report["second_opinion"]["fvcore"]["flops"] > report["macs"]["forward"]
    with (folder / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [layer["path"] for layer in report["layers"]]
    assert "408,650" in out
    assert "norm" in out


def test_what_is_printed_is_the_form_that_was_asked_for(verb):
    _, text, _ = verb("profile", "format=csv", *QUICK)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert sum(int(row["params"]) for row in rows) == 408_650
    _, page, _ = verb("profile", "format=html", *QUICK)
    assert page.lower().startswith("<!doctype html>")
    _, markdown, _ = verb("profile", "format=md", *QUICK)
    assert markdown.startswith("# ")


def test_token_models_are_profiled_on_tokens_and_on_shapes_alone(verb):
    code, out, err = verb(
        "profile", "model=hf_causal_lm", "device=meta", "seq_len=64", "format=json", *QUICK
    )
    assert code == 0, err
    report = json.loads(out)
    # 3 blocks of width 48: q and o 48 x 48, k and v 48 x 16, MLP 3 x 48 x 96; scores and values of 64
    block = 64 * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 96) + 2 * 64 * 64 * 48
    assert report["macs"]["forward"] == 3 * block + 64 * 48 * 320
    assert "receptive_field" not in report


def test_the_delta_that_is_predicted_is_the_file_that_train_writes(verb):
    code, out, err = verb("profile", "format=json", *QUICK)
    assert code == 0, err
    predicted = json.loads(out)["size"]["delta_bytes"]
    code, _, err = verb("train", "debug=fast", "hydra.run.dir=trained")
    assert code == 0, err
    assert predicted == Path("trained/delta.safetensors").stat().st_size


def test_the_largest_batch_by_method_and_memory_mode(verb):
    code, out, err = verb(
        "profile", "fit=64MiB", "fit_methods=[head]", "fit_memory=[exact]", "format=json", *QUICK
    )
    assert code == 0, err
    found = json.loads(out)["fit"]
    fits = {(fit["method"], fit["memory"]): fit["batch_size"] for fit in found}
    assert next(iter(fits)) == ("norm", "off")  # the job's own
    assert len(fits) == 2 * 2
    assert fits["head", "off"] > fits["norm", "off"] > 0
    assert fits["norm", "exact"] > 2 * fits["norm", "off"]  # the norms' inputs alone are kept
    assert all(fit["step_peak_bytes"] <= 64 * 1024**2 for fit in found)
    assert "fit in 64.0 MiB: norm, memory=exact (2 of 4)" in err


def test_each_of_several_devices_holds_its_share(verb):
    code, out, err = verb(
        "profile", "peft=full", "strategy=fsdp", "devices=4", "format=json", *QUICK
    )
    assert code == 0, err
    report = json.loads(out)
    shared = report["per_device"]
    assert shared["obtained"] == "estimated"
    assert shared["assumptions"]
    # a quarter, each tensor padded to four equal parts along its first dimension
    whole = report["memory"]["parameter_bytes"]
    assert whole / 4 <= shared["parameter_bytes"] < whole / 3.5
    assert report["memory"]["optimizer_bytes"] / 4 <= shared["optimizer_bytes"]
    assert shared["device_peak_bytes"] < report["memory"]["step_peak_bytes"]


def test_another_job_stands_beside_this_one(verb):
    code, out, err = verb("profile", "+against.peft=full", "format=json", *QUICK)
    assert code == 0, err
    against = json.loads(out)["against"]
    assert against["overrides"] == ["peft=full"]
    assert against["totals"]["params.trainable"] == {
        "before": 408_650, "after": 14_080, "difference": 14_080 - 408_650,
        "ratio": 14_080 / 408_650,
    }  # fmt: skip
    assert "gradients of weights" in against["reasons"][0]
    code, out, err = verb("profile", "+against.peft=full", *QUICK)
    assert code == 0, err
    assert "Against peft=full" in out


def test_measured_stands_beside_predicted(verb):
    code, out, err = verb(
        "profile", "measure=true", "format=json", "second_opinion=false", "figures=false"
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["measured"]["latency"]["runs"] >= 100
    assert report["measured"]["step"]["p50_ms"] > report["measured"]["latency"]["p50_ms"]
    assert report["latency"]["predicted_ms"] > 0
    assert report["measured"]["layer_error_pct"] > 0
    assert {layer["bound"] for layer in report["layers"] if "bound" in layer} <= {
        "compute",
        "memory",
    }
    assert "measuring: latency" in err


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["format=xml"], 2, "format: expected one of table, json, csv, html, md"),
        (["input_size=[3,32,32]"], 2, "input_size"),
        (["input_size=[1,0,32]"], 2, "every side must be >= 1"),
        (["model=hf_causal_lm", "seq_len=100000"], 2, "seq_len=100000"),
        (["fit=lots"], 2, "fit=lots: expected an amount of memory such as 24GiB"),
        (
            ["fit=1GiB", "fit_methods=[nrom]"],
            2,
            "fit_methods: peft.method=nrom is not a method; did you mean norm?",
        ),
        (["device=meta"], 2, "model.pretrained=false"),
        (["device=meta", "measure=true"], 2, "measure=true needs weights"),
        (["trainer.precision=64-true"], 2, "trainer.precision=64-true cannot be predicted"),
        (["device=cuda"], 6, "device=cuda: there is none"),
        (["devices=8"], 2, "several devices need strategy=ddp or strategy=fsdp"),
        (["+against.peft=fulll"], 2, "against: peft: no option 'fulll'; did you mean 'full'?"),
        (["batchsize=3"], 2, "batchsize: unknown key; did you mean 'batch_size'?"),
        (["model=torchvision", "model.name=resnet5"], 2, "no classifier 'resnet5'"),
    ],
)
def test_what_cannot_be_profiled_is_one_line(verb, overrides, code, message):
    got, out, err = verb("profile", *overrides, *QUICK)
    assert got == code
    assert message in err
    assert out == ""
    assert len(err.strip().splitlines()) == 1
