"""What a model takes and gives: how samples have to be prepared for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.peft import find_head

_KEY = "_efftrain_interface"

_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")


@dataclass(frozen=True)
class ModelInterface:
    """What is known of a model without running it; None where it does not say.

    Attributes:
        num_classes: Scores that a classifier gives.
        channels: Of the images that it takes.
        image_size: Height and width that it was made for, in pixels.
        any_image_size: Whether it takes other sizes as well.
        min_image_size: The smallest height and width, in pixels, where it takes other sizes.
        mean: Of the pixels in 0..1 that it was trained on, one for each channel.
        std: Likewise.
        vocab_size: Token ids that it takes, from 0.
        max_length: Tokens in a sequence, at most.
        source: Hub id or folder that it came from; its tokenizer lies beside the weights.
        dtype: Of its parameters, and so of the images.
    """

    num_classes: int | None = None
    channels: int | None = None
    image_size: tuple[int, int] | None = None
    any_image_size: bool = False
    min_image_size: int = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    vocab_size: int | None = None
    max_length: int | None = None
    source: str | None = None
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """In words, for a message: "3 channels, 224 x 224 pixels"."""
        parts = []
        if self.channels is not None:
            parts.append(f"{self.channels} channel{'s' if self.channels > 1 else ''}")
        if self.image_size is not None and not self.any_image_size:
            parts.append(f"{self.image_size[0]} x {self.image_size[1]} pixels")
        if self.vocab_size is not None:
            parts.append(f"token ids below {self.vocab_size:,}")
        if self.max_length is not None:
            parts.append(f"up to {self.max_length:,} tokens")
        return ", ".join(parts)


def declare(model: nn.Module, interface: ModelInterface) -> None:
    """Keep on a model what its builder knows; it is copied and pickled with the model."""
    model.__dict__[_KEY] = interface


def interface_of(model: nn.Module) -> ModelInterface:
    """What a model takes and gives.

    Args:
        model: Any module: what its builder declared is believed first, then its Hugging Face
            configuration, then its first convolution and its head.
    """
    declared = model.__dict__.get(_KEY)
    if isinstance(declared, ModelInterface):
        return declared
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "model_type"):
        found = interface_of_config(config)
        length = _positions(model) or found.max_length
        return replace(found, max_length=length, dtype=_dtype(model))
    first = next((one for one in model.modules() if isinstance(one, nn.Conv2d)), None)
    return ModelInterface(
        num_classes=_head_width(model),
        channels=None if first is None else first.in_channels,
        any_image_size=first is not None,
        dtype=_dtype(model),
    )


def interface_of_config(config: Any) -> ModelInterface:
    """What a Hugging Face configuration says.

    Args:
        config: A `PretrainedConfig`; of several (image and text), the image's part counts.
    """
    own = getattr(config, "vision_config", None) or config
    channels = getattr(own, "num_channels", None)
    size = _pair(getattr(own, "image_size", None))
    text = getattr(config, "text_config", None) or config
    positions = (getattr(text, name, None) for name in _POSITIONS)
    return ModelInterface(
        num_classes=config.num_labels,
        channels=channels,
        image_size=size,
        any_image_size=channels is not None and size is None,
        vocab_size=getattr(text, "vocab_size", None),
        max_length=next((length for length in positions if length), None),
        source=getattr(config, "_name_or_path", None) or None,
    )


def _positions(model: nn.Module) -> int | None:
    """Length for models such as RoBERTa, which begin to count behind the id of the padding."""
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            skipped = module.padding_idx
            return None if skipped is None else module.num_embeddings - skipped - 1
    return None


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(size):
        return int(size[0]), int(size[1])
    return None


def _dtype(model: nn.Module) -> torch.dtype:
    """Of the first parameter that has no integers, which is where the input arrives."""
    floating = (one.dtype for one in model.parameters() if one.is_floating_point())
    return next(floating, torch.float32)


def _head_width(model: nn.Module) -> int | None:
    try:
        head = model.get_submodule(find_head(model))
    except ConfigError:
        return None
    width = getattr(head, "out_features", getattr(head, "out_channels", None))
    return width if isinstance(width, int) else None
