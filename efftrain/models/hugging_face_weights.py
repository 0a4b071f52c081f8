"""Building a model of transformers from its configuration, with weights or without."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efftrain.errors import CheckpointError, ConfigError
from efftrain.models.chatter import quiet_transformers
from efftrain.models.hub import KEY, first_line, loading
from efftrain.models.hugging_face_config import config_from_hub
from efftrain.models.interface import declare, interface_of
from efftrain.models.new_head import say_new_head
from efftrain.models.weights import read_weights
from efftrain.peft import find_heads

_log = logging.getLogger(__name__)

_MOST_LACKING = 0.5
"""Share of the tensors outside the head that weights may lack: a pooler or a last norm is often
left out, but half a model is another model."""


def build_random(auto: str, config: Any, options: Mapping[str, Any]) -> nn.Module:
    """Build with random weights.

    Args:
        auto: Name of transformers' class that picks the architecture, such as
            `AutoModelForCausalLM`.
        config: A `PretrainedConfig`.
        options: `dtype`, and `attn_implementation` where it is chosen.

    Raises:
        ConfigError: The architecture cannot have such sizes.
    """
    import transformers

    changes = {"dtype": torch.float32} if options["dtype"] == "auto" else {}
    try:
        with quiet_transformers():
            return getattr(transformers, auto).from_config(
                config, trust_remote_code=False, **{**options, **changes}
            )
    except Exception as error:  # a combination that only the architecture's own code refuses
        raise ConfigError(
            f"model.config: {config.model_type} cannot be built so: {first_line(error)}"
        ) from error


def load_folder_or_id(
    auto: str, place: str, num_classes: int | None, options: Mapping[str, Any]
) -> nn.Module:
    """Load weights with the configuration that lies beside them.

    Args:
        auto: As for `build_random`.
        place: A folder or a hub id.
        num_classes: Width of the head; None: that of the weights.
        options: As for `build_random`.

    Raises:
        ConfigError: It is another kind of model.
        CheckpointError: It is missing, damaged, or most of the model is not in it.
        MachineError: The hub cannot be reached.
    """
    import transformers

    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise CheckpointError(f"{KEY}: {place} holds no config.json, so no model of transformers")
    config = config_from_hub(auto, place)
    if num_classes is not None:
        config.num_labels = num_classes
    load = getattr(transformers, auto).from_pretrained
    model = _load(load, place, place, config, {**options, "trust_remote_code": False})
    if getattr(config, "num_channels", None) is not None:
        mean, std = _pixel_statistics(place)
        declare(model, dataclasses.replace(interface_of(model), mean=mean, std=std))
    return model


def load_file_of(auto: str, config: Any, path: Path, options: Mapping[str, Any]) -> nn.Module:
    """Load weights that have no configuration beside them.

    Names may be those in memory or those on the hub, which transformers translates.

    Args:
        auto: As for `build_random`.
        config: What the weights are of.
        path: A .safetensors or .pth file.
        options: As for `build_random`.

    Raises:
        ConfigError: The architecture cannot have such sizes.
        CheckpointError: It is damaged, or most of the model is not in it.
    """
    weights = read_weights(path)
    with torch.device("meta"):
        architecture: Any = type(build_random(auto, config, options))
    more = {**options, "state_dict": weights}
    return _load(architecture.from_pretrained, None, str(path), config, more)


def _load(
    load: Any, place: str | None, source: str, config: Any, options: Mapping[str, Any]
) -> nn.Module:
    with loading(source), quiet_transformers():
        model, report = load(
            place,
            config=config,
            ignore_mismatched_sizes=True,  # of the head; others are refused below
            output_loading_info=True,
            **options,
        )
    lacking = set(report["missing_keys"])
    misfits = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    _check_report(model, source, lacking, misfits)
    return model


def _check_report(model: nn.Module, source: str, lacking: set[str], misfits: set[str]) -> None:
    """Say which head is new, and refuse weights that leave most of the model random."""
    heads = find_heads(model)

    def in_head(name: str) -> bool:
        return any(name == head or name.startswith(f"{head}.") for head in heads)

    wrong = sorted(name for name in misfits if not in_head(name))
    if wrong:
        raise CheckpointError(
            f"{KEY}: {source} has '{wrong[0]}' in another shape than its configuration says"
            f" ({len(wrong)} tensors)"
        )
    outside = sorted(name for name in lacking if not in_head(name))
    body = sum(not in_head(name) for name, _ in model.named_parameters())
    if len(outside) > _MOST_LACKING * body:
        raise CheckpointError(
            f"{KEY}: {source} lacks {len(outside)} of the {body} tensors of this "
            f"{type(model).__name__}, such as '{outside[0]}'; it is of another model"
        )
    if outside:
        _log.warning(
            f"{source} lacks {', '.join(outside[:4])}{' …' if len(outside) > 4 else ''}"
            f" ({len(outside)} tensors); they are random"
        )
    if any(in_head(name) for name in lacking | misfits):
        config: Any = model.config
        say_new_head(heads[0], config.num_labels)


def _pixel_statistics(place: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation that the model's own preprocessing uses, where it says so."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with quiet_transformers():
            processing, _ = ImageProcessingMixin.get_image_processor_dict(place)
    except (OSError, ValueError):
        return None, None
    mean, std = processing.get("image_mean"), processing.get("image_std")
    if processing.get("do_normalize", True) and mean and std:
        return tuple(mean), tuple(std)
    return None, None
