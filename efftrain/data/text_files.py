"""Texts with one label each, from a user's own CSV, TSV or JSON-lines files."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from efftrain.data.adapt import check_classes, require_token_input
from efftrain.data.padding import collate_labelled
from efftrain.data.split import Collate, Samples, Sets, SplitData, split_indices
from efftrain.data.tokenizer import Tokenizer, load_tokenizer
from efftrain.errors import DataError
from efftrain.models.interface import ModelInterface

_log = logging.getLogger(__name__)

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")

Row = tuple[str, str, str]
"""Place in a file ("reviews.csv:7"), text and label."""


class TextFilesData(SplitData):
    """Rows of a text and a label.

    Labels may be numbers from 0 or words; words are numbered in alphabetical order. Batches hold
    `input_ids`, `attention_mask` [N, T], padded to the longest, and `labels` [N].

    Args:
        train: A .csv, .tsv or .jsonl file, with a header or with keys.
        val: Another one to evaluate on; None: a fixed share of the first.
        held_out: That share.
        text: Column or key of the text.
        label: Column or key of the label.
        tokenizer: `bytes`, a hub id or a folder; None for the model's own.
        length: Tokens that a longer text is cut to.
        batch_size: Texts a batch.
        num_workers: Processes that load; 0 is fastest for what lies in memory.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        held_out: float = 0.2,
        text: str = "text",
        label: str = "label",
        tokenizer: str | None = None,
        length: int = 128,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        """Nothing is read yet."""
        super().__init__(batch_size, num_workers)
        self.train = train
        self.val = val
        self.held_out = held_out
        self.text = text
        self.label = label
        self.tokenizer = tokenizer
        self.length = length
        self._interface = ModelInterface()
        self._pad_id = 0

    def adapt_to(self, interface: ModelInterface) -> None:
        """Tokenize as the model was trained with."""
        require_token_input(interface, "text_files")
        self._interface = interface

    def read(self) -> Sets:
        """Read and tokenize all rows."""
        tokenizer = load_tokenizer(self.tokenizer, self._interface)
        self._pad_id = tokenizer.pad_id
        rows = self._rows("data.train", self.train)
        numbers = _number_labels(rows)
        if self.val is not None:
            others = self._rows("data.val", self.val)
        else:
            if len(rows) < 2:
                raise DataError(
                    f"data.train: {self.train} has one row; there is none to evaluate on"
                )
            kept, held_out = split_indices(len(rows), self.held_out)
            rows, others = [rows[i] for i in kept], [rows[i] for i in held_out]
        check_classes(max(numbers.values()) + 1, self._interface, self.train)
        return self._samples(rows, numbers, tokenizer), self._samples(others, numbers, tokenizer)

    def collate_with(self, training: bool) -> Collate:
        """Pad to the longest text of a batch."""
        return partial(collate_labelled, pad_id=self._pad_id)

    def _rows(self, key: str, name: str) -> list[Row]:
        path = Path(name).expanduser()
        if not path.is_file():
            raise DataError(f"{key}: no file {name}")
        suffix = path.suffix.lower()
        if suffix in _DELIMITERS:
            records = _read_table(path, _DELIMITERS[suffix])
        elif suffix in _JSON_LINES:
            records = _read_json_lines(path)
        else:
            raise DataError(f"{key}: {name} is none of .csv, .tsv, .jsonl")
        try:
            rows = [self._row(place, record) for place, record in records]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{key}: {name} cannot be read as UTF-8 text: {error}") from error
        if not rows:
            raise DataError(f"{key}: {name} has no rows")
        return rows

    def _row(self, place: str, record: dict[str, Any]) -> Row:
        for column in (self.text, self.label):
            if record.get(column) is None:
                has = ", ".join(str(name) for name in record if name is not None)
                raise DataError(
                    f"data: {place} has no '{column}'; it has {has or 'nothing'}; "
                    "name the columns with data.text and data.label"
                )
        return place, str(record[self.text]), str(record[self.label]).strip()

    def _samples(self, rows: list[Row], numbers: dict[str, int], tokenizer: Tokenizer) -> Samples:
        length = min(self.length, self._interface.max_length or self.length)
        samples = []
        for place, text, label in rows:
            if label not in numbers:
                raise DataError(
                    f"data: {place} has the label '{label}', which {self.train} never has"
                )
            samples.append((tokenizer.encode(text, length), numbers[label]))
        return Samples(samples)


def _number_labels(rows: list[Row]) -> dict[str, int]:
    """Labels that are numbers stay so; words are numbered, and which is which is said."""
    labels = sorted({label for _, _, label in rows})
    if all(label.isdecimal() for label in labels):
        return {label: int(label) for label in labels}
    _log.info("labels: " + ", ".join(f"{number} {label}" for number, label in enumerate(labels)))
    return {label: number for number, label in enumerate(labels)}


def _read_table(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        for record in reader:
            yield f"{path}:{reader.line_num}", record


def _read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"data: {path}:{number} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"data: {path}:{number} is no object with keys")
            yield f"{path}:{number}", record
