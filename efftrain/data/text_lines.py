"""Running text to be continued, from a user's own files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from efftrain.data.adapt import require_token_input
from efftrain.data.padding import collate_stream
from efftrain.data.split import Collate, Samples, Sets, SplitData
from efftrain.data.tokenizer import Tokenizer, load_tokenizer
from efftrain.errors import DataError
from efftrain.models.interface import ModelInterface


class TextLinesData(SplitData):
    """A text file with one document a line, tokenized, joined and cut into blocks.

    Documents are joined by the token that ends one; a last block that is not full is left out.
    Batches hold `input_ids`, `attention_mask` and `labels` [N, length].

    Args:
        train: A UTF-8 text file.
        val: Another one to evaluate on; None: the last blocks of the first, which then share at
            most one document with those before them.
        held_out: Share of the blocks that are the last.
        tokenizer: `bytes`, a hub id or a folder; None for the model's own.
        length: Tokens a block, or as many as the model takes.
        batch_size: Blocks a batch.
        num_workers: Processes that load; 0 is fastest for what lies in memory.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        held_out: float = 0.1,
        tokenizer: str | None = None,
        length: int = 128,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        """Nothing is read yet."""
        super().__init__(batch_size, num_workers)
        self.train = train
        self.val = val
        self.held_out = held_out
        self.tokenizer = tokenizer
        self.length = length
        self._interface = ModelInterface()
        self._pad_id = 0

    def adapt_to(self, interface: ModelInterface) -> None:
        """Tokenize as the model was trained with."""
        require_token_input(interface, "text_lines")
        self._interface = interface

    def read(self) -> Sets:
        """Read, tokenize and cut."""
        tokenizer = load_tokenizer(self.tokenizer, self._interface)
        self._pad_id = tokenizer.pad_id
        blocks = self._blocks("data.train", self.train, tokenizer)
        if self.val is not None:
            return Samples(blocks), Samples(self._blocks("data.val", self.val, tokenizer))
        if len(blocks) < 2:
            raise DataError(
                f"data.train: {self.train} fills one block of {len(blocks[0])} tokens, and there is "
                "none to evaluate on; lower data.length or name data.val"
            )
        cut = len(blocks) - min(max(round(len(blocks) * self.held_out), 1), len(blocks) - 1)
        return Samples(blocks[:cut]), Samples(blocks[cut:])

    def collate_with(self, training: bool) -> Collate:
        """All blocks have one length, so that nothing is padded."""
        return partial(collate_stream, pad_id=self._pad_id)

    def _blocks(self, key: str, name: str, tokenizer: Tokenizer) -> list[list[int]]:
        path = Path(name).expanduser()
        if not path.is_file():
            raise DataError(f"{key}: no file {name}")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{key}: {name} cannot be read as UTF-8 text: {error}") from error
        ids = [one for line in lines if line.strip() for one in tokenizer.encode_line(line)]
        length = min(self.length, self._interface.max_length or self.length)
        blocks = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
        if not blocks:
            raise DataError(
                f"{key}: {name} has {len(ids)} tokens, fewer than a block of {length}; lower data.length"
            )
        return blocks
