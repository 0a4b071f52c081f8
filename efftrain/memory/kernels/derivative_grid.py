"""The 256 even steps that stand for GELU's derivative.

The derivative has its extremes at x = -sqrt(2) and sqrt(2): 0.5 -+ (0.5 erf(1) + exp(-1) / sqrt(pi)).
The tanh approximation stays within 0.0003 of these.
"""

from __future__ import annotations

import math

_SWING = 0.5 * math.erf(1) + math.exp(-1) / math.sqrt(math.pi)

LOW = 0.5 - _SWING
STEP = 2 * _SWING / 255
