"""Predicting the next token: the task, and perplexity as its metric."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from efftrain.data.padding import IGNORED
from efftrain.errors import DataError
from efftrain.task import Task


class CausalLMTask(Task):
    """Each position's scores are for the token after it.

    A batch holds `labels` [N, T], which are the input ids, or -100 where nothing is to be predicted.
    Loss and metrics get scores [N (T - 1), vocabulary] and labels [N (T - 1)]; a mean is over the
    tokens that count.

    Arguments are those of `Task`.
    """

    def align(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pair scores [N, T, V] with the labels of the next position, and make one list of all.

        Raises:
            DataError: There is not one label for each position.
        """
        if scores.ndim != 3 or labels.shape != scores.shape[:2]:
            raise DataError(
                f"data: labels of shape {list(labels.shape)} do not fit scores of shape "
                f"{list(scores.shape)}; task=causal_lm needs [N, T] and [N, T, vocabulary], such as "
                "data=text_lines with model=hf_causal_lm"
            )
        return scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten()

    def weight(self, labels: Tensor) -> Tensor:
        """How many tokens count; kept on the device."""
        return (labels != IGNORED).sum()


class Perplexity(Metric):
    """Exponential of the mean cross-entropy over all tokens that count.

    Args:
        ignore_index: Label that does not count.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = True

    nats: Tensor
    tokens: Tensor

    def __init__(self, ignore_index: int = IGNORED) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self.ignore_index = ignore_index
        self.add_state("nats", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            scores: [M, V], before any softmax.
            labels: [M].
        """
        nats = cross_entropy(
            scores.float(), labels, ignore_index=self.ignore_index, reduction="sum"
        )
        self.nats += nats.to(self.nats)
        self.tokens += (labels != self.ignore_index).sum()

    def compute(self) -> Tensor:
        """1 for a model that is always right and certain; the vocabulary's size for even scores."""
        return (self.nats / self.tokens).exp()
