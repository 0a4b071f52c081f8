"""How much memory a tensor holds."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from efftrain.graph.observer import Call, storage_key
from efftrain.profiling.lstm_memory import lstm_workspace_bytes


class StorageBytes:
    """Knows also the memory of results that torch gives no size without values."""

    def __init__(self) -> None:
        """Know none yet."""
        self._hidden: dict[int, int] = {}

    def on_call(self, call: Call) -> None:
        """Note a result whose size does not show: the workspace of an LSTM layer."""
        if call.operator.name != "mkldnn_rnn_layer" or len(call.outputs) < 4:
            return
        workspace = call.outputs[3]
        if workspace.numel() == 0:
            memory = storage_key(workspace)
            self._hidden[memory] = lstm_workspace_bytes(call)
            # the name is given to other memory once this is free
            weakref.finalize(workspace.untyped_storage(), self._hidden.pop, memory, None)

    def of(self, tensor: Tensor) -> int:
        """Bytes of the whole memory that a tensor looks at."""
        return tensor.untyped_storage().nbytes() + self._hidden.get(storage_key(tensor), 0)


def memory_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, memory that several share counted once."""
    distinct: dict[int, int] = {}
    for tensor in tensors:
        if tensor.layout is torch.strided:
            distinct[storage_key(tensor)] = tensor.untyped_storage().nbytes()
    return sum(distinct.values())
