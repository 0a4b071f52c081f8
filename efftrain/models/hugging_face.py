"""Models of transformers: image and text classifiers and causal language models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.models.hub import KEY, local_path
from efftrain.models.hugging_face_config import config_from_hub, config_of_type
from efftrain.models.hugging_face_weights import build_random, load_file_of, load_folder_or_id

Attention = Literal["eager", "sdpa"]
"""Others are fetched as code from the hub."""

Dtype = Literal["float32", "bfloat16", "float16", "auto"]


def hf_image(
    name: str | None = None,
    pretrained: bool | str = False,
    num_classes: int | None = 10,
    type: str | None = "vit",
    config: dict[str, Any] | None = None,
    dtype: Dtype = "float32",
    attention: Attention | None = None,
) -> nn.Module:
    """Build an image classifier of transformers.

    Args:
        name: Hub id or folder. With `pretrained=true` its weights are loaded; with false only its
            configuration is taken.
        pretrained: False for random weights; True for those of `name`; a hub id; a folder with
            config.json and weights, as on the hub; or a .safetensors file of what `name`, or else
            `type` and `config` describe.
        num_classes: Width of the head; a new one where the weights have another. None: theirs.
        type: As transformers calls the architecture; used where neither `name` nor `pretrained`
            says it.
        config: What differs from the type's own configuration.
        dtype: Of all parameters; `auto` takes that of the file.
        attention: Implementation; None leaves it to transformers.

    Returns:
        Takes `pixel_values` [N, C, H, W]; returns an output with `logits` [N, num_classes].

    Raises:
        ConfigError: No such type or configuration key, or the weights are of another kind.
        CheckpointError: The weights are missing, damaged or of another model.
        MachineError: The hub cannot be reached.
    """
    source = _Source("AutoModelForImageClassification", name, pretrained, type, config)
    return _build(source, num_classes, dtype, attention)


def hf_text(
    name: str | None = None,
    pretrained: bool | str = False,
    num_classes: int | None = 2,
    type: str | None = "bert",
    config: dict[str, Any] | None = None,
    dtype: Dtype = "float32",
    attention: Attention | None = None,
) -> nn.Module:
    """Build a text classifier of transformers.

    Arguments and errors are those of `hf_image`.

    Returns:
        Takes `input_ids` and `attention_mask` [N, T]; returns an output with `logits`
        [N, num_classes].
    """
    source = _Source("AutoModelForSequenceClassification", name, pretrained, type, config)
    return _build(source, num_classes, dtype, attention)


def hf_causal_lm(
    name: str | None = None,
    pretrained: bool | str = False,
    type: str | None = "llama",
    config: dict[str, Any] | None = None,
    dtype: Dtype = "float32",
    attention: Attention | None = None,
) -> nn.Module:
    """Build a causal language model of transformers.

    Arguments and errors are those of `hf_image`.

    Returns:
        Takes `input_ids` and `attention_mask` [N, T]; returns an output with `logits`
        [N, T, vocabulary].
    """
    source = _Source("AutoModelForCausalLM", name, pretrained, type, config)
    model = _build(source, None, dtype, attention)
    settings: Any = model.config
    settings.use_cache = False  # of keys and values: only generation reads it
    return model


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a model comes from.

    Attributes:
        auto: Name of transformers' class that picks the architecture.
        name: Hub id or folder.
        pretrained: Whether, or from where, weights are loaded.
        type: Architecture.
        config: What differs from its own configuration.
    """

    auto: str
    name: str | None
    pretrained: bool | str
    type: str | None
    config: Mapping[str, Any] | None


def _build(
    source: _Source, num_classes: int | None, dtype: Dtype, attention: Attention | None
) -> nn.Module:
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if attention is not None:
        options["attn_implementation"] = attention
    weights = source.pretrained
    if weights is True:
        if source.name is None:
            raise ConfigError(
                f"model.name: needs a hub id or a folder, as {KEY}=true; or name it there"
            )
        weights = source.name
    if not isinstance(weights, str):
        model = build_random(source.auto, _configure(source, num_classes), options)
    else:
        path = local_path(weights, "model.name" if source.pretrained is True else KEY)
        if path is not None and path.is_file():
            config = _configure(source, num_classes)
            model = load_file_of(source.auto, config, path, options)
        else:
            model = load_folder_or_id(source.auto, str(path or weights), num_classes, options)
    # `from_pretrained` leaves it in eval mode, and Lightning trains a model in the mode it is in
    return model.train()


def _configure(source: _Source, num_classes: int | None) -> Any:
    """The architecture, where no weights say it."""
    if source.name is not None:
        folder = local_path(source.name, "model.name")
        config = config_from_hub(source.auto, str(folder or source.name))
    else:
        config = config_of_type(source.auto, source.type, source.config or {})
    if num_classes is not None:
        config.num_labels = num_classes
    return config
