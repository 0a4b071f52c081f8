"""What memory-saving backward passes compute, as plain functions on tensors without autograd.

Each is written once in PyTorch, and runs operator by operator where nothing better is at hand. On large
enough tensors it runs fused: on GPU as Inductor compiles it, on CPU (fp32, contiguous) from the C++ in
`cpp/`, built at first use: what Inductor makes for CPU takes 1.3 to 1.5 times as long for BatchNorm, and
several times as long where bits or bytes are kept (scripts/benchmarks/memory_kernels.py).
"""

from efftrain.memory.kernels.activation import (
    ACTIVATIONS,
    Activation,
    activate,
    activation_backward,
)
from efftrain.memory.kernels.backend import Backend, get_backend, set_backend, using
from efftrain.memory.kernels.batch_norm import (
    batch_norm_act,
    batch_norm_act_again,
    batch_norm_act_backward,
)
from efftrain.memory.kernels.bits import (
    add_relu,
    mask_grad,
    pack_bits,
    unpack_bits,
)
from efftrain.memory.kernels.gated import gated, gated_backward
from efftrain.memory.kernels.last_norm import layer_norm_backward, rms_norm, rms_norm_backward
from efftrain.memory.kernels.layout import memory_format_of
from efftrain.memory.kernels.max_pool import max_pool2d, max_pool2d_backward
from efftrain.memory.kernels.quantized import (
    QUANTIZABLE,
    batch_norm_act_8bit,
    batch_norm_act_8bit_backward,
    gelu_8bit,
    gelu_8bit_backward,
)

__all__ = [
    "ACTIVATIONS",
    "QUANTIZABLE",
    "Activation",
    "Backend",
    "activate",
    "activation_backward",
    "add_relu",
    "batch_norm_act",
    "batch_norm_act_8bit",
    "batch_norm_act_8bit_backward",
    "batch_norm_act_again",
    "batch_norm_act_backward",
    "gated",
    "gated_backward",
    "gelu_8bit",
    "gelu_8bit_backward",
    "get_backend",
    "layer_norm_backward",
    "mask_grad",
    "max_pool2d",
    "max_pool2d_backward",
    "memory_format_of",
    "pack_bits",
    "rms_norm",
    "rms_norm_backward",
    "set_backend",
    "unpack_bits",
    "using",
]
