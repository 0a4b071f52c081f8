"""The two counting rules of the project, and the units that its figures come in.

One multiply-accumulate is two floating point operations: 1 MAC = 2 FLOP. A figure named MACs counts
the multiply-accumulates of convolutions, linear layers, matrix products, attention and recurrent
cells; a figure named FLOPs is twice that plus every other arithmetic operation.

KiB, MiB and GiB are powers of 1024; kB, MB and GB are powers of 1000. They never mix, and a tag or a
variable carries its unit in its name.
"""

from __future__ import annotations

FLOPS_PER_MAC = 2

KIB = 1024
MIB = 1024**2
GIB = 1024**3

GIGA = 10**9

MS_PER_S = 1000.0
NS_PER_MS = 1e6
