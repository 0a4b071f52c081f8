"""From text to token ids: a pretrained tokenizer, or plain bytes for a model without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from efftrain.errors import DataError
from efftrain.models.chatter import quiet_transformers
from efftrain.models.hub import loading, local_path
from efftrain.models.interface import ModelInterface

BYTES = "bytes"


class Tokenizer(Protocol):
    """What the text data sets need of one."""

    @property
    def pad_id(self) -> int:
        """What a batch is filled up with."""
        ...

    def encode(self, text: str, max_length: int) -> list[int]:
        """Ids of a text as the model expects it, cut off where it is too long."""
        ...

    def encode_line(self, text: str) -> list[int]:
        """Ids of a piece of a longer text, with the id that ends a document behind it."""
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes, moved up by one for the padding; needs no file and loses nothing."""

    vocab_size: int = 258
    pad_id: int = 0

    def encode(self, text: str, max_length: int) -> list[int]:
        """One id from 1 to 256 a byte; an empty text is the id that ends a document."""
        return [byte + 1 for byte in text.encode()[:max_length]] or [self.vocab_size - 1]

    def encode_line(self, text: str) -> list[int]:
        """The same, and 257 behind it."""
        return [*(byte + 1 for byte in text.encode()), self.vocab_size - 1]


class PretrainedTokenizer:
    """A tokenizer of transformers.

    Args:
        inner: From `AutoTokenizer`.
    """

    def __init__(self, inner: Any) -> None:
        """Choose the ids for padding and for the end of a document."""
        self.inner = inner
        ends = (inner.eos_token_id, inner.sep_token_id)
        self.end_id = next((one for one in ends if one is not None), None)
        # what is masked out may hold any id; a model such as GPT-2 has none for padding
        pads = (inner.pad_token_id, self.end_id, 0)
        self.pad_id = next(one for one in pads if one is not None)

    def encode(self, text: str, max_length: int) -> list[int]:
        """With the special tokens around it."""
        return self.inner(text, truncation=True, max_length=max_length)["input_ids"]

    def encode_line(self, text: str) -> list[int]:
        """Without special tokens but the end of a document."""
        ids = self.inner(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids if self.end_id is None else [*ids, self.end_id]


def load_tokenizer(choice: str | None, interface: ModelInterface) -> Tokenizer:
    """The tokenizer that is asked for, checked against the model's vocabulary.

    Args:
        choice: `bytes`, a hub id or a folder; None for the model's own, or bytes where it has
            random weights and so no tokenizer.
        interface: Of the model.

    Raises:
        DataError: There is no tokenizer at that place, or it has ids that the model does not take.
        MachineError: The hub cannot be reached.
    """
    vocab_size = interface.vocab_size
    source = choice or interface.source or BYTES
    if source == BYTES:
        tokenizer = ByteTokenizer()
        size = tokenizer.vocab_size
    else:
        inner = _load(source)
        size = len(inner)
        tokenizer = PretrainedTokenizer(inner)
    if vocab_size is not None and size > vocab_size:
        raise DataError(
            f"data.tokenizer: {source} has {size:,} token ids, the model takes {vocab_size:,}; name "
            "the tokenizer that it was trained with"
        )
    return tokenizer


def _load(source: str) -> Any:
    from transformers import AutoTokenizer

    path = local_path(source, "data.tokenizer")
    known = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
    if path is not None and not any((path / name).is_file() for name in known):
        raise DataError(
            f"data.tokenizer: {path} holds no tokenizer; name a folder or hub id that does, or "
            "data.tokenizer=bytes"
        )
    with loading(source), quiet_transformers():
        return AutoTokenizer.from_pretrained(str(path or source), trust_remote_code=False)
