"""Weights from elsewhere: a hub, a folder, a file; and what may go wrong on the way."""

from __future__ import annotations

import errno
import socket
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efftrain.errors import CheckpointError, EfftrainError, MachineError

KEY = "model.pretrained"

TORCH_SUFFIXES = frozenset({".pth", ".pt", ".bin", ".tar"})
"""Of files that `torch.save` wrote."""

_OFFLINE = frozenset(
    {
        "LocalEntryNotFoundError",  # huggingface_hub: no connection and not in its cache
        "OfflineModeIsEnabled",
        "ConnectError",  # httpx
        "ConnectTimeout",
        "ReadTimeout",
        "ProxyError",
    }
)
_NOT_THERE = frozenset(
    {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError", "GatedRepoError"}
)


def local_path(source: str, key: str = KEY) -> Path | None:
    """The file or folder that is meant, or None for a hub id.

    Args:
        source: As written in the config.
        key: Where it is written.

    Raises:
        CheckpointError: It can only be a path, and there is nothing.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    is_file = path.suffix in {*TORCH_SUFFIXES, ".safetensors"}
    is_file = path.suffix in {*TORCH_SUFFIXES, ".safetensors"}
    is_path = is_file or path.is_absolute() or source.startswith((".", "~"))
    # a hub id is `name` or `owner/name`
    if is_path or len(path.parts) > 2:
        raise CheckpointError(f"{key}: no file or folder {source}")
    return None


@contextmanager
def loading(source: str) -> Iterator[None]:
    """Turn what the libraries complain of while they load into one line of ours.

    Args:
        source: Hub id, folder or file, for the message.

    Raises:
        MachineError: The hub cannot be reached, the disk is full, or a package is missing.
        CheckpointError: There are no such weights, or they are damaged or of another model.
    """
    try:
        yield
    except EfftrainError:
        raise
    except Exception as error:
        raise _explain(error, source) from error


def first_line(error: BaseException) -> str:
    """What an error says, on one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:240]}…"


def _explain(error: Exception, source: str) -> EfftrainError:
    chain = list(_causes(error))
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    statuses = {one.code for one in chain if isinstance(one, urllib.error.HTTPError)}
    if names & _OFFLINE or (_is_unreachable(chain) and not statuses):
        return MachineError(
            f"{KEY}: cannot reach the hub for '{source}', and it is not in the local cache; "
            f"without a network, name a local folder or file: {KEY}=<path>"
        )
    if any(isinstance(one, OSError) and one.errno == errno.ENOSPC for one in chain):
        return MachineError(f"{KEY}: the disk is full, '{source}' cannot be kept")
    if names & _NOT_THERE or statuses:
        return CheckpointError(f"{KEY}: the hub does not give '{source}': {first_line(error)}")
    missing = next((one for one in chain if isinstance(one, ImportError)), None)
    if missing is not None:
        package = f"; run: pip install {missing.name}" if missing.name else ""
        return MachineError(
            f"{KEY}: '{source}' needs another package: {first_line(missing)}{package}"
        )
    return CheckpointError(f"{KEY}: cannot load '{source}': {first_line(error)}")


def _is_unreachable(chain: list[BaseException]) -> bool:
    network = (socket.gaierror, urllib.error.URLError, ConnectionError, TimeoutError)
    return any(isinstance(one, network) for one in chain)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
