"""Move the scale and shift of norms into neighbouring layers, where that changes nothing.

A batch norm in eval mode is a fixed scale and shift of channels: it moves into the linear layer or
convolution before it, or else into those after it. The scale and shift of a layer, group or root mean
square norm come last in it: they move into the layers after it, if all of these are linear.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn

from efftrain.surgery.equality import check_equal
from efftrain.surgery.inputs import Inputs, call, random_like
from efftrain.surgery.neighbours import Neighbours
from efftrain.surgery.norm import (
    can_drop_affine,
    drop_affine,
    find_own_affine,
    keeps_statistics,
    what_follows,
)
from efftrain.surgery.report import FoldedNorm, FoldReport, LeftNorm
...
