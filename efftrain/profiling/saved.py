"""What autograd keeps from forward until backward."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from efftrain.graph.autograd_node import newest_node
from efftrain.graph.observer import Call, Observer, storage_key
from efftrain.graph.rehearsal import Rehearsal, rehearse
from efftrain.profiling.loss import LossFunction, loss_of
from efftrain.profiling.storage_bytes import StorageBytes

Cause = Literal[
    "norm", "activation", "conv", "linear", "attention", "pool", "recurrent", "dropout", "other"
]

_CAUSES: dict[str, Cause] = {
    "convolution": "conv",
    "mm": "linear",
    "addmm": "linear",
    "linear": "linear",
    "bmm": "attention",
    "baddbmm": "attention",
    "_softmax": "attention",
    "_safe_softmax": "attention",
    "native_dropout": "dropout",
    "bernoulli_": "dropout",
    "mkldnn_rnn_layer": "recurrent",
    "_cudnn_rnn": "recurrent",
    **dict.fromkeys(
        ("relu", "hardtanh", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "elu",
         "leaky_relu", "mish", "softplus", "glu", "_prelu_kernel", "log_sigmoid_forward", "celu",
         "threshold", "rrelu_with_noise", "hardshrink", "softshrink"),
        "activation",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SavedTensor:
    """One piece of memory that backward needs.

    Attributes:
        path: Module whose operation kept it first; "" for code outside modules, such as the loss.
        cause: The kind of that operation.
        kept_by: Every kind of operation that keeps it, the first one first: it is free only when
            none of them does.
        operator: The operation that kept it first.
        shape: Of the tensor that was kept first; a view may be smaller than its base.
        dtype: Of that tensor.
        saved_bytes: Of the memory: the whole base of a view.
    """

    path: str
    cause: Cause
    kept_by: tuple[Cause, ...]
    operator: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    saved_bytes: int


@dataclass(frozen=True)
class Saved:
    """Everything that autograd keeps between forward and backward.

    Attributes:
        tensors: Distinct pieces of memory, in the order in which they were kept. Parameters,
            buffers and the batch are left out: they are there anyway.
    """

    tensors: tuple[SavedTensor, ...]

    @property
    def saved_bytes(self) -> int:
        """All of it."""
        return sum(tensor.saved_bytes for tensor in self.tensors)

    def by_module(self) -> dict[str, int]:
        """Bytes by path, those of a module's children in its own figure; "" is everything."""
        totals: dict[str, int] = defaultdict(int)
        for tensor in self.tensors:
            parts = tensor.path.split(".") if tensor.path else []
            for length in range(len(parts) + 1):
                totals[".".join(parts[:length])] += tensor.saved_bytes
        return dict(totals)

    def by_cause(self) -> dict[str, int]:
        """Bytes by the kind of operation that kept them first."""
        totals: dict[str, int] = defaultdict(int)
        for tensor in self.tensors:
            totals[tensor.cause] += tensor.saved_bytes
        return dict(totals)

    def to_dict(self) -> dict[str, Any]:
        """Bytes in all and by cause."""
        return {"saved_bytes": self.saved_bytes, "saved_bytes_by_cause": self.by_cause()}


def find_saved(model: nn.Module, batch: Any, loss_fn: LossFunction | None = None) -> Saved:
    """Find out what autograd keeps of a step, in the modes that the model is in.

    Args:
        model: With `requires_grad` as it will train; meta device is enough. Left as it is.
        batch: A tensor, a sequence of positional arguments or a mapping of keyword arguments.
        loss_fn: From the model's output to a scalar. Without: the output's own `loss`, or the sum
            of its floating point tensors, which keeps nothing.

    Returns:
        What is kept; nothing where nothing is trainable.

    Raises:
        ConfigError: The model asks for values and has none.

    Source: torch.autograd.graph.saved_tensors_hooks
    """

    def run(rehearsal: Rehearsal) -> Saved:
        recorder = SavedRecorder(rehearsal)
        with torch.enable_grad(), Observer(recorder.on_call), recorder.hooks():
            loss = loss_of(rehearsal.forward(), loss_fn)
        found = recorder.result()
        del loss  # until here it held the graph
        return found

    return rehearse(run, model, batch)


