"""What a config may build.

A `_target_` names code to run, and a config is often somebody else's file. So a target is judged by
what it resolves to, its `__module__.__qualname__`, never by how it is spelt: the alias
`torch.nn.modules.module.torch.load` is `torch.serialization.load` and is refused. A prefix list
would let it through.

A user's own package is trusted by `EFFTRAIN_TRUST=mypkg,otherpkg` in the environment. A config
cannot grant that to itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from efftrain.config.problem import did_you_mean
from efftrain.errors import ConfigError

TRUST_VARIABLE = "EFFTRAIN_TRUST"

_OPTIM = "adadelta.Adadelta adagrad.Adagrad adam.Adam adamax.Adamax adamw.AdamW nadam.NAdam radam.RAdam rmsprop.RMSprop sgd.SGD"  # noqa: E501
_SCHEDULES = "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts ExponentialLR LinearLR MultiStepLR OneCycleLR PolynomialLR StepLR"  # noqa: E501
_LOSSES = "BCEWithLogitsLoss CrossEntropyLoss HuberLoss L1Loss MSELoss NLLLoss SmoothL1Loss"
_CALLBACKS = "early_stopping.EarlyStopping gradient_accumulation_scheduler.GradientAccumulationScheduler model_checkpoint.ModelCheckpoint timer.Timer"  # noqa: E501
_LOGGERS = "csv_logs.CSVLogger mlflow.MLFlowLogger tensorboard.TensorBoardLogger wandb.WandbLogger"
_METRICS = "accuracy.{}Accuracy auroc.{}AUROC calibration_error.{}CalibrationError f_beta.{}F1Score precision_recall.{}Precision precision_recall.{}Recall"  # noqa: E501

ALLOWED: frozenset[str] = frozenset(
    [
        *(f"torch.optim.{name}" for name in _OPTIM.split()),
        *(f"torch.optim.lr_scheduler.{name}" for name in _SCHEDULES.split()),
        *(f"torch.nn.modules.loss.{name}" for name in _LOSSES.split()),
        *(f"lightning.pytorch.callbacks.{name}" for name in _CALLBACKS.split()),
        *(f"lightning.pytorch.loggers.{name}" for name in _LOGGERS.split()),
        "lightning.pytorch.strategies.ddp.DDPStrategy",
        "lightning.pytorch.strategies.model_parallel.ModelParallelStrategy",
        "lightning.pytorch.trainer.trainer.Trainer",
        *(
            f"torchmetrics.classification.{name.format(kind)}"
            for name in _METRICS.split()
            for kind in ("Binary", "Multiclass")
        ),
        "efftrain.callbacks.activation_memory.ActivationMemory",
        "efftrain.callbacks.cost_curve.CostCurve",
        "efftrain.callbacks.doctor.Doctor",
        "efftrain.callbacks.efficiency_summary.EfficiencySummary",
        "efftrain.callbacks.energy_meter.EnergyMeter",
        "efftrain.callbacks.finite_loss.FiniteLoss",
        "efftrain.callbacks.learning_rate.LearningRate",
        "efftrain.callbacks.model_cost.ModelCost",
        "efftrain.callbacks.parameter_count.ParameterCount",
        "efftrain.callbacks.progress.progress_bar",
        "efftrain.callbacks.step_timer.StepTimer",
        "efftrain.callbacks.tensorboard_logger.DescribedTensorBoardLogger",
        "efftrain.callbacks.throughput.Throughput",
        "efftrain.causal_lm.CausalLMTask",
        "efftrain.causal_lm.Perplexity",
        "efftrain.data.digits.DigitsData",
        "efftrain.data.image_folder.ImageFolderData",
        "efftrain.data.marked_tokens.MarkedTokensData",
        "efftrain.data.text_files.TextFilesData",
        "efftrain.data.text_lines.TextLinesData",
        "efftrain.data.token_chain.TokenChainData",
        "efftrain.models.digits.digits_mobilenetv2",
        "efftrain.models.hugging_face.hf_causal_lm",
        "efftrain.models.hugging_face.hf_image",
        "efftrain.models.hugging_face.hf_text",
        "efftrain.models.timm_models.timm_model",
        "efftrain.models.torchvision_models.torchvision_model",
        "efftrain.schedules.constant",
        "efftrain.schedules.cosine",
        "efftrain.task.Task",
    ]
)
"""Resolved names. A test checks that each resolves to itself."""

_IMPORTABLE = frozenset(name.split(".")[0] for name in ALLOWED)


def read_trust() -> frozenset[str]:
    """Top-level packages that the environment names now."""
    return frozenset(filter(None, os.environ.get(TRUST_VARIABLE, "").replace(" ", "").split(",")))


_TRUSTED = read_trust()  # once, before a config's hydra.job.env_set could change the environment


def trusted_packages() -> frozenset[str]:
    """Top-level packages that the user trusted when the program started."""
    return _TRUSTED


def resolve(target: str) -> Callable[..., Any]:
    """Find the class or function that a `_target_` names, if a config may build it.

    Nothing outside the listed and the trusted packages is even imported.

    Args:
        target: A dotted path.

    Raises:
        ConfigError: The path leads nowhere, or to something that a config may not build.
    """
    trusted = trusted_packages()
    package = target.split(".")[0]
    if package not in _IMPORTABLE | trusted:
        trust = f"; if {package} is yours, set {TRUST_VARIABLE}={package}"
        hint = "" if package in sys.stdlib_module_names else trust
        raise ConfigError(f"may not build '{target}'{hint}")
    found = _locate(target)
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        raise ConfigError(f"'{target}' is neither a class nor a function")
    name = resolved_name(found)
    if name in ALLOWED or name.split(".")[0] in trusted:
        return found
    same_end = [allowed for allowed in ALLOWED if allowed.split(".")[0] == package]
    suggestion = did_you_mean(target, same_end)
    is_alias = "" if name == target else f", which is {name}"
    raise ConfigError(f"may not build '{target}'{is_alias}{suggestion.split('; known')[0]}")


def resolved_name(found: Any) -> str:
    """Where a class or function says that it was defined."""
    module = getattr(found, "__module__", None) or type(found).__module__
    return f"{module}.{getattr(found, '__qualname__', type(found).__qualname__)}"


def _locate(target: str) -> Any:
    """Import the longest module prefix, then walk the attributes."""
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts) or len(parts) < 2:
        raise ConfigError(f"'{target}' is not a dotted path such as torch.optim.AdamW")
    found = _import(parts[0], target)
    walked = parts[0]
    for part in parts[1:]:
        if not hasattr(found, part):
            found = _import_child(walked, part, target, found)
        else:
            found = getattr(found, part)
        walked = f"{walked}.{part}"
    return found


def _import_child(parent: str, part: str, target: str, found: Any) -> Any:
    child = f"{parent}.{part}"
    if importlib.util.find_spec(child) is None if hasattr(found, "__path__") else True:
        names = [name for name in dir(found) if not name.startswith("_")]
        hint = did_you_mean(part, names).split("; known")[0]
        raise ConfigError(f"no '{part}' in {parent}{hint}")
    return _import(child, target)


def _import(module: str, target: str) -> Any:
    """Import a module, with whatever it raises as one line."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        lines = str(error).splitlines() or ["no message"]
        raise ConfigError(
            f"cannot import {module} for '{target}': {type(error).__name__}: {lines[0]};"
            " is it on PYTHONPATH?"
        ) from error
