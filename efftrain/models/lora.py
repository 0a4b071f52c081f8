"""Low-rank adapters (LoRA) through Hugging Face peft, put into a model and merged into it again.

Here peft's layers are made and unmade, and nothing else: what trains, what a delta holds and what a
run reports follow the parameters' names, as for every other method.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from efftrain.errors import ConfigError
from efftrain.optional import require
from efftrain.peft import find_heads
from efftrain.peft.methods import is_adapter
from efftrain.peft.patterns import did_you_mean

_NAME = "default"  # peft's own name of an adapter that nobody named


def add_lora(
    model: nn.Module,
    r: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    target_modules: Iterable[str] | None = None,
) -> tuple[str, ...]:
    """Put a low-rank adapter beside layers: W x becomes W x + (alpha / r) B A x, with B = 0 at first.

    The layer itself moves to `<path>.base_layer`. Train the adapters with `select(model, "lora")` or
    `"norm+lora"`. A delta that holds them loads on a base on which this was called, too.

    Args:
        model: Changed in place; computes the same until the adapters are trained.
        r: Rank.
        alpha: Its weight, relative to the rank.
        dropout: Of the adapter's input while training.
        target_modules: Paths, their last parts (`q_proj`) or globs. By default every linear layer
            and convolution outside the head that an adapter can be merged into: grouped
            convolutions, tied weights and layers that their owner only reads are left out.

    Returns:
        Paths of the layers.

    Raises:
        ConfigError: A target matches nothing, or no layer can take an adapter. Where it is peft
            that refuses a target, layers before it have theirs already.
        MachineError: peft is not installed.

    Source: huggingface/peft, `inject_adapter_in_model`
    """
    peft: Any = require("peft", extra="peft")
    if any(map(is_adapter, dict(model.named_parameters()))):
        raise ConfigError("peft.method=lora: this model has adapters already; merge_lora first")
    if target_modules is None:
        paths = _linear_layers(model)
    else:
        targets = [target_modules] if isinstance(target_modules, str) else [*target_modules]
        paths = _matching(model, targets)
        _refuse_unmergeable(model, paths)
    if not paths:
        raise ConfigError(
            f"peft.method=lora: {type(model).__name__} has no linear layer or convolution outside its "
            "head that can take an adapter; name layers with peft.lora.target_modules"
        )
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    config = peft.LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(map(re.escape, paths)),  # a list would match the ends of paths
    )
    try:
        with warnings.catch_warnings():
            # GPT-2's layers keep their weight transposed; peft sees that, and says so each time
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            peft.inject_adapter_in_model(config, model, adapter_name=_NAME)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"peft.lora.target_modules: {str(error).splitlines()[0]}") from error
    for name, parameter in model.named_parameters():
        if not is_adapter(name):
            parameter.requires_grad_(trains[name.replace(".base_layer.", ".")])
    return paths


def merge_lora(model: nn.Module) -> tuple[str, ...]:
    """Add every adapter to the weight that it lies beside; what is left is a plain model.

    Args:
        model: Changed in place.

    Returns:
        Paths of the layers.

    Raises:
        ConfigError: The model has no adapters, or peft cannot merge one of them.
        MachineError: peft is not installed.
    """
    peft: Any = require("peft", extra="peft")
    kind = peft.tuners.tuners_utils.BaseTunerLayer
    layers: dict[str, Any] = {
        path: one for path, one in model.named_modules() if isinstance(one, kind)
    }
    if not layers:
        raise ConfigError("merge_lora: this model has no adapters; add_lora puts them there")
    for path, layer in layers.items():
        try:
            layer.merge(safe_merge=True)
        except (NotImplementedError, ValueError) as error:  # peft raises either
            raise ConfigError(
                f"peft.method=lora: the adapter of {path} cannot be merged: {error}"
            ) from error
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent).register_module(name, layer.get_base_layer())
    delattr(model, "peft_config")
    return tuple(layers)


def _linear_layers(model: nn.Module) -> tuple[str, ...]:
    """Layers that compute with their weight in torch's own way, once, and are really called."""
    try:
        heads = find_heads(model)
    except ConfigError:
        heads = ()
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    read_only = {
        f"{path}.out_proj"
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    found: list[str] = []
    for path, module in model.named_modules():
        in_head = any(f"{path}.".startswith(f"{head}.") for head in heads)
        if not path or in_head or path in read_only or not _is_plain(module):
            continue
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and owners[id(weight)] == 1:
            found.append(path)
    return tuple(found)


def _is_plain(module: nn.Module) -> bool:
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if isinstance(module, kind):
            return type(module).forward is kind.forward and getattr(module, "groups", 1) == 1
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # GPT-2's, in transformers


def _matching(model: nn.Module, targets: list[str]) -> tuple[str, ...]:
    modules = [path for path, _ in model.named_modules() if path]
    problems = [
        f"peft.lora.target_modules={target} matches no module{did_you_mean(target, _ends(modules))}"
        for target in targets
        if not any(_means(target, path) for path in modules)
    ]
    if problems:
        raise ConfigError(*problems)
    return tuple(path for path in modules if any(_means(target, path) for target in targets))


def _refuse_unmergeable(model: nn.Module, paths: Iterable[str]) -> None:
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            refused, what = {path, f"{path}.out_proj"}, "(a part of) nn.MultiheadAttention"
        elif getattr(module, "groups", 1) != 1:
            refused, what = {path}, "a grouped convolution"
        else:
            continue
        for one in refused.intersection(paths):
            raise ConfigError(
                f"peft.lora.target_modules: {one} is {what}, into which no adapter can be merged; "
                "leave it out"
            )


def _means(target: str, path: str) -> bool:
    return path == target or path.endswith(f".{target}") or fnmatchcase(path, target)


def _ends(paths: Iterable[str]) -> set[str]:
    """Every path, and its last part, which is how targets are mostly named."""
    return {end for path in paths for end in (path, path.rpartition(".")[2])}
