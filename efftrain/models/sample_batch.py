"""A batch made of nothing but its shape, for a step that is rehearsed and not learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from efftrain.errors import ConfigError
from efftrain.models.interface import ModelInterface, interface_of

IMAGE_SIZE = (224, 224)
"""ImageNet's usual crop, which published figures are of."""

CHANNELS = 3


def sample_batch(
    model: nn.Module,
    *,
    samples: int = 1,
    input_size: Sequence[int] | None = None,
    seq_len: int = 128,
    device: str = "cpu",
) -> Any:
    """Make a batch that a model takes.

    Args:
        model: Says what it takes: token ids or an image, and of which size.
        samples: Of the batch.
        input_size: Of one sample; None: the size that the model was made for, else 3 x 224 x 224.
        seq_len: Tokens of one sample, for a model that takes token ids.
        device: "cpu" or "meta".

    Returns:
        `{"input_ids": [samples, seq_len]}`, every token 1, for a model of token ids; otherwise a
        tensor of zeros [samples, *input_size].

    Raises:
        ConfigError: The model takes fewer tokens, or `input_size` has a side below 1.
    """
    interface = interface_of(model)
    if interface.vocab_size is not None and interface.channels is None and input_size is None:
        if interface.max_length is not None and seq_len > interface.max_length:
            raise ConfigError(
                f"seq_len={seq_len}: {type(model).__name__} takes at most {interface.max_length:,} tokens"
            )
        return {"input_ids": torch.ones(samples, seq_len, dtype=torch.long, device=device)}
    size = list(input_size) if input_size is not None else _image_size(interface)
    if not size or min(size) < 1:
        raise ConfigError(f"input_size={size}: every side must be >= 1, such as [3,224,224]")
    return torch.zeros(samples, *size, dtype=interface.dtype, device=device)


def _image_size(interface: ModelInterface) -> list[int]:
    channels = interface.channels if interface.channels is not None else CHANNELS
    return [channels, *(interface.image_size or IMAGE_SIZE)]
