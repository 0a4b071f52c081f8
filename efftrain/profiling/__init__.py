"""What a model costs, before it runs.

```python
from efftrain.profiling import profile

report = profile(model, batch, loss_fn, optimizer=torch.optim.AdamW)
report.macs.forward, report.flops.step, report.memory.saved.saved_bytes
report.to_dict()  # JSON
```

Nothing is changed and nothing is computed: the step runs on tensors that have shapes but no values.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efftrain.profiling.activations import count_activations as count_activations
    from efftrain.profiling.count import count_forward as count_forward
    from efftrain.profiling.count import count_step as count_step
    from efftrain.profiling.nan_probe import verify_receptive_field as verify_receptive_field
    from efftrain.profiling.params import count_parameters as count_parameters
    from efftrain.profiling.receptive_field import find_receptive_field as find_receptive_field
    from efftrain.profiling.report import Profile as Profile
    from efftrain.profiling.report import profile as profile
    from efftrain.profiling.saved import find_saved as find_saved

_HOMES = {
    "Profile": "report",
    "count_activations": "activations",
    "count_forward": "count",
    "count_parameters": "params",
    "count_step": "count",
    "find_receptive_field": "receptive_field",
    "find_saved": "saved",
    "profile": "report",
    "verify_receptive_field": "nan_probe",
}

__all__ = [
    "Profile",
    "count_activations",
    "count_forward",
    "count_parameters",
    "count_step",
    "find_receptive_field",
    "find_saved",
    "profile",
    "verify_receptive_field",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: a callback that counts parameters loads no more."""
    if name not in _HOMES:
        raise AttributeError(f"module 'efftrain.profiling' has no attribute '{name}'")
    return getattr(importlib.import_module(f"efftrain.profiling.{_HOMES[name]}"), name)
