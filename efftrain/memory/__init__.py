"""What backward keeps: only what the gradients of the trainable parameters need.

```python
from efftrain import memory

report = memory.reduce_memory(model, "exact")  # after choosing what trains
...  # train with any loop
memory.restore_memory(model)
```

Nothing is wrapped: module names, types and state-dict keys stay as they were. Needs torch alone.
"""

from efftrain.memory.check import GradientCheck, check_gradients
from efftrain.memory.forward import plain_backward
from efftrain.memory.report import LeftModule, MemoryReport, ReducedModule
from efftrain.memory.swap import MODES, reduce_memory, restore_memory

__all__ = [
    "MODES",
    "GradientCheck",
    "LeftModule",
    "MemoryReport",
    "ReducedModule",
    "check_gradients",
    "plain_backward",
    "reduce_memory",
    "restore_memory",
]
