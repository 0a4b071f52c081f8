"""What autograd keeps of a step that really runs.

The hooks hand back the very tensors that they were given, so that the step computes what it would
have computed without them. They are there from `start` to `stop`, within one forward pass.
"""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from efftrain.graph.autograd_node import newest_node, saved_tensor_hooks
from efftrain.graph.module_stack import ModuleStack
from efftrain.graph.observer import storage_key
from efftrain.profiling.saved import Cause, Saved, SavedTensor, cause_of


class SavedMeter:
    """Sees what autograd saves of one forward pass.

    Attributes:
        cost_s: What looking at the tensors has cost the pass, in seconds; `start` and `stop` apart.
    """

    def __init__(self) -> None:
        """See nothing yet."""
        self.cost_s = 0.0
        self._hooks: saved_tensors_hooks | None = None

    @property
    def is_running(self) -> bool:
        """Whether a pass is being watched."""
        return self._hooks is not None

    def start(self, model: nn.Module, batch: Any) -> bool:
        """Watch the forward pass that comes.

        Args:
            model: Its parameters and buffers are there anyway, and are left out.
            batch: So is this.

        Returns:
            Whether it is watched: where others have hooks in force, which would be out of force
            while these are, it is not.
        """
        if saved_tensor_hooks() is not None:
            return False
        self._there = _memory_of([*model.parameters(), *model.buffers(), *tree_leaves(batch)])
        self._kept: list[weakref.ref[_Kept]] = []
        self._stack = ModuleStack(model)
        self._hooks = saved_tensors_hooks(self._pack, _Kept.get)
        self._hooks.__enter__()
        return True

    def stop(self, loss: Tensor | None = None) -> Saved | None:
        """Watch no longer, and take off every hook.

        Args:
            loss: What backward will start from, with its graph; without it the pass is given up.

        Returns:
            What is kept at this moment; None where nothing was watched.
        """
        if self._hooks is None:
            return None
        self._hooks.__exit__()
        self._hooks = None
        self._stack.remove()
        found = None if loss is None else self._result(loss)
        self._kept.clear()
        return found

    def _pack(self, tensor: Tensor) -> _Kept:
        began = time.perf_counter()
        node = newest_node()
        made_by: Any = tensor.grad_fn
        if made_by is not None and made_by._sequence_nr() == node:
            tensor = tensor.detach()  # a node that held its own result would never be freed
            if made_by.name() == "CloneBackward0":
                node -= 1  # of an operation in place, which has put its input aside
        kept = _Kept(tensor, self._stack.path, node)
        self._kept.append(weakref.ref(kept))
        self.cost_s += time.perf_counter() - began
        return kept

    def _result(self, loss: Tensor) -> Saved:
        operators = _operators_of(loss)
        first: dict[int, tuple[_Kept, list[Cause]]] = {}
        for reference in self._kept:
            kept = reference()
            if kept is None or kept.tensor.layout is not torch.strided:
                continue
            memory = storage_key(kept.tensor)
            if memory in self._there:
                continue
            module = self._stack.types.get(kept.path, "")
            cause = _cause_of(operators.get(kept.node, ""), module)
            first.setdefault(memory, (kept, []))[1].append(cause)
        return Saved(
            tuple(
                SavedTensor(
                    path=kept.path,
                    cause=causes[0],
                    kept_by=tuple(dict.fromkeys(causes)),
                    operator=operators.get(kept.node, ""),
                    shape=tuple(kept.tensor.shape),
                    dtype=kept.tensor.dtype,
                    saved_bytes=kept.tensor.untyped_storage().nbytes(),
                )
                for kept, causes in first.values()
            )
        )


class _Kept:
    """A tensor that autograd holds; it dies with the graph."""

    def __init__(self, tensor: Tensor, path: str, node: int) -> None:
        self.tensor = tensor
        self.path = path
        self.node = node

    def get(self) -> Tensor:
        return self.tensor


def _memory_of(leaves: Iterable[Any]) -> set[int]:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return {storage_key(tensor) for tensor in tensors if tensor.layout is torch.strided}


def _operators_of(loss: Tensor) -> dict[int, str]:
    """The operator of every node of the graph, by the node's number."""
    names: dict[int, str] = {}
    todo: list[Any] = [loss.grad_fn]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names[node._sequence_nr()] = _operator_name(node.name())
        todo += [following for following, _ in node.next_functions]
    return names


def _operator_name(node: str) -> str:
    """Such as native_batch_norm for NativeBatchNormBackward0."""
    name = re.sub(r"Backward\d*$", "", node.rpartition("::")[2])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _cause_of(operator: str, module: str) -> Cause:
    """As `cause_of`; a node's name has lost the underscore that some operators begin with."""
    for name in (operator, f"_{operator}"):
        cause = cause_of(name, "")
        if cause != "other":
            return cause
    return cause_of(operator, module)
