"""Which parameters train: find the norms, select, apply, and save what the training changed.

```python
from efftrain import peft

selection = peft.select(model, "norm")  # prints like a table; changes nothing
peft.apply(model, selection, bn_stats="running")
...  # train with any loop
peft.save_delta(model, "task.safetensors")
```

Nothing is wrapped: module names, types and state-dict keys stay as they were. Needs torch and
safetensors alone.
"""

from efftrain.peft.apply import apply
from efftrain.peft.blocks import find_blocks
from efftrain.peft.bn_stats import get_bn_stats, set_bn_stats
from efftrain.peft.delta import (
    collect_delta,
    interpolate,
    load_delta,
    save_delta,
    swap_delta,
    unload_delta,
)
from efftrain.peft.delta_file import Delta, DeltaInfo, read_delta, write_delta
from efftrain.peft.heads import find_head, find_heads
from efftrain.peft.methods import METHODS
from efftrain.peft.norms import NormSite, find_norms
from efftrain.peft.param_groups import param_groups
from efftrain.peft.recalibrate import Recalibration, recalibrate
from efftrain.peft.select import select
from efftrain.peft.selection import Selection

__all__ = [
    "METHODS",
    "Delta",
    "DeltaInfo",
    "NormSite",
    "Recalibration",
    "Selection",
    "apply",
    "collect_delta",
    "find_blocks",
    "find_head",
    "find_heads",
    "find_norms",
    "get_bn_stats",
    "interpolate",
    "load_delta",
    "param_groups",
    "read_delta",
    "recalibrate",
    "save_delta",
    "select",
    "set_bn_stats",
    "swap_delta",
    "unload_delta",
    "write_delta",
]
