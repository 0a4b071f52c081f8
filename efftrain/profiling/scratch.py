"""Memory that torch's CPU kernels take inside one call and give back before it ends.

No tensor of the step shows it, so each kernel's need is written down here, as read off the allocator's
events (torch 2.13, oneDNN 3.12) and off the kernels' sources. An operator that is not listed takes
nothing worth counting, or nobody has looked yet. Devices other than the CPU are left out: the need of
cuDNN and of fused attention there depends on the algorithm that is chosen at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from efftrain.graph.observer import Call
from efftrain.profiling.convolution_scratch import (
    convolution_backward_scratch,
    convolution_scratch,
)
from efftrain.profiling.lstm_memory import lstm_backward_scratch, lstm_scratch


def scratch_bytes(call: Call) -> int:
    """Bytes that a call holds at its highest point beyond its results."""
    need = _NEEDS.get(call.operator.name)
    if need is None or not call.outputs or call.outputs[0].device.type != "cpu":
        return 0
    return max(0, need(call))


def _copies(call: Call, *positions: int) -> int:
    """The kernel reads these arguments in row-major order and copies those that are not."""
    tensors = (call.args[position] for position in positions)
    return sum(_size(tensor) for tensor in tensors if not tensor.is_contiguous())


def _batch_norm_backward(call: Call) -> int:
    """The dense kernel computes the input's gradient in a buffer of its own."""
    gradient, x = call.args[0], call.args[1]
    return _size(x) if _dense(gradient) and _dense(x) else 0


def _layer_norm_backward(call: Call) -> int:
    """Copies, and each thread's part of the weight's and the bias' gradient."""
    width = math.prod(call.args[2])
    return _copies(call, 0, 1) + 2 * torch.get_num_threads() * width * call.args[1].element_size()


def _roll(call: Call) -> int:
    """One dimension after the other."""
    return _size(call.outputs[0]) if len(call.args[1]) > 1 else 0


def _dropout(call: Call) -> int:
    """The mask as numbers, beside the mask as booleans and the result."""
    return _size(call.outputs[0])


def _safe_softmax(call: Call) -> int:
    """Which scores are minus infinity, and which rows are nothing else."""
    return call.outputs[0].numel() + 2 * call.outputs[0].numel() // call.outputs[0].shape[-1]


def _upsample(call: Call) -> int:
    """Both sides with their channels last."""
    return _size(call.args[0]) + _size(call.outputs[0])


def _attention_blocks(queries: Tensor, keys: Tensor) -> tuple[int, int]:
    """Rows and columns of the block of scores that a thread works on (FlashAttentionKernel.cpp)."""
    length = queries.shape[2]
    rows = 256 if length >= 768 else 64 if length >= 192 else 32
    return min(rows, length), min(512, keys.shape[2])


def _attention(call: Call) -> int:
    """A block of scores, two sums a row and a block of results for each thread, as 32-bit numbers."""
    queries, keys = call.args[0], call.args[1]
    rows, columns = _attention_blocks(queries, keys)
    own = 4 * rows * (columns + 2 + queries.shape[-1])
    if queries.dtype != torch.float32:
        own += rows * columns * queries.element_size()
    return own * torch.get_num_threads()


def _attention_backward(call: Call) -> int:
    """Two blocks of scores a thread; the gradient is copied unless it lies token by token."""
    gradient, queries, keys = call.args[0], call.args[1], call.args[2]
    rows, columns = _attention_blocks(queries, keys)
    own = 8 * rows * columns * torch.get_num_threads()
    if queries.dtype != torch.float32:
        own += own // 2
    if not gradient.transpose(1, 2).is_contiguous():
        own += _size(gradient)
    return own


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def _copied(*positions: int) -> Callable[[Call], int]:
    return lambda call: _copies(call, *positions)


_NEEDS: dict[str, Callable[[Call], int]] = {
    "convolution": convolution_scratch,
    "convolution_backward": convolution_backward_scratch,
    "mkldnn_rnn_layer": lstm_scratch,
    "mkldnn_rnn_layer_backward": lstm_backward_scratch,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "native_batch_norm_backward": _batch_norm_backward,
    "native_layer_norm": _copied(0),
    "native_layer_norm_backward": _layer_norm_backward,
    "native_group_norm": _copied(0),
    "native_group_norm_backward": _copied(0, 1),
    "_softmax": _copied(0),
    "_softmax_backward_data": _copied(0, 1),
    "_log_softmax": _copied(0),
    "_log_softmax_backward_data": _copied(0, 1),
    "_safe_softmax": _safe_softmax,
    "embedding_dense_backward": _copied(0),
    "native_dropout": _dropout,
    "roll": _roll,
    "upsample_bilinear2d": _upsample,
}
