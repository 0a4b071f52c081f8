"""What each call of a C++ kernel needs: the library, pointers, sizes."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from efftrain.memory.kernels.activation import ACTIVATIONS, Activation
from efftrain.memory.kernels.cpp.build import library


def kernels_for(act: Activation, *tensors: Tensor | None) -> Any:
    """The library, where it has kernels for these tensors; else None.

    Args:
        act: The activation.
        tensors: What has to be on CPU, in fp32, and contiguous.
    """
    if act not in ACTIVATIONS or not all(fits(tensor) for tensor in tensors):
        return None
    return library()


def fits(
    tensor: Tensor | None, memory_format: torch.memory_format = torch.contiguous_format
) -> bool:
    """Whether a kernel can read it: on CPU, in fp32, dense in that order, and not empty."""
    return tensor is None or (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous(memory_format=memory_format)
        and tensor.numel() > 0
        and not tensor.is_neg()
    )


def pointers(*tensors: Tensor | None) -> tuple[ctypes.c_void_p, ...]:
    """Where each tensor begins; null for None."""
    return tuple(
        ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors
    )


def sizes(x: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]:
    """Samples, channels and places of each plane."""
    samples, channels = x.shape[:2]
    return (
        ctypes.c_int64(samples),
        ctypes.c_int64(channels),
        ctypes.c_int64(x.numel() // (samples * channels)),
    )


def options(act: Activation) -> tuple[int, int]:
    """The activation as activation.h numbers it, and the threads, as many as torch uses."""
    return ACTIVATIONS.index(act), torch.get_num_threads()
