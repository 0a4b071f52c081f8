"""How large a delta file will be, before anything is trained."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor, nn

from efftrain.peft.bn_stats import STILL
from efftrain.peft.delta_file import Delta
from efftrain.peft.fingerprint import PART_DIGITS
from efftrain.peft.model_state import running_statistics, state_of
from efftrain.peft.record import record_of
from efftrain.peft.selection import Selection

_LENGTH_BYTES = 8
_ALIGNMENT = 8
_DIGEST = "0" * 64
"""Stands for a digest of weights, of which only the length is known."""

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""Element types as a safetensors header spells them."""


def predict_delta_bytes(model: nn.Module, selection: Selection) -> int:
    """Bytes of the file that `save_delta` will write, without entries of the caller's own.

    Args:
        model: With the selection applied; meta device is enough.
        selection: What trains.

    Returns:
        To the byte: tensors and header.

    Source: https://huggingface.co/docs/safetensors, "Format"
    """
    record = record_of(model)
    state = state_of(model)
    complete = len(selection.names) == len(dict(model.named_parameters()))
    moving = set[str]() if record.bn_stats in STILL else set(running_statistics(model))
    keys = set(state) if complete else {*selection.names, *moving}
    parts = {name.split(".")[0] for name in state if name not in keys}
    delta = Delta(
        tensors={name: state[name] for name in keys},
        method=selection.method,
        groups=dict(selection.groups),
        bn_stats=record.bn_stats or "update",
        base=_DIGEST if parts else "",
        base_parts=dict.fromkeys(parts, _DIGEST[:PART_DIGITS]),
    )
    return _file_bytes(delta.tensors, {**delta.entries(), "sha256": _DIGEST})


def _file_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> int:
    """Of a safetensors file: wide types come first, names in order; the header is padded."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in sorted(
        tensors.items(), key=lambda item: (-item[1].element_size(), item[0])
    ):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return _LENGTH_BYTES + -(-len(text) // _ALIGNMENT) * _ALIGNMENT + end
