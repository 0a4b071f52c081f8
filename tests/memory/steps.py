"""Gradients and bytes of one step, for the tests of this folder."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from efftrain.memory import reduce_memory
from tests.profiling.allocator import kept_for_backward

NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip


def reduced_copy(model: nn.Module, mode: str = "exact") -> nn.Module:
    twin = copy.deepcopy(model)
    reduce_memory(twin, mode)
    return twin


def call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def squares(output: Any) -> Tensor:
    """A loss whose gradient differs from place to place."""
    leaves = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    return torch.stack([(t.float() ** 2 + t.float()).mean() for t in leaves]).sum()


def gradients(model: nn.Module, batch: Any, loss: Callable[[Any], Tensor] = squares):
    """Of every trainable parameter, and of inputs that ask for one; and the loss itself."""
    model.zero_grad(set_to_none=True)
    inputs = [t for t in tree_leaves(batch) if isinstance(t, Tensor) and t.requires_grad]
    for tensor in inputs:
        tensor.grad = None
    torch.manual_seed(1)  # dropout
    value = loss(call(model, batch))
    value.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    found |= {f"input {i}": t.grad.clone() for i, t in enumerate(inputs) if t.grad is not None}
    model.zero_grad(set_to_none=True)
    return {**found, "loss": value.detach()}


def error(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Of all gradients as one vector, relative; infinite where one is missing or not a number."""
    if expected.keys() != found.keys():
        return float("inf")
    off = sum(((expected[n].double() - found[n].double()) ** 2).sum() for n in expected)
    size = sum((expected[n].double() ** 2).sum() for n in expected)
    value = float((off / size) ** 0.5)
    return value if value == value else float("inf")


def live_bytes(model: nn.Module, batch: Any) -> int:
    """What the allocator holds between forward and backward, behind a loss that keeps nothing."""
    return kept_for_backward(lambda: total(call(model, batch)))


def saved_bytes(model: nn.Module, batch: Any) -> int:
    """As `live_bytes`, counted by what autograd is given to keep; quicker on small layers."""
    there = [*model.parameters(), *model.buffers(), *tree_leaves(batch)]
    held = {t.untyped_storage().data_ptr() for t in there if isinstance(t, Tensor)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = total(call(model, batch))
    found = sum(kept.values())
    del value  # until here it held them, so that no two had one address
    return found


def total(output: Any) -> Tensor:
    """A loss that keeps nothing."""
    return torch.stack(
        [t.sum() for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    ).sum()


def train_norms_alone(model: nn.Module, *others: str) -> nn.Module:
    """Freeze everything but the norms, by class or name, and parameters of the names given."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, NORMS) or type(module).__name__.endswith("Norm"):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if name.startswith(others):
            parameter.requires_grad_(True)
    return model


def randomize_norms(model: nn.Module) -> nn.Module:
    """Scales and shifts that are not 1 and 0, statistics that are not the batch's."""
    for module in model.modules():
        if not (isinstance(module, NORMS) or type(module).__name__.endswith("Norm")):
            continue
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers()]:
            with torch.no_grad():
                if name in ("weight", "running_var"):
                    tensor.uniform_(0.5, 1.5)
                elif name in ("bias", "running_mean"):
                    tensor.normal_(0, 0.2)
    return model
