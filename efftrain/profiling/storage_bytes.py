"""How much memory a tensor holds."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from efftrain.graph.observer import Call, storage_key
from efftrain.profiling.lstm_memory import lstm_workspace_bytes

# Operators that give statistics besides their result, and where their weight stands.
_WEIGHT_OF_NORM = {"native_batch_norm": 1, "native_group_norm": 1, "native_layer_norm": 2}


class StorageBytes:
    """Knows also the memory of results that torch gives another size without values."""

    def __init__(self) -> None:
        """Know none yet."""
        self._hidden: dict[int, int] = {}

    def on_call(self, call: Call) -> None:
        """Note what does not show: an LSTM layer's workspace, and statistics in 32 bits."""
        name = call.operator.name
        if name == "mkldnn_rnn_layer":
            workspace = call.outputs[3]
            if not workspace.numel():
                self._note(workspace, lstm_workspace_bytes(call))
        elif name in _WEIGHT_OF_NORM:
            weight = call.args[_WEIGHT_OF_NORM[name]]
            for statistic in call.outputs[1:]:
                # of an input in 16 bits they are kept as the weight is
                if isinstance(weight, Tensor) and statistic.element_size() < weight.element_size():
                    more = weight.element_size() - statistic.element_size()
                    self._note(statistic, statistic.numel() * more)

    def of(self, tensor: Tensor) -> int:
        """Bytes of the whole memory that a tensor looks at."""
        return tensor.untyped_storage().nbytes() + self._hidden.get(storage_key(tensor), 0)

    def _note(self, tensor: Tensor, more_bytes: int) -> None:
        memory = storage_key(tensor)
        self._hidden[memory] = more_bytes
        # the name is given to other memory once this is free
        weakref.finalize(tensor.untyped_storage(), self._hidden.pop, memory, None)


def memory_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, memory that several share counted once."""
    distinct: dict[int, int] = {}
    for tensor in tensors:
        if tensor.layout is torch.strided:
            distinct[storage_key(tensor)] = tensor.untyped_storage().nbytes()
    return sum(distinct.values())
