"""What a run trained, in the format of Hugging Face peft: adapter_config.json beside a safetensors file.

Two of peft's methods can hold it. LoRA takes the adapters, and norms or a head as further modules to
save; LN tuning takes norms of any kind alone, and a head beside them. Such a folder loads with
`peft.PeftModel.from_pretrained(base, folder)` on the base model.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from efftrain.errors import ConfigError
from efftrain.models.interface import interface_of
from efftrain.optional import require
from efftrain.peft import Delta
from efftrain.peft.methods import is_adapter

_PREFIX = "base_model.model."  # of peft's own wrapper, under which it looks for every key
_FORMATS = "Hugging Face peft has formats for lora and for norms, each with or without a head"


def write_adapter(model: nn.Module, delta: Delta, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        model: With the delta loaded; adapters not merged.
        delta: What trained.
        folder: An existing folder.

    Raises:
        ConfigError: The run trained something that peft has no format for.
        MachineError: peft is not installed.
    """
    peft: Any = require("peft", extra="peft")
    saved = _saved_modules(model, delta)
    if any(map(is_adapter, delta.tensors)):
        config = copy.copy(getattr(model, "peft_config")["default"])  # noqa: B009
        tensors = dict(peft.get_peft_model_state_dict(model))
        tensors = {f"{_PREFIX}{name}": tensor for name, tensor in tensors.items()}
        config.modules_to_save = [*saved] or None
        plain = saved
    else:
        norms = [path for path, role in saved.items() if role == "norm"]
        plain = {path: role for path, role in saved.items() if role != "norm"}
        config = peft.LNTuningConfig(
            target_modules="|".join(map(re.escape, norms)), modules_to_save=[*plain] or None
        )
        tensors = {}
        for path in norms:
            tensors |= _state(model, path, f"{_PREFIX}{path}.ln_tuning_layers.")
    for path in plain:
        tensors |= _state(model, path, f"{_PREFIX}{path}.")
    config.base_model_name_or_path = interface_of(model).source
    config.inference_mode = True
    config.save_pretrained(str(folder))
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(held, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _saved_modules(model: nn.Module, delta: Delta) -> dict[str, str]:
    """Modules that go into the file whole, with their role."""
    wrong = {
        role: names[0]
        for role, names in delta.groups.items()
        if role not in ("norm", "head") and not all(map(is_adapter, names))
    }
    if wrong:
        role, name = next(iter(wrong.items()))
        raise ConfigError(
            f"to=peft: this run (peft.method={delta.method}) trained {name}, of the group {role}; "
            f"{_FORMATS}; use to=merged"
        )
    roles = {name: role for role, names in delta.groups.items() for name in names}
    saved: dict[str, str] = {}
    for name in delta.tensors:
        if not is_adapter(name):  # without a role: running statistics that moved
            saved.setdefault(name.rpartition(".")[0], roles.get(name, "norm"))
    has_adapters = any(map(is_adapter, delta.tensors))
    if not has_adapters and "norm" not in saved.values():
        raise ConfigError(
            f"to=peft: this run (peft.method={delta.method}) trained a head alone; {_FORMATS}; use "
            "to=merged"
        )
    beside = [path for path, role in saved.items() if has_adapters or role != "norm"]
    return saved | _same_ends(model, beside)


def _same_ends(model: nn.Module, paths: list[str]) -> dict[str, str]:
    """Further modules that peft takes for modules to save, as it compares the ends of paths."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if path in paths or not any(path.endswith(one) for one in paths):
            continue
        if next(module.children(), None) is not None:
            raise ConfigError(
                f"to=peft: the name of {path} ends as that of a module to save, and peft would take "
                "it for one; use to=merged"
            )
        if module.state_dict():
            found[path] = "other"
    return found


def _state(model: nn.Module, path: str, prefix: str) -> dict[str, Tensor]:
    module = model.get_submodule(path)
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
