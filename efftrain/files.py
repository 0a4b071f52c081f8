"""Files that are either there in full or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from efftrain.errors import MachineError

PART_SUFFIX = ".part"


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of either.

    The bytes go to a temporary file in the same folder (a rename across file systems is a copy,
    and a copy can tear), reach the disk, and take the name in one step.

    Args:
        path: The file to create or replace. Its folder is created where it is missing.
        write: Called with the temporary path; writes the content there.

    Raises:
        MachineError: The folder cannot be written, or the disk is full.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = (
            part.stat().st_mode
        )  # what the umask makes of a new file; some writers keep theirs private
        write(part)
        part.chmod(mode)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see `write_atomic`."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
