"""What memory-saving backward passes compute, as plain functions on tensors without autograd.

Each is written once in PyTorch. On a large enough tensor, and where a compiler is at hand, it runs
compiled by Inductor, fused, on CPU and GPU; else the same function runs operator by operator.
"""

from efftrain.memory.kernels.activation import (
    ACTIVATIONS,
    Activation,
    activate,
    activation_backward,
)
from efftrain.memory.kernels.batch_norm import (
    batch_norm_act,
    batch_norm_act_again,
    batch_norm_act_backward,
)
from efftrain.memory.kernels.bits import (
    add_relu,
    mask_grad,
    memory_format_of,
    pack_bits,
    unpack_bits,
)
from efftrain.memory.kernels.gated import gated, gated_backward
from efftrain.memory.kernels.last_norm import layer_norm_backward, rms_norm, rms_norm_backward
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
    "layer_norm_backward",
    "mask_grad",
    "max_pool2d",
    "max_pool2d_backward",
    "memory_format_of",
    "pack_bits",
    "rms_norm",
    "rms_norm_backward",
    "unpack_bits",
]
