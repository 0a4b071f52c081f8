"""efftrain: fine-tune only what matters in a pretrained model, and know exactly what it costs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efftrain.errors import EfftrainError as EfftrainError
    from efftrain.memory import reduce_memory as reduce_memory
    from efftrain.memory import restore_memory as restore_memory
    from efftrain.peft import apply as apply
    from efftrain.peft import find_norms as find_norms
    from efftrain.peft import load_delta as load_delta
    from efftrain.peft import save_delta as save_delta
    from efftrain.peft import select as select
    from efftrain.profiling import Profile as Profile
    from efftrain.profiling import profile as profile
    from efftrain.surgery import fold as fold

__version__ = "0.1.0"

_HOMES = {
    "EfftrainError": "efftrain.errors",
    "Profile": "efftrain.profiling",
    "apply": "efftrain.peft",
    "find_norms": "efftrain.peft",
    "fold": "efftrain.surgery",
    "load_delta": "efftrain.peft",
    "profile": "efftrain.profiling",
    "reduce_memory": "efftrain.memory",
    "restore_memory": "efftrain.memory",
    "save_delta": "efftrain.peft",
    "select": "efftrain.peft",
}

__all__ = [
    "EfftrainError",
    "Profile",
    "apply",
    "find_norms",
    "fold",
    "load_delta",
    "profile",
    "reduce_memory",
    "restore_memory",
    "save_delta",
    "select",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import efftrain` alone loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'efftrain' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
