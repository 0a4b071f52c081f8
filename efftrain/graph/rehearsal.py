"""A private copy of a model and its batch, on tensors that have shapes but no values.

What runs here never touches the model: not its batch statistics, gradients, modes or Python
attributes, and not the random number generators. A model on the meta device is rehearsed as if it
were on the CPU, so that its figures are those of the model with weights.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode
from torch.utils._pytree import tree_leaves, tree_map_only

from efftrain.errors import ConfigError
from efftrain.graph.module_stack import ModuleStack
from efftrain.graph.observer import storage_key
from efftrain.graph.shape_rules import Shape
from efftrain.graph.shapes import ShapeMode

T = TypeVar("T")


@dataclass
class Rehearsal:
    """What a dry run may do with as it likes.

    Attributes:
        model: A copy, in the modes of the original.
        args: Positional arguments of the model's call.
        kwargs: Keyword arguments of the model's call.
        values: Whether the tensors hold values; without, they have shapes alone.
        stack: Says which module is running.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: bool
    stack: ModuleStack = field(init=False)

    def __post_init__(self) -> None:
        """Follow the copy's modules."""
        self.stack = ModuleStack(self.model)

    def forward(self) -> Any:
        """Call the model once."""
        return self.model(*self.args, **self.kwargs)

    def of_one_sample(self) -> Rehearsal:
        """The same model, with the first sample of the batch alone."""
        one = copy.copy(self)
        one.args, one.kwargs = first_sample((self.args, self.kwargs))
        return one


def batch_size(batch: Any) -> int:
    """Samples in a batch: the length of its first tensor that has a dimension; 1 without one."""
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    return next((tensor.shape[0] for tensor in tensors if tensor.dim()), 1)


def first_sample(batch: T) -> T:
    """The first sample of every tensor that is as long as the batch; the others as they are."""
    size = batch_size(batch)

    def first(tensor: Tensor) -> Tensor:
        return tensor[:1] if tensor.dim() and tensor.shape[0] == size else tensor

    return tree_map_only(Tensor, first, batch)


def rehearse(
    run: Callable[[Rehearsal], T],
    model: nn.Module,
    batch: Any,
    *,
    values: bool = False,
    shapes_only: bool = False,
) -> T:
    """Run something on a private copy of a model, without values where that is possible.

    Args:
        run: What to do; called a second time, with values, where a model asks for one (`.item()`).
        model: Any device, meta included. Left as it is.
        batch: A tensor, a sequence of positional arguments or a mapping of keyword arguments.
        values: Whether to run with values from the start.
        shapes_only: Whether never to run with values, which takes the memory and the time of a real
            step once more.

    Returns:
        What `run` returns.

    Raises:
        ConfigError: The model needs values, and it or its batch is on the meta device, or only
            shapes were allowed.
    """
    model = cast(nn.Module, getattr(model, "_orig_mod", model))  # torch.compile's wrapper
    args, kwargs = call_arguments(batch)
    if not values:
        try:
            with _shapes_alone(model, args, kwargs) as rehearsal:
                return run(rehearsal)
        except Exception as error:
            # A model that asks for values may fail in any way, in torch or in its own code; one
            # that is wrong fails with values too, and that error is the one to show.
            if shapes_only or _on_meta(model, args, kwargs):
                raise ConfigError(
                    f"{type(model).__name__} could not be run on shapes alone ({error}); "
                    "give it weights and a batch with values"
                ) from error
    elif _on_meta(model, args, kwargs):
        raise ConfigError(f"{type(model).__name__} or its batch is on the meta device: no values")
    with _with_values(model, args, kwargs) as rehearsal:
        return run(rehearsal)


def call_arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called with a batch: positional and keyword arguments."""
    if isinstance(batch, Mapping):
        return (), dict(cast(Mapping[str, Any], batch))
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return tuple(cast(Sequence[Any], batch)), {}
    return (batch,), {}


def _on_meta(model: nn.Module, args: Any, kwargs: Any) -> bool:
    tensors = [*model.parameters(), *model.buffers(), *tree_leaves((args, kwargs))]
    return any(isinstance(t, Tensor) and t.device.type == "meta" for t in tensors)


@contextlib.contextmanager
def _shapes_alone(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Generator[Rehearsal, None, None]:
    fakes = ShapeMode(allow_non_fake_inputs=True)
    given = [*model.parameters(), *model.buffers(), *tree_leaves((args, kwargs))]
    shared = _shared_memory([leaf for leaf in given if isinstance(leaf, Tensor)])

    def fake(tensor: Tensor) -> Tensor:
        on_meta = tensor.device.type == "meta"
        if not on_meta and not _stands_alone(tensor, shared):
            return fakes.from_tensor(tensor, static_shapes=True)
        device = torch.device("cpu") if on_meta else tensor.device
        made = fakes.empty(Shape(tensor.shape, tensor.stride(), tensor.dtype, device))
        cast(Any, made)._is_param = isinstance(tensor, nn.Parameter)
        return made.requires_grad_(tensor.requires_grad)

    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in memo:  # a tied tensor stays tied
            memo[id(tensor)] = fake(tensor)
            memo[id(tensor)].grad = None
    with undisturbed(), FakeCopyMode(fakes):
        copied = copy.deepcopy(model, memo)
        inputs = tree_map_only(Tensor, fake, (args, kwargs))
    with undisturbed(), fakes:
        yield Rehearsal(copied, *inputs, values=False)


def _shared_memory(tensors: list[Tensor]) -> set[int]:
    """Names of the memory that several different tensors look at."""
    distinct = {id(t): storage_key(t) for t in tensors if t.layout is torch.strided}
    return {memory for memory, holders in Counter(distinct.values()).items() if holders > 1}


def _stands_alone(tensor: Tensor, shared: set[int]) -> bool:
    """Whether a tensor is an ordinary one, and all that there is in its memory."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return False
    if tensor.is_quantized or not tensor.is_leaf or storage_key(tensor) in shared:
        return False
    shape = Shape(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    return tensor.untyped_storage().nbytes() == shape.memory_bytes()


@contextlib.contextmanager
def _with_values(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Generator[Rehearsal, None, None]:
    with undisturbed():
        copied = copy.deepcopy(model)
        copied.zero_grad(set_to_none=True)
        inputs = tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
        yield Rehearsal(copied, *inputs, values=True)


@contextlib.contextmanager
def undisturbed() -> Generator[None, None, None]:
    """Leave random numbers and global switches as they were.

    The fused attention of torch's transformer layers is one operator with its linear layers inside;
    it is off here, so that each layer is seen. Compiled parts run as they are written.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(cast(Any, torch.random).fork_rng())
        stack.enter_context(torch.inference_mode(False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it is slow
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        yield
