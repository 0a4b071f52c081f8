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

from efftrain.peft.affine import AddedAffine, add_affine, thaw_norms
from efftrain.peft.apply import apply
from efftrain.peft.blending import interpolate
from efftrain.peft.blocks import find_blocks
from efftrain.peft.bn_stats import get_bn_stats, set_bn_stats
from efftrain.peft.coverage import Coverage, norm_coverage
from efftrain.peft.delta import (
    collect_delta,
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
from efftrain.peft.precision import hold_float32, release_float32
from efftrain.peft.recalibrate import Recalibration, recalibrate
from efftrain.peft.select import select
from efftrain.peft.selection import Selection
from efftrain.peft.sites import SITES, find_sites
from efftrain.peft.ssf import add_ssf, merge_ssf

__all__ = [
    "METHODS",
    "SITES",
    "AddedAffine",
    "Coverage",
    "Delta",
    "DeltaInfo",
    "NormSite",
    "Recalibration",
    "Selection",
    "add_affine",
    "add_ssf",
    "apply",
    "collect_delta",
    "find_blocks",
    "find_head",
    "find_heads",
    "find_norms",
    "find_sites",
    "get_bn_stats",
    "hold_float32",
    "interpolate",
    "load_delta",
    "merge_ssf",
    "norm_coverage",
    "param_groups",
    "read_delta",
    "recalibrate",
    "release_float32",
    "save_delta",
    "select",
    "set_bn_stats",
    "swap_delta",
    "thaw_norms",
    "unload_delta",
    "write_delta",
]
