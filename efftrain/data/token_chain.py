"""Synthetic sequences to be continued: each letter has a few successors. Needs no download."""

from __future__ import annotations

from functools import partial

import torch

from efftrain.data.adapt import require_token_input
from efftrain.data.alphabet import alphabet
from efftrain.data.padding import collate_stream
from efftrain.data.split import SPLIT_SEED, Collate, Samples, Sets, SplitData, split_indices
from efftrain.errors import DataError
from efftrain.models.interface import ModelInterface


class TokenChainData(SplitData):
    """A Markov chain over letters: after each, one of `branches` fixed successors, evenly.

    So the best perplexity that any model can reach is `branches`, and one that has learnt nothing
    but which letters there are reaches `letters`.

    The same sequences in every run, written in ids that the model has. Batches hold `input_ids`,
    `attention_mask` and `labels` [N, length].

    Args:
        samples: Sequences in all; a fixed quarter is held out.
        length: Tokens a sequence, or as many as the model takes.
        letters: Different token ids in use.
        branches: Successors of a letter.
        batch_size: Sequences a batch.
        num_workers: Processes that load; 0 is fastest for what lies in memory.
    """

    def __init__(
        self,
        samples: int = 2048,
        length: int = 32,
        letters: int = 64,
        branches: int = 4,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        """Nothing is drawn yet."""
        super().__init__(batch_size, num_workers)
        if not 1 <= branches <= letters:
            raise DataError(
                f"data.branches: must be from 1 to data.letters={letters}, got {branches}"
            )
        self.samples = samples
        self.length = length
        self.letters = letters
        self.branches = branches
        self._interface = ModelInterface(vocab_size=letters + 4, max_length=length)

    def adapt_to(self, interface: ModelInterface) -> None:
        """Write in the model's ids."""
        require_token_input(interface, "token_chain")
        self._interface = interface

    def read(self) -> Sets:
        """Draw all sequences, and hold a quarter out."""
        ids = alphabet(self._interface.vocab_size or self.letters + 4, self.letters)
        length = min(self.length, self._interface.max_length or self.length)
        chance = torch.Generator().manual_seed(SPLIT_SEED)
        keys = torch.rand(self.letters, self.letters, generator=chance)
        successors = keys.argsort(dim=1)[:, : self.branches]
        steps = [torch.randint(self.letters, (self.samples,), generator=chance)]
        for _ in range(length - 1):
            branch = torch.randint(self.branches, (self.samples,), generator=chance)
            steps.append(successors[steps[-1], branch])
        sequences = ids[torch.stack(steps, dim=1)].tolist()
        train, held_out = split_indices(self.samples, held_out=0.25)
        return Samples([sequences[i] for i in train]), Samples([sequences[i] for i in held_out])

    def collate_with(self, training: bool) -> Collate:
        """All sequences have one length, so that nothing is padded."""
        return partial(collate_stream, pad_id=0)
