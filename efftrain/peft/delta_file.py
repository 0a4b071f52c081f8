"""The delta file: a safetensors file that says what it is, what it belongs to, and whether it is whole.

Layout: the tensors under their state-dict keys, and in the header's metadata `format`, `method`,
`groups`, `bn_stats`, `base` (digest of the weights that did not train), `base_parts` (the same by
top-level child), `torch`, `efftrain`, `user` (the caller's own entries) and `sha256`, which covers
every name, shape, dtype and byte and all the other entries.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from efftrain.errors import CheckpointError
from efftrain.files import write_atomic
from efftrain.peft.fingerprint import digest

FORMAT = "efftrain-delta-1"
_ENTRIES = ("format", "method", "groups", "bn_stats", "base", "base_parts", "user", "sha256")


@dataclass(frozen=True)
class Delta:
    """What one fine-tuned task changed in a model.

    Attributes:
        tensors: Trained parameters and running statistics by state-dict key, on the CPU.
        method: The method that trained them.
        groups: Role to names of the trained parameters.
        bn_stats: The policy for running statistics in that training.
        base: Digest of what did not train; "" where everything did.
        base_parts: The same by top-level child.
        user: The caller's own entries.
        versions: Of torch and efftrain, when it was written.
    """

    tensors: dict[str, Tensor]
    method: str
    groups: dict[str, tuple[str, ...]]
    bn_stats: str
    base: str
    base_parts: dict[str, str]
    user: dict[str, str] = field(default_factory=dict[str, str])
    versions: dict[str, str] = field(default_factory=lambda: _versions())

    def entries(self) -> dict[str, str]:
        """The header's metadata, without the digest."""
        return {
            "format": FORMAT,
            "method": self.method,
            "groups": json.dumps(self.groups, sort_keys=True),
            "bn_stats": self.bn_stats,
            "base": self.base,
            "base_parts": json.dumps(self.base_parts, sort_keys=True),
            "user": json.dumps(self.user, sort_keys=True),
            **self.versions,
        }

    @property
    def sha256(self) -> str:
        """Digest of the content: every tensor and every entry."""
        return _content_digest(self.tensors, self.entries())


@dataclass(frozen=True)
class DeltaInfo:
    """A delta file in figures.

    Attributes:
        path: Where it is.
        bytes: Size of the file.
        tensors: Number of tensors in it.
        elements: Their elements.
        sha256: Digest of the content.
        method: The method that trained it.
    """

    path: str
    bytes: int
    tensors: int
    elements: int
    sha256: str
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def write_delta(delta: Delta, path: Path | str) -> DeltaInfo:
    """Write a delta so that the file is there in full or not at all.

    Args:
        delta: What to write.
        path: The file; its folder is created where it is missing.

    Raises:
        MachineError: The folder cannot be written.
    """
    path = Path(path)
    sha256 = delta.sha256
    metadata = {**delta.entries(), "sha256": sha256}
    write_atomic(path, lambda part: _serialize(delta.tensors, metadata, part))
    return DeltaInfo(
        path=str(path),
        bytes=path.stat().st_size,
        tensors=len(delta.tensors),
        elements=sum(tensor.numel() for tensor in delta.tensors.values()),
        sha256=sha256,
        method=delta.method,
    )


def read_delta(path: Path | str) -> Delta:
    """Read a delta and check that not one bit of it has changed.

    Args:
        path: A file that `write_delta` or `save_delta` wrote.

    Raises:
        CheckpointError: No such file, not a delta, of a newer format, truncated or damaged.
    """
    path = Path(path)
    try:
        metadata, tensors = _read(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"delta {path} does not exist; check the path") from error
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"delta {path} is damaged or not a safetensors file ({reason}); copy it again"
        ) from error
    missing = [entry for entry in _ENTRIES if entry not in metadata]
    if missing:
        raise CheckpointError(
            f"delta {path} is no efftrain delta: its header has no {', '.join(missing)}; "
            "such a file is written by save_delta"
        )
    if metadata["format"] != FORMAT:
        raise CheckpointError(
            f"delta {path} has format {metadata['format']!r}, this version reads {FORMAT!r}; "
            "upgrade efftrain"
        )
    delta = _parse(path, metadata, tensors)
    # over the entries as they stand in the file: once parsed, two spellings may mean the same
    entries = {entry: value for entry, value in metadata.items() if entry != "sha256"}
    if _content_digest(tensors, entries) != metadata["sha256"]:
        raise CheckpointError(
            f"delta {path} is damaged: its content does not have the SHA-256 that it states; "
            "copy it again"
        )
    return delta


def _serialize(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    path.touch()
    mode = path.stat().st_mode  # as the user's mask has it; safetensors lets only the owner read
    try:
        save_file(tensors, str(path), metadata=metadata)
        path.chmod(mode)
    except SafetensorError as error:  # a full disk, most often
        raise OSError(str(error)) from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    opened: Any = safe_open(str(path), framework="pt", device="cpu")
    with opened as file:
        names: list[str] = list(file.keys())
        return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}


def _parse(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> Delta:
    try:
        groups = cast("dict[str, list[str]]", json.loads(metadata["groups"]))
        return Delta(
            tensors=tensors,
            method=metadata["method"],
            groups={group: tuple(names) for group, names in groups.items()},
            bn_stats=metadata["bn_stats"],
            base=metadata["base"],
            base_parts=json.loads(metadata["base_parts"]),
            user=json.loads(metadata["user"]),
            versions={key: metadata[key] for key in _versions() if key in metadata},
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"delta {path} is damaged: its header cannot be read; copy it again"
        ) from error


def _content_digest(tensors: dict[str, Tensor], entries: dict[str, str]) -> str:
    text = f"{digest(tensors)}\n{json.dumps(entries, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _versions() -> dict[str, str]:
    try:
        own = version("efftrain")
    except PackageNotFoundError:  # run from a source tree that was never installed
        own = "unknown"
    return {"torch": str(torch.__version__), "efftrain": own}
