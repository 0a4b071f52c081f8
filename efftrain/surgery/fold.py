"""Move the scale and shift of norms into neighbouring layers, where that changes nothing.

A batch norm in eval mode is a fixed scale and shift of channels: it moves into the linear layer or
convolution before it, or else into those after it. The scale and shift of a layer, group or root mean
square norm come last in it: they move into the layers after it, if all of these are linear.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from efftrain.surgery.equality import check_equal, in_eval
from efftrain.surgery.inputs import Inputs, call, random_like
from efftrain.surgery.move import (
    check_range,
    fixed_affine_of,
    with_input_absorbed,
    with_output_scaled,
    write_weights,
)
from efftrain.surgery.neighbours import LeftAloneError, Neighbours
from efftrain.surgery.norm import (
    can_drop_affine,
    drop_affine,
    find_own_affine,
    keeps_statistics,
    what_follows,
)
from efftrain.surgery.report import FoldedNorm, FoldReport, LeftAs, LeftNorm
from efftrain.surgery.structure import replace_module
from efftrain.surgery.trace import LayerCall


def fold(
    model: nn.Module,
    inputs: Inputs,
    *,
    also: Iterable[Inputs] = (),
    tolerance: float | None = None,
) -> FoldReport:
    """Fold the norms of a copy of a model into their neighbours, and prove that it computes the same.

    Neighbours are found by running the model once and following its tensors, so the result holds for
    calls of this form: one that asks for hidden states, say, may see the output of a folded norm. A
    norm stays as it is where folding would not be exact: its output is also added to a residual
    stream, a layer is shared or runs twice, something that is not linear follows, zeros are padded
    beside it. Every such norm is in the report with its reason.

    The copy is a plain module in eval mode. Where a batch norm was there is `nn.Identity`, or the
    activation that was fused with it; other norms keep their place without scale and shift, or with
    ones that change nothing where their class cannot do without. Its state dict loads into a model
    that `restructure` has given the same structure. It is for inference: trained further, it is
    another model.

    Args:
        model: Stays as it is. Its batch norms are taken as they are in eval mode.
        inputs: One call's: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments. One sample is enough; its activations are kept for the time of the search.
        also: More inputs to prove the equality on.
        tolerance: Largest relative error of the outputs; see `efftrain.surgery.TOLERANCES`.

    Returns:
        The folded copy in a report; the model itself where nothing could be folded, or where the
        copy turned out not to compute the same (`refused` says so).
    """
    copied = copy.deepcopy(model)
    copied.eval()
    work = _Work(copied, inputs)
    work.fold_all()
    if not work.folded:
        return FoldReport(model, (), tuple(work.left))
    work.settle(inputs)
    given = check_equal(model, copied, [inputs, *also], tolerance)
    random = check_equal(model, copied, [random_like(inputs)], tolerance)
    if given.equal and random.equal:
        return FoldReport(copied, tuple(work.folded), tuple(work.left), given, random)
    kind, worse = ("random", random) if given.equal else ("given", given)
    reason = (
        f"on {kind} inputs the folded model is off by {worse.max_rel:.1e} of its largest output, "
        f"allowed is {worse.tolerance:.0e} in {worse.dtype}"
    )
    undone = [LeftNorm(norm.path, norm.kind, "the fold was refused") for norm in work.folded]
    return FoldReport(model, (), (*undone, *work.left), given, random, reason)


class _Work:
    """One fold in progress."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model = model
        self.folded: list[FoldedNorm] = []
        self.left: list[LeftNorm] = []
        self._near = Neighbours(model, inputs)
        self._dropped: list[tuple[nn.Module, dict[str, nn.Parameter]]] = []

    def fold_all(self) -> None:
        """Each norm into its neighbours, or onto the list of those that stay."""
        for path, norm in self._near.norms.items():
            try:
                call = self._near.only_call(path)
                fold_one = self._fold_fixed if keeps_statistics(norm) else self._fold_own
                self.folded.append(fold_one(call))
            except LeftAloneError as reason:
                self.left.append(LeftNorm(path, type(norm).__name__, str(reason)))

    def settle(self, inputs: Inputs) -> None:
        """Put neutral scales back where somebody reads those of a norm that has none left."""
        if not self._dropped:
            return
        try:
            with in_eval(self.model):
                call(self.model, inputs)
        except Exception:  # such as the fast path of nn.TransformerEncoderLayer
            for norm, parameters in self._dropped:
                for name, parameter in parameters.items():
                    norm.register_parameter(name, parameter)
            self.folded = [
                replace(one, left_as="neutral") if one.left_as == "no_affine" else one
                for one in self.folded
            ]

    def _fold_fixed(self, norm: LayerCall) -> FoldedNorm:
        """A norm with running statistics: into the layer before it, or else into those after."""
        scale, shift = fixed_affine_of(norm)
        rest = what_follows(norm.layer)
        try:
            layer = self._near.before(norm, len(scale))
            moved = [(layer, with_output_scaled(layer, scale, shift))]
            before = True
        except LeftAloneError as reason:
            if not isinstance(rest, nn.Identity):
                raise
            moved = self._absorbed_instead(norm, scale, shift, reason)
            before = False
        added = _write(moved)
        replace_module(self.model, norm.path, rest)
        left_as: LeftAs = "identity" if isinstance(rest, nn.Identity) else "activation"
        return _folded(norm, moved, before, left_as, added)

    def _absorbed_instead(
        self, norm: LayerCall, scale: Tensor, shift: Tensor, reason: LeftAloneError
    ) -> list[tuple[LayerCall, nn.Module]]:
        try:
            return self._absorbed(norm, 1, scale, shift)
        except LeftAloneError as second:
            raise LeftAloneError(f"{reason}; behind it: {second}") from second

    def _fold_own(self, norm: LayerCall) -> FoldedNorm:
        """A norm that computes its statistics: into the layers after it."""
        shape = norm.inputs[0].shape
        affine = find_own_affine(norm.layer, shape) if len(norm.inputs) == 1 else None
        if affine is None:
            raise LeftAloneError("its scale and bias are not the last thing that it applies")
        scale, shift = affine.values()
        moved = self._absorbed(norm, affine.dim, scale, shift)
        added = _write(moved)
        affine.make_neutral()
        left_as: LeftAs = "neutral"
        if can_drop_affine(norm.layer, shape):
            self._dropped.append((norm.layer, dict(norm.layer.named_parameters(recurse=False))))
            drop_affine(norm.layer)
            left_as = "no_affine"
        return _folded(norm, moved, False, left_as, added)

    def _absorbed(
        self, norm: LayerCall, dim: int, scale: Tensor, shift: Tensor
    ) -> list[tuple[LayerCall, nn.Module]]:
        layers = self._near.after(norm, dim, len(scale), shifts=bool(torch.any(shift)))
        return [(layer, with_input_absorbed(layer, scale, shift)) for layer in layers]


def _write(moved: list[tuple[LayerCall, nn.Module]]) -> tuple[str, ...]:
    """All layers of one norm or none; the paths of those that got a bias."""
    for layer, new in moved:
        check_range(layer, new)
    return tuple(layer.path for layer, new in moved if write_weights(layer, new))


def _folded(
    norm: LayerCall,
    moved: list[tuple[LayerCall, nn.Module]],
    before: bool,
    left_as: LeftAs,
    added: tuple[str, ...],
) -> FoldedNorm:
    into = tuple(layer.path for layer, _ in moved)
    return FoldedNorm(norm.path, type(norm.layer).__name__, into, before, left_as, added)
