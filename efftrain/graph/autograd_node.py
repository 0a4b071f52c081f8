"""What autograd is doing at this moment, told to code that runs below it.

torch numbers its nodes as forward makes them, and keeps the number for backward. An operator call in
forward comes right after its node was made; one in backward runs while its node does.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch

# No public name gives these; torch.utils.flop_counter and torch.fx read them here as well.
_engine: Any = cast(Any, torch)._C


def in_backward() -> bool:
    """Whether backward is running; what it recomputes runs with gradients enabled."""
    return _engine._current_graph_task_id() != -1


_again = threading.local()


@contextmanager
def computing_again() -> Generator[None, None, None]:
    """Say that what runs here was computed in forward already, and not kept."""
    before = is_computing_again()
    _again.now = True
    try:
        yield
    finally:
        _again.now = before


def is_computing_again() -> bool:
    """Whether code within `computing_again` is running, in this thread."""
    return getattr(_again, "now", False)


def newest_node() -> int:
    """The number of the node that was made last, in this thread."""
    return _engine._autograd._get_sequence_nr() - 1


def running_node() -> int:
    """The number of the node whose backward is running; -1 where none is."""
    node = _engine._current_autograd_node()
    return -1 if node is None else node._sequence_nr()


def saved_tensor_hooks() -> tuple[Any, Any] | None:
    """Pack and unpack of the `saved_tensors_hooks` that are in force, the innermost ones."""
    return _engine._autograd._top_saved_tensors_default_hooks(True)
