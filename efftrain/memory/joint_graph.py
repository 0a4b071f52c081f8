"""What backward keeps under `torch.compile`: frozen convolutions let go of their input.

```python
model = compile_reduced(model)  # in place of torch.compile(model)
```

The gradient of a convolution's input needs the weight alone, but `aten.convolution_backward` takes the
input as an operand even where it is not to compute the weight's gradient. So the partitioner, which
decides what forward hands to backward, keeps it. Here the operand is taken away before the partitioner
runs; it then recomputes norms and activations from the convolutions' outputs by itself.

Gradients are those of `torch.compile`. The place where a pass can look at forward and backward as one
is not a public interface of torch: see `NEWEST`.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from efftrain.errors import MachineError

OLDEST, NEWEST = (2, 13), (2, 13)
"""Versions of torch on which this was tried."""

HOOK = "joint_custom_pre_pass"
"""Inductor's setting: a pass over the graph of forward and backward, before it is cut in two."""

M = TypeVar("M", bound="nn.Module | Callable[..., Any]")

_aten = torch.ops.aten


def compile_reduced(model: M, **options: Any) -> M:
    """`torch.compile`, whose backward keeps less.

    Args:
        model: A module or function, what trains chosen: freezing later compiles anew.
        options: As for `torch.compile` (fullgraph, dynamic, mode, options …), but no backend.

    Returns:
        What `torch.compile` returns.

    Raises:
        MachineError: This version of torch has not been tried.
    """
    settings = dict(options.pop("options", None) or {})
    mode = options.pop("mode", None)
    if mode is not None:
        # torch takes either mode or options: a mode is a name for some options
        listed = cast(Any, torch)._inductor.list_mode_options(mode, options.get("dynamic"))
        settings = {**listed, **settings}
    settings[HOOK] = make_pass(settings.get(HOOK))
    return cast(Any, torch).compile(model, options=settings, **options)


@contextmanager
def reduce_compiled_memory() -> Generator[None]:
    """Every model compiled by Inductor meanwhile keeps less, whoever calls `torch.compile`.

    Compilation happens at the first call, not in `torch.compile`: the first step, backward included,
    belongs inside, and so does each that may compile anew.

    Raises:
        MachineError: This version of torch has not been tried.
    """
    config = _inductor_config()
    with config.patch({HOOK: make_pass(getattr(config, HOOK))}):
        yield


def make_pass(first: Any = None) -> Any:
    """The value of HOOK.

    Args:
        first: A pass, or several, that were there already: they run before.

    Raises:
        MachineError: This version of torch has not been tried.
    """
    _inductor_config()
    earlier: list[Any] = [] if first is None else [first]
    if isinstance(first, (list, tuple)):
        earlier = [*cast("list[Any]", first)]
    return _pass_class()(tuple(earlier))


@functools.cache
def _pass_class() -> type[Any]:
    # Not at the top: importing Inductor takes seconds.
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class DropOperands(CustomGraphPass):
        """What Inductor calls, and what tells its cache on disk which pass it was."""

        def __init__(self, earlier: tuple[Any, ...]) -> None:
            self.earlier = earlier

        def __call__(self, graph: Graph) -> None:
            for each in self.earlier:
                each(graph)
            drop_operands(graph)

        def uuid(self) -> str | None:
            names = [hashlib.sha256(Path(__file__).read_bytes()).hexdigest()]
            for each in self.earlier:
                name = each.uuid() if isinstance(each, CustomGraphPass) else None
                if name is None:
                    return None  # nothing is cached with a pass that has no name
                names.append(str(name))
            return " ".join(names)

    return DropOperands


def _inductor_config() -> Any:
    """Inductor's settings, where they are known to have HOOK."""
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    version = tuple(map(int, found.groups())) if found else ()
    if not OLDEST <= version <= NEWEST:
        raise _unknown("was not tried with it")
    import torch._inductor.config as config

    if not hasattr(config, HOOK):
        raise _unknown(f"finds no {HOOK} in its Inductor")
    return config


def _unknown(problem: str) -> MachineError:
    return MachineError(
        f"torch {torch.__version__}: efftrain's pass for torch.compile {problem} "
        f"(tried: {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}); "
        "use torch.compile alone, or memory=exact without it"
    )


@torch.library.custom_op("efftrain::conv_dgrad", mutates_args=())
def conv_dgrad(
    grad: Tensor,
    weight: Tensor,
    size: list[int],
    strides: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """Gradient of a convolution's input, of which only the shape is known.

    Args:
        grad: Gradient of the output.
        weight: The kernel.
        size: Of the input.
        strides: Of the result, in elements.
        stride: As of `aten.convolution_backward`, and so the others.
        padding: Around the input.
        dilation: Between the kernel's places.
        transposed: Whether the convolution is a transposed one.
        output_padding: Of a transposed one.
        groups: Of channels.
    """
    empty = grad.new_empty_strided(size, strides)
    steps = (stride, padding, dilation, transposed, output_padding, groups)
    dx = _aten.convolution_backward(grad, empty, weight, None, *steps, [True, False, False])[0]
    if dx.stride() == empty.stride():
        return dx
    # Compiled code around it counts on the strides that were promised: with others it reads past the end.
    return empty.copy_(dx)


@cast(Any, conv_dgrad).register_fake
def _(
    grad: Tensor,
    weight: Tensor,
    size: list[int],
    strides: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    return grad.new_empty_strided(size, strides)


def drop_operands(graph: Graph) -> int:
    """Take the input away from each convolution backward that does not compute a weight's gradient.

    Args:
        graph: Forward and backward as one; changed in place.

    Returns:
        How many were changed.
    """
    changed = 0
    for node in graph.find_nodes(op="call_function", target=_aten.convolution_backward.default):
        grad, x, weight, _, *steps, mask = node.args
        results = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        if mask[1] or 0 not in results or len(results) != len(node.users):
            continue
        with graph.inserting_before(node):
            layout = _layout(graph, x, results[0])
            if layout is None:
                continue
            _replace(
                results[0], torch.ops.efftrain.conv_dgrad.default, grad, weight, *layout, *steps
            )
            if 2 in results:
                over = [0, *range(2, grad.meta["val"].dim())]
                _replace(results[2], _aten.sum.dim_IntList, grad, over)
        graph.erase_node(node)
        changed += 1
    return changed


def _replace(result: Node, operator_: Any, *args: Any) -> None:
    """Compute one result of a node by an operator of its own."""
    graph = result.graph
    alone = graph.call_function(operator_, args)
    alone.meta.update(result.meta)
    result.replace_all_uses_with(alone)
    graph.erase_node(result)


def _layout(graph: Graph, x: Node, dx: Node) -> tuple[list[Any], list[Any]] | None:
    """Sizes and strides of dx: numbers, or where these are dynamic, nodes that read them off x."""
    value, wanted = x.meta["val"], dx.meta["val"]
    sizes: list[Any] = list(wanted.shape)
    strides: list[Any] = list(wanted.stride())
    for values, of_x, read in (
        (sizes, value.shape, _aten.sym_size.int),
        (strides, value.stride(), _aten.sym_stride.int),
    ):
        for place, (number, same) in enumerate(zip(values, of_x, strict=True)):
            if isinstance(number, int):
                continue
            if str(number) != str(same):
                return None
            values[place] = graph.call_function(read, (x, place))
            values[place].meta["val"] = number
    return sizes, strides
