"""The benchmark that sets counters side by side."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.conftest import CHECKOUT
from tests.profiling import zoo


@pytest.fixture(scope="module")
def counters() -> ModuleType:
    path = CHECKOUT / "scripts" / "benchmarks" / "counters.py"
    spec = importlib.util.spec_from_file_location("counters", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_truth_is_the_published_figure_and_the_papers_formula(counters: ModuleType) -> None:
    known = zoo.build("mobilenet_v2")
    model, batch = known.model.eval(), known.batch
    assert counters.forward_truth("mobilenet_v2", model, batch) == 300_774_272
    assert counters.forward_truth("vit_b_16", nn.Identity(), batch) == zoo.VIT
    forward, backward = counters.step_truth("vit_b_16", nn.Identity(), batch, norms_alone=True)
    assert backward / forward == pytest.approx(1.034, abs=5e-4)


def test_the_truth_of_windows_is_that_of_an_independent_count(counters: ModuleType) -> None:
    known = zoo.build("swin_t")
    assert counters.forward_truth("swin_t", known.model.eval(), known.batch) == known.macs


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LLaMA, shared keys"])
def test_a_models_formula_is_what_its_operators_add_up_to(counters: ModuleType, name: str) -> None:
    with torch.device("meta"):
        model, batch = counters.build(name)
    assert counters.ask("efftrain", model, batch, counters.FORMULAS[name]) == "exact"


def test_a_counter_that_fails_or_errs_shows_in_its_cell(counters: ModuleType) -> None:
    model, batch = nn.Linear(4, 4), torch.zeros(1, 4)
    assert counters.ask("efftrain", model, batch, 16) == "exact"
    assert counters.ask("efftrain", model, batch, 32) == "-50.0 %"
    assert counters.ask("torch", model, torch.zeros(1, 5), 16) == "RuntimeError"


def test_a_counter_that_is_not_installed_is_left_out(
    counters: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(counters.COUNTERS, "no-such-counter", lambda model, image: 0.0)
    assert {"efftrain", "torch"} <= counters.installed().keys()
    assert "no-such-counter" not in counters.installed()
