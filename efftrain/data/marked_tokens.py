"""Synthetic labelled sequences: each class favours its own letters. Needs no download."""

from __future__ import annotations

from functools import partial

import torch

from efftrain.data.adapt import require_token_input
from efftrain.data.alphabet import alphabet
from efftrain.data.padding import collate_labelled
from efftrain.data.split import SPLIT_SEED, Collate, Samples, Sets, SplitData, split_indices
from efftrain.errors import DataError
from efftrain.models.interface import ModelInterface


class MarkedTokensData(SplitData):
    """Sequences of random letters, in which the letters of the label's own share are more frequent.

    The letters are dealt out to the classes in turn. At each position, independently, a letter of
    the class's own is drawn with probability `signal`, and else any letter, evenly. So a share
    `signal + (1 - signal) / classes` of a sequence is the class's own: counting letters solves it.

    The same sequences in every run, written in ids that the model has. Batches hold `input_ids`,
    `attention_mask` [N, length] and `labels` [N].

    Args:
        samples: Sequences in all; a fixed quarter is held out.
        length: Tokens a sequence, or as many as the model takes.
        letters: Different token ids in use.
        signal: Probability of a letter of the class's own.
        classes: Labels; None: as many as the model gives scores for.
        batch_size: Sequences a batch.
        num_workers: Processes that load; 0 is fastest for what lies in memory.
    """

    def __init__(
        self,
        samples: int = 2048,
        length: int = 32,
        letters: int = 64,
        signal: float = 0.5,
        classes: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        """Nothing is drawn yet."""
        super().__init__(batch_size, num_workers)
        self.samples = samples
        self.length = length
        self.letters = letters
        self.signal = signal
        self.classes = classes
        self._interface = ModelInterface(num_classes=2, vocab_size=letters + 4, max_length=length)

    def adapt_to(self, interface: ModelInterface) -> None:
        """Write in the model's ids, with as many classes as it tells apart."""
        require_token_input(interface, "marked_tokens")
        self._interface = interface

    def read(self) -> Sets:
        """Draw all sequences, and hold a quarter out."""
        classes = self.classes or self._interface.num_classes or 2
        if not 2 <= classes <= self.letters:
            raise DataError(
                f"data.classes: {classes} classes do not fit {self.letters} letters; there have to be "
                "from 2 to as many as data.letters"
            )
        ids = alphabet(self._interface.vocab_size or self.letters + 4, self.letters)
        length = min(self.length, self._interface.max_length or self.length)
        chance = torch.Generator().manual_seed(SPLIT_SEED)
        labels = torch.arange(self.samples) % classes
        shape = (self.samples, length)
        anything = torch.randint(self.letters, shape, generator=chance)
        own_count = (self.letters - labels - 1) // classes + 1  # letters k, k + classes, …
        turn = (torch.rand(shape, generator=chance) * own_count[:, None]).long()
        own = labels[:, None] + classes * turn
        is_own = torch.rand(shape, generator=chance) < self.signal
        sequences = ids[torch.where(is_own, own, anything)].tolist()
        pairs = list(zip(sequences, labels.tolist(), strict=True))
        train, held_out = split_indices(self.samples, held_out=0.25)
        return Samples([pairs[i] for i in train]), Samples([pairs[i] for i in held_out])

    def collate_with(self, training: bool) -> Collate:
        """All sequences have one length, so that nothing is padded."""
        return partial(collate_labelled, pad_id=0)
