"""What fvcore counts, to stand beside our own figures."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from efftrain.graph.rehearsal import call_arguments, first_sample, undisturbed


@dataclass(frozen=True)
class SecondOpinion:
    """fvcore's figures for inference of one sample.

    Attributes:
        flops: What fvcore calls FLOPs: multiply-accumulates, with norms and pools, without
            attention's products where they are one operator.
        conv_linear: Outputs of convolutions, linear layers and matrix products.
        unsupported: Operators that it has no formula for, and how often they were called.
    """

    flops: int
    conv_linear: int
    unsupported: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The figures as they stand."""
        return {
            "flops": self.flops,
            "conv_linear": self.conv_linear,
            "unsupported": dict(self.unsupported),
        }


def ask_fvcore(model: nn.Module, batch: Any) -> SecondOpinion | None:
    """Let fvcore count a model.

    Args:
        model: With weights: fvcore runs it, in eval mode. Left as it is.
        batch: A tensor or a sequence of positional arguments; the first sample is taken.

    Returns:
        Its figures; None where it cannot count: on the meta device, keyword arguments, a model that
        torch.jit.trace cannot follow.
    """
    args, kwargs = call_arguments(batch)
    tensors = [*model.parameters(), *model.buffers(), *tree_leaves(args)]
    if kwargs or any(isinstance(t, Tensor) and t.device.type == "meta" for t in tensors):
        return None
    modes = {module: module.training for module in model.modules()}
    # torch.jit, which fvcore is built on, says at import and at use that it will go; its tracer
    # also warns of every Python value in a model. Neither is the user's to change.
    with warnings.catch_warnings(), torch.no_grad(), undisturbed():
        warnings.simplefilter("ignore")
        from fvcore.nn import (  # pyright: ignore[reportMissingTypeStubs]
            ActivationCountAnalysis,
            FlopCountAnalysis,
        )

        try:
            model.eval()
            flops, activations = (
                analysis(model, first_sample(args))
                .unsupported_ops_warnings(False)
                .uncalled_modules_warnings(False)
                .tracer_warnings("none")
                for analysis in cast(Any, (FlopCountAnalysis, ActivationCountAnalysis))
            )
            return SecondOpinion(
                flops=int(flops.total()),
                conv_linear=int(activations.total()),
                unsupported=dict(flops.unsupported_ops()),
            )
        except Exception:  # a tracer may fail on any model, in torch or in the model's own code
            return None
        finally:
            for module, training in modes.items():
                module.training = training
