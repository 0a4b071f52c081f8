"""Kernels where a compiler is, and where none is: both give results, and a failure is said once."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

from efftrain.memory import kernels
from efftrain.memory.kernels import inductor
from efftrain.memory.kernels.cpp import build


def norm(shape=(2, 4, 8, 8)):
    channels = shape[1]
    return kernels.batch_norm_act(
        torch.randn(shape),
        None,
        None,
        torch.zeros(channels),
        torch.ones(channels),
        training=True,
        momentum=0.1,
        eps=1e-5,
    )


@pytest.fixture
def nothing_built(monkeypatch, tmp_path):
    """As in a process that has built nothing, with an empty cache."""
    monkeypatch.setenv("EFFTRAIN_CACHE", str(tmp_path / "cache"))
    build._library.cache_clear()
    yield
    build._library.cache_clear()


def test_without_a_compiler_torchs_operators_run_and_the_reason_is_said_once(
    nothing_built, monkeypatch, caplog
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with kernels.using("cpp"), caplog.at_level(logging.WARNING):
        norm()
        y, *_ = norm()
    assert y.isfinite().all()
    (record,) = caplog.records
    assert "run unfused" in record.message
    assert "no C++ compiler found" in record.message


def test_a_compiler_that_fails_is_quoted(nothing_built, monkeypatch, caplog, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: error: out of sorts' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with caplog.at_level(logging.WARNING):
        assert build.library() is None
    assert "error: out of sorts" in caplog.records[0].message


def test_what_was_built_is_found_again_and_other_flags_build_anew(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(build, "_run", lambda *command: calls.append(command) or "macros")
    first = build.build("c++", ("-O1",), tmp_path)
    again = build.build("c++", ("-O1",), tmp_path)
    other = build.build("c++", ("-O2",), tmp_path)
    assert first == again != other
    assert first.parent == tmp_path
    assert sum("-o" in command for command in calls) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_costs_a_build_and_nothing_else(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(build, "_run", lambda *command: "macros")
    path = build.build("c++", ("-O1",), tmp_path / "file" / "cache")
    assert path.is_file()
    path.unlink()


def test_a_function_that_does_not_compile_runs_unfused_and_says_so_once(monkeypatch, caplog):
    from torch._dynamo.exc import TorchDynamoException

    def fail(*args, **kwargs):
        raise TorchDynamoException("out of sorts")

    monkeypatch.setattr(inductor, "_compile", lambda function: fail)
    monkeypatch.setattr(inductor, "_compiled", {})
    monkeypatch.setattr(inductor, "_failed", set())
    with kernels.using("inductor"), caplog.at_level(logging.WARNING):
        norm()
        y, *_ = norm()
    assert y.isfinite().all()
    (record,) = caplog.records
    assert "batch_norm_act runs unfused" in record.message


def test_an_error_of_the_computation_itself_is_not_swallowed(monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(inductor, "_compile", lambda function: fail)
    monkeypatch.setattr(inductor, "_compiled", {})
    with kernels.using("inductor"), pytest.raises(torch.OutOfMemoryError):
        norm()


def test_layers_of_other_sizes_share_a_version_and_other_options_do_not(monkeypatch):
    monkeypatch.setattr(inductor, "_compile", lambda function: lambda *a, **k: function)
    monkeypatch.setattr(inductor, "_compiled", {})
    x = torch.randn(2, 4, 8, 8)
    for like in (x, torch.randn(3, 5, 7, 9)):
        inductor.run_compiled(norm, (like,), {"act": "relu"})
    assert inductor.compilations() == 1
    inductor.run_compiled(norm, (x,), {"act": "silu"})
    inductor.run_compiled(norm, (x.bfloat16(),), {"act": "relu"})
    inductor.run_compiled(norm, (x.contiguous(memory_format=torch.channels_last),), {"act": "relu"})
    assert inductor.compilations() == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_computes_what_torch_does_whatever_the_sizes():
    versions = inductor.compilations()
    for shape in ((4, 6, 8, 8), (3, 10, 7, 5), (2, 6, 12, 12)):
        x, mean, rstd = torch.randn(shape), torch.randn(shape[1]), torch.rand(shape[1]) + 0.5
        with kernels.using("inductor"):
            y = kernels.batch_norm_act_again(x, None, None, mean, rstd, act="relu")
        expected = F.relu((x - mean.view(-1, 1, 1)) * rstd.view(-1, 1, 1))
        torch.testing.assert_close(y, expected)
    assert inductor.compilations() == versions + 1
    assert not inductor._failed
