"""Write a finished run as a model of its own: merged, folded, or as an adapter of Hugging Face peft."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import nn

from efftrain.errors import ConfigError, DataError, MachineError, NumericError
from efftrain.files import PART_SUFFIX, sha256, write_text
from efftrain.jobs.assemble import Parts
from efftrain.jobs.evaluate import find_run, load_run, read_config
from efftrain.jobs.expected_warnings import expected_warnings
from efftrain.models.adapter_file import write_adapter
from efftrain.models.chatter import quiet_transformers
from efftrain.models.lora import merge_lora
from efftrain.paths import RunFolder
from efftrain.peft import read_delta
from efftrain.peft.methods import is_adapter
from efftrain.peft.ssf import SCALE, merge_ssf
from efftrain.render.quantity import bytes_text
from efftrain.surgery import Equality, Inputs, check_equal, fold, random_like
from efftrain.task import split_batch

RECORD = "export.json"


@dataclass(frozen=True)
class Exported:
    """What a form of export has to say beside its files.

    Attributes:
        record: Goes into export.json.
        lines: Go to the terminal.
    """

    record: dict[str, Any]
    lines: tuple[str, ...] = ()


def export(config: DictConfig) -> None:
    """Load a run, write it in the form that is asked for, and say how equal it is.

    Args:
        config: Checked against `ExportConfig`.

    Raises:
        CheckpointError: There is no such run, or its delta does not fit its model.
        ConfigError: The run cannot be written in that form.
        NumericError: What would be written does not compute the same; nothing is written.
    """
    run = find_run(config.run)
    parts = load_run(run)
    folder = Path(config.run_dir)
    with _staged(folder) as stage:
        exported = _FORMS[config.to](parts, run, stage, config.batches)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(stage.iterdir())
        }
    content = {"run": str(run.root), "to": config.to, "method": parts.selection.method}
    content |= {"files": files, **exported.record}
    write_text(folder / RECORD, json.dumps(content, indent=2) + "\n")
    for line in exported.lines:
        print(line)
    for name, facts in files.items():
        print(f"{bytes_text(facts['bytes']):>10}  {folder / name}")


def export_merged(parts: Parts, run: RunFolder, stage: Path, batches: int) -> Exported:
    """The base model with everything that training changed in its own weights."""
    merge = _merge(parts, batches)
    if merge.added_bias:
        raise ConfigError(
            f"to=merged: peft.method={parts.selection.method} gives {len(merge.added_bias)} layers a "
            f"bias that {type(parts.model).__name__} has not, first {merge.added_bias[0]}; its own "
            "loader would leave it out, use to=folded"
        )
    lines = merge.lines + _warn_of_rounding(merge.model)
    if read_config(run).peft.add_affine:
        lines += (
            "the library's own loader leaves out the scales that peft.add_affine added; call "
            "efftrain.peft.add_affine on its model first, or use to=folded",
        )
    if hasattr(merge.model, "save_pretrained"):  # a folder that transformers loads by itself
        any_model: Any = merge.model
        with quiet_transformers():
            any_model.save_pretrained(stage)
    else:
        _write_state(merge.model, stage)
    return Exported(merge.record, lines)


def export_folded(parts: Parts, run: RunFolder, stage: Path, batches: int) -> Exported:
    """The merged model with its norms folded into their neighbours, and the proof of it.

    `efftrain.surgery.restructure(model, record["fold"]["folded"], record["added_bias"])` makes the
    file loadable.
    """
    merge = _merge(parts, batches)
    inputs = _held_out(parts.data, batches)
    report = fold(merge.model, inputs[0], also=inputs[1:])
    if report.refused:
        raise NumericError(f"to=folded: {report.refused}; nothing was written, use to=merged")
    if report.given is None or report.random is None:
        first = report.left[0] if report.left else None
        why = "there are none" if first is None else f"first {first.path}: {first.reason}"
        raise ConfigError(f"to=folded: no norm can be folded; {why}; use to=merged")
    _write_state(report.model, stage)
    record = {**merge.record, "added_bias": [*merge.added_bias], "fold": report.to_dict()}
    total = len(report.folded) + len(report.left)
    lines = [f"folded {len(report.folded)} of {total} norms"]
    lines += [f"  left alone: {norm.path}: {norm.reason}" for norm in report.left]
    lines += [*merge.lines, *_describe("folded", (report.given, report.random))]
    return Exported(record, tuple(lines))


def export_peft(parts: Parts, run: RunFolder, stage: Path, batches: int) -> Exported:
    """What trained, as an adapter that Hugging Face peft loads on the base model."""
    if read_config(run).peft.add_affine:
        raise ConfigError(
            "to=peft: peft would leave out the scales that peft.add_affine added; use to=folded"
        )
    write_adapter(parts.model, read_delta(run.delta), stage)
    return Exported({})


_FORMS = {"merged": export_merged, "folded": export_folded, "peft": export_peft}


@dataclass(frozen=True)
class _Merge:
    """A model without adapters.

    Attributes:
        model: The run's own model where it had none.
        added_bias: Layers that got a bias from it.
        record: For export.json.
        lines: For the terminal.
    """

    model: nn.Module
    added_bias: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def _merge(parts: Parts, batches: int) -> _Merge:
    """Merge the adapters of a copy into its weights, and prove that it computes the same."""
    names = dict(parts.model.named_parameters())
    has_lora = any(map(is_adapter, names))
    has_ssf = any(name.rpartition(".")[2] == SCALE for name in names)
    if not (has_lora or has_ssf):
        return _Merge(parts.model)
    model = copy.deepcopy(parts.model)
    before = {path for path, module in model.named_modules() if _has_bias(module)}
    if has_ssf:
        merge_ssf(model)
    added = {path for path, module in model.named_modules() if _has_bias(module)} - before
    added = {path.removesuffix(".base_layer") for path in added}  # where there is lora as well
    if has_lora:
        merge_lora(model)
    inputs = _held_out(parts.data, batches)
    given = check_equal(parts.model, model, inputs)
    random = check_equal(parts.model, model, [random_like(inputs[0])])
    if not (given.equal and random.equal):
        worst = max(given.max_rel, random.max_rel)
        raise NumericError(
            f"the merged model is off by {worst:.1e} of its largest output, allowed is "
            f"{given.tolerance:.0e} in {given.dtype}; nothing was written"
        )
    record = {"merge": {"given": given.to_dict(), "random": random.to_dict()}}
    return _Merge(model, tuple(sorted(added)), record, _describe("merged", (given, random)))


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), nn.Parameter)


def _held_out(data: pl.LightningDataModule, batches: int) -> list[Inputs]:
    """Inputs of the first held-out batches.

    Raises:
        ConfigError: None is asked for.
        DataError: There is none.
    """
    if batches < 1:
        raise ConfigError(f"batches: must be >= 1, got {batches}")
    data.prepare_data()
    data.setup("validate")
    loader: Any = data.val_dataloader()
    first = loader[0] if isinstance(loader, list | tuple) else loader
    with expected_warnings():
        inputs = [split_batch(batch)[0] for batch in itertools.islice(first, batches)]
    if not inputs:
        raise DataError("data: nothing is held out on which the equality could be proven")
    return inputs


def _write_state(model: nn.Module, stage: Path) -> None:
    """A state dict with every key; tied tensors are written under each of their names."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    whole = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(whole, stage / "model.safetensors", metadata={"format": "pt"})


def _warn_of_rounding(model: nn.Module) -> tuple[str, ...]:
    """Norms that trained in float32 stay so in the file; a loader that casts them undoes training."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    most = max(sizes, key=lambda dtype: sizes[dtype])
    finer = sizes.get(torch.float32, 0)
    if most not in (torch.bfloat16, torch.float16) or not finer:
        return ()
    name = str(most).removeprefix("torch.")
    return (
        f"{finer:,} parameters are float32 in a {name} model; loading it in {name} rounds them",
    )


def _describe(what: str, proof: tuple[Equality, Equality]) -> tuple[str, ...]:
    return tuple(
        f"{what} on {name} inputs: largest error {one.max_abs:.1e}, relative to the largest output "
        f"{one.max_rel:.1e} (allowed {one.tolerance:.0e})"
        for name, one in zip(("held-out", "random"), proof, strict=True)
    )


@contextmanager
def _staged(folder: Path) -> Generator[Path]:
    """A folder beside the real one, of which all files move in when everything went well."""
    stage = folder / f"files{PART_SUFFIX}"
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        yield stage
        for path in stage.iterdir():
            path.replace(folder / path.name)
    except OSError as error:
        raise MachineError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