class SavedRecorder:
    """Sees what autograd saves while a forward pass runs."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        """Know what is there before the pass."""
        self._stack = rehearsal.stack
        self._operators: dict[int, str] = {}
        self._kept: list[weakref.ref[_Kept]] = []
        self._storages = StorageBytes()
        self._there = {
            storage_key(tensor)
            for tensor in [
                *rehearsal.model.parameters(),
                *rehearsal.model.buffers(),
                *tree_leaves((rehearsal.args, rehearsal.kwargs)),
            ]
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided
        }

    def on_call(self, call: Call) -> None:
        """Note which operation an autograd node belongs to."""
        node, name = newest_node(), call.operator.name
        if self._operators.get(node) == "clone" and name.endswith("_"):
            self._operators[node] = (
                name  # one in place that first puts its input aside for backward
            )
        self._operators.setdefault(node, name)
        self._storages.on_call(call)

    def hooks(self) -> saved_tensors_hooks:
        """A context in which everything that is saved is seen."""

        def pack(tensor: Tensor) -> _Kept:
            node = newest_node()
            made_by: Any = tensor.grad_fn
            if made_by is not None and made_by._sequence_nr() == node:
                tensor = tensor.detach()  # a node that held its own result would never be freed
            kept = _Kept(tensor, self._stack.path, node)
            self._kept.append(weakref.ref(kept))
            return kept

        unpack: Callable[[_Kept], Tensor] = _Kept.get
        return saved_tensors_hooks(pack, unpack)

    def result(self) -> Saved:
        """What is kept now: a graph that nobody holds any more has let go of its tensors."""
        first: dict[int, tuple[_Kept, list[Cause]]] = {}
        for reference in self._kept:
            kept = reference()
            if kept is None or kept.tensor.layout is not torch.strided:
                continue
            memory = storage_key(kept.tensor)
            if memory not in self._there:
                first.setdefault(memory, (kept, []))[1].append(self._cause(kept))
        return Saved(
            tuple(
                SavedTensor(
                    path=kept.path,
                    cause=causes[0],
                    kept_by=tuple(dict.fromkeys(causes)),
                    operator=self._operators.get(kept.node, ""),
                    shape=tuple(kept.tensor.shape),
                    dtype=kept.tensor.dtype,
                    saved_bytes=self._storages.of(kept.tensor),
                )
                for kept, causes in first.values()
            )
        )

    def _cause(self, kept: _Kept) -> Cause:
        operator = self._operators.get(kept.node, "")
        return cause_of(operator, self._stack.types.get(kept.path, ""))


def cause_of(operator: str, module: str) -> Cause:
    """What kind of operation an operator is.

    Args:
        operator: Its name, without the namespace of torch's own.
        module: Class of the module that calls it; tells where the operator alone does not.
    """
    if "norm" in operator and "linalg" not in operator:
        return "norm"
    if operator.startswith("_scaled_dot_product"):
        return "attention"
    if "pool" in operator:
        return "pool"
    known = _CAUSES.get(operator) or _CAUSES.get(operator.removesuffix("_"))
    if known is not None:
        return known
    # one that is written in steps, such as Hugging Face's RMSNorm
    if "Norm" in module:
        return "norm"
    return "activation" if "Activation" in module else "other"


class _Kept:
    """A tensor that autograd holds; it dies with the graph."""

    def __init__(self, tensor: Tensor, path: str, node: int) -> None:
        self.tensor = tensor
        self.path = path
        self.node = node

    def get(self) -> Tensor:
        return self.tensor
