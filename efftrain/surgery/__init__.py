"""Change a model and prove that it still computes the same.

```python
from efftrain import surgery

report = surgery.fold(model, images)
print(report)  # what was folded, what was not and why, and the largest error
report.model  # a plain module
```

Needs torch alone.
"""

from efftrain.surgery.equality import TOLERANCES, Equality, check_equal
from efftrain.surgery.fold import fold
from efftrain.surgery.inputs import Inputs, call, random_like
from efftrain.surgery.report import FoldedNorm, FoldReport, LeftNorm
from efftrain.surgery.structure import restructure

__all__ = [
    "TOLERANCES",
    "Equality",
    "FoldReport",
    "FoldedNorm",
    "Inputs",
    "LeftNorm",
    "call",
    "check_equal",
    "fold",
    "random_like",
    "restructure",
]
