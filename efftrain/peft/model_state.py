"""A model's parameters and buffers by state-dict key: as they are, and without the loaded delta."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from efftrain.peft.bn_stats import STILL, find_tracking
from efftrain.peft.norm_rule import holds_only_vectors
from efftrain.peft.precision import LOW
from efftrain.peft.record import record_of
from efftrain.peft.tree import join, own_buffers, own_parameters, walk


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by state-dict key, each tensor once."""
    state: dict[str, Tensor] = dict(model.named_parameters())
    for path, module in walk(model):
        for name, buffer in own_buffers(module, persistent=True).items():
            state[join(path, name)] = buffer
    return state


def base_of(model: nn.Module) -> dict[str, Tensor]:
    """The state as it is without the loaded delta."""
    return {**state_of(model), **record_of(model).base}


def frozen_of(model: nn.Module, keys: Collection[str]) -> dict[str, Tensor]:
    """What a delta with these keys leaves as it was, in the data type that it came in."""
    low = record_of(model).low
    return {
        name: low.get(name, tensor) for name, tensor in base_of(model).items() if name not in keys
    }


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all running statistics, on the CPU, by state-dict key; without values on meta."""
    return {
        join(path, name): buffer.detach().to("meta" if buffer.is_meta else "cpu").clone()
        for path, layer in find_tracking(model)
        for name, buffer in own_buffers(layer, persistent=True).items()
    }


def moved_statistics(model: nn.Module) -> set[str]:
    """Keys of the running statistics that belong into the delta."""
    record = record_of(model)
    now = running_statistics(model)
    if record.bn_stats not in STILL:
        return set(now)  # they follow the data, or nobody said that they do not
    return {
        name
        for name, buffer in now.items()
        if name not in record.buffers
        or not torch.equal(buffer, record.buffers[name].to(buffer.dtype))
    }


def held_in_float32(model: nn.Module, values: Mapping[str, Tensor]) -> list[str]:
    """Keys of norms that the delta holds in float32 and the model in less."""
    found: list[str] = []
    for path, module in walk(model):
        if not holds_only_vectors(module):
            continue
        for name, tensor in {**own_parameters(module), **own_buffers(module)}.items():
            value = values.get(join(path, name))
            if value is not None and value.dtype == torch.float32 and tensor.dtype in LOW:
                found.append(join(path, name))
    return found


def write_values(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into a model's tensors: data type and device are the model's."""
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
