"""The layers next to each norm, as the data flows, and why a norm has none that could take it over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from torch import Tensor, nn

from efftrain.surgery.flow import Flow, follow, origin
from efftrain.surgery.inputs import Inputs
from efftrain.surgery.linear import channels_of, layout_of
from efftrain.surgery.norm import is_norm
from efftrain.surgery.trace import LayerCall, trace


class LeftAloneError(Exception):
    """Why a norm cannot be folded; caught where the norms are gone through."""


class Neighbours:
    """What runs next to what in one model.

    Args:
        model: In the mode it is used in; it is run once.
        inputs: One call's.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        """Find norms and linear layers, and follow the data between them."""
        find = cast("Callable[..., Iterator[tuple[str, nn.Module]]]", model.named_modules)
        modules = {path: module for path, module in find() if path}
        self.norms = {path: module for path, module in modules.items() if is_norm(module)}
        self.layers = {path: one for path, one in modules.items() if layout_of(one) is not None}
        self._trace = trace(model, self.norms | self.layers, inputs)
        self._paths: dict[int, list[str]] = {}
        for path, module in find(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(path)
        # kept by themselves, so that the identity of one that a fold drops is not used again
        self._names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(parameter, []).append(name)
        self._flows = {path: self._flow_of(path) for path in self.layers}

    def only_call(self, path: str) -> LayerCall:
        """The one run of a norm or a linear layer that nothing else has a part in.

        Raises:
            LeftAloneError: It or one of its parameters is shared, or it does not run just once.
        """
        module = self.norms.get(path) or self.layers[path]
        others = [one for one in self._paths[id(module)] if one != path]
        if others:
            raise LeftAloneError(f"{path} is the same module as {others[0]}")
        calls = self._trace.calls.get(path, [])
        if len(calls) != 1:
            times = f"runs {len(calls)} times" if calls else "does not run with these inputs"
            raise LeftAloneError(f"{path} {times}")
        for name, parameter in module.named_parameters(recurse=False):
            names = self._names.get(parameter, [])  # none for a bias that a fold has added
            shared = [one for one in names if one != f"{path}.{name}"]
            if shared:
                raise LeftAloneError(f"{path}.{name} is the same tensor as {shared[0]}")
            where = self._trace.borrowed.get(id(parameter))
            if where is not None:
                raise LeftAloneError(f"{path}.{name} is also used in {where or 'the model itself'}")
        (call,) = calls
        if call.output is None or not call.inputs:
            raise LeftAloneError(f"{path} runs inside another layer")
        return call

    def before(self, norm: LayerCall, channels: int) -> LayerCall:
        """The layer that feeds a norm with running statistics, and nothing but this norm.

        Args:
            norm: The norm's run; it normalises dimension 1.
            channels: How many it has.

        Raises:
            LeftAloneError: There is no such layer.
        """
        source = norm.inputs[0]
        for path, flow in self._flows.items():
            here = [end for end in flow.ends if end.call is norm]
            if not here:
                continue
            if len(flow.ends) > 1:
                others = (end.call.path for end in flow.ends if end.call is not norm)
                raise LeftAloneError(f"{path} also feeds {next(others, norm.path)}")
            end = here[0]
            fits = channels_of(self.layers[path], output=True) == channels
            if flow.pads or end.dim != 1 or end.tensor is not source or not fits:
                raise LeftAloneError(f"the channels of {path} are not those that it normalises")
            return self.only_call(path)
        came_from = origin(self._trace, source)
        flow = self._flows.get(came_from)
        if flow is not None and flow.blocked:
            raise LeftAloneError(f"{came_from} feeds not only it: {flow.blocked}")
        raise LeftAloneError(
            f"its input comes from {came_from}, no linear layer that feeds only it"
        )

    def after(self, norm: LayerCall, dim: int, channels: int, *, shifts: bool) -> list[LayerCall]:
        """The linear layers that a norm feeds, where it feeds nothing else.

        Args:
            norm: The norm's run.
            dim: The dimension of its output that holds the channels.
            channels: How many there are.
            shifts: Whether it adds something to them.

        Raises:
            LeftAloneError: It feeds something else, or a layer that cannot take its scale.
        """
        assert norm.output is not None, "only_call has looked"
        flow = follow(self._trace, norm.output, dim)
        if flow.blocked:
            raise LeftAloneError(flow.blocked)
        if not flow.ends:
            raise LeftAloneError("its output is not used")
        if flow.pads and shifts:
            raise LeftAloneError(
                "zeros are padded beside its output, which its bias would not reach"
            )
        for end in flow.ends:
            path = end.call.path
            layout = None if path not in self.layers else layout_of(self.layers[path])
            if layout is None:
                raise LeftAloneError(f"its output goes into {path}, which is not linear")
            self.only_call(path)
            attention = isinstance(end.call.layer, nn.MultiheadAttention)
            given = end.call.inputs[:3] if attention else end.call.inputs
            if any(tensor is not end.tensor for tensor in given):
                raise LeftAloneError(f"{path} takes more than its output")
            fits = channels_of(end.call.layer, output=False) == channels
            if end.dim != layout.channel_dim % end.tensor.ndim or not fits:
                raise LeftAloneError(f"{path} does not take its channels one by one")
        return list({id(end.call): end.call for end in flow.ends}.values())

    def _flow_of(self, path: str) -> Flow:
        """Where the output of a layer goes; nowhere for one that does not run just once."""
        calls = self._trace.calls.get(path, [])
        layout = layout_of(self.layers[path])
        output: Tensor | None = calls[0].output if len(calls) == 1 else None
        if output is None or layout is None or isinstance(calls[0].layer, nn.MultiheadAttention):
            return Flow()
        return follow(self._trace, output, layout.channel_dim)
