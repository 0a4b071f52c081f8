"""Digests of tensors: which weights a delta belongs to, and whether its content is intact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

PART_DIGITS = 16
_BLOCK_BYTES = 1 << 24


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in the order of the names.

    Args:
        tensors: Any dense tensors; strides and device make no difference.

    Returns:
        64 hexadecimal digits.
    """
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        whole.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}\n".encode())
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), _BLOCK_BYTES):
            whole.update(flat[start : start + _BLOCK_BYTES].cpu().numpy().data)
    return whole.hexdigest()


def digest_by_part(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A short digest for each top-level child, so that a message can say where two models differ.

    Args:
        tensors: Frozen weights by full name.

    Returns:
        First part of the name to 16 hexadecimal digits.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.split(".")[0], {})[name] = tensor
    return {part: digest(inside)[:PART_DIGITS] for part, inside in sorted(parts.items())}


def digest_of_parts(parts: Mapping[str, str]) -> str:
    """One digest over those of the parts."""
    lines = "".join(f"{part}={value}\n" for part, value in sorted(parts.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
