"""`efftrain tensorboard run=<folder>|latest [port=6006]`: open the curves of a run, or of several.

A folder of several runs shows them together. TensorBoard listens on localhost alone; without `port`
it takes the first free one from 6006 on. Ctrl-C ends it.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import NoReturn

from efftrain.config.problem import did_you_mean
from efftrain.errors import INTERRUPTED, CheckpointError, ConfigError, EfftrainError, MachineError
from efftrain.paths import RunFolder

RUNS = Path("outputs")
"""Where runs go unless `hydra.run.dir` says otherwise."""
EVENTS = "events.out.tfevents.*"
_HIGHEST_PORT = 65535


def main() -> None:
    """Entry point of `efftrain tensorboard`."""
    words = sys.argv[1:]
    if any(word in ("-h", "--help") for word in words):
        print(str(__doc__).strip())
        return
    try:
        given = read_words(words)
        serve(find_curves(given.get("run", "latest")), read_port(given.get("port")))
    except EfftrainError as error:
        for line in str(error).splitlines():
            print(f"efftrain: {line}", file=sys.stderr)
        sys.exit(error.exit_code)


def read_words(words: list[str]) -> dict[str, str]:
    """`run=x port=1` as a mapping.

    Raises:
        ConfigError: A word is not `key=value`, or its key is neither of the two.
    """
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"cannot read '{word}'; write run={word}")
        if key not in ("run", "port"):
            raise ConfigError(f"{key}: unknown key{did_you_mean(key, ['run', 'port'])}")
        found[key] = value
    return found


def read_port(text: str | None) -> int | None:
    """A port; None for any that is free.

    Raises:
        ConfigError: It is no number of a port.
    """
    if text is None:
        return None
    if not text.isdecimal() or not 0 < int(text) <= _HIGHEST_PORT:
        raise ConfigError(f"port={text}: expected a number from 1 to {_HIGHEST_PORT}")
    return int(text)


def find_curves(run: str) -> Path:
    """The folder to show.

    Args:
        run: A run folder, a folder of several, or "latest" for the one below `outputs/` that was
            written to last.

    Raises:
        CheckpointError: It holds no event files.
    """
    if run == "latest":
        files = sorted(RUNS.rglob(EVENTS), key=lambda file: file.stat().st_mtime)
        if not files:
            raise CheckpointError(f"run=latest: no run below {RUNS.resolve()}; name its folder")
        return files[-1].parent
    folder = Path(run)
    if not folder.is_dir():
        raise CheckpointError(f"run: no folder {run}")
    if next(folder.rglob(EVENTS), None) is None:
        raise CheckpointError(f"run: no TensorBoard curves in {run}; was it run with logger=none?")
    own = RunFolder(folder).tensorboard
    return own if own.is_dir() else folder


def serve(folder: Path, port: int | None) -> NoReturn:
    """Show a folder until somebody stops it.

    Raises:
        MachineError: The port is taken.
    """
    from tensorboard import program

    board = program.TensorBoard()
    options = ["--logdir", str(folder), "--host", "localhost"]
    board.configure(argv=["tensorboard", *options, *(["--port", str(port)] if port else [])])
    try:
        url = board.launch()
    except program.TensorBoardServerException as error:
        where = f"port={port}: " if port else ""
        raise MachineError(f"{where}{str(error).strip()}; name a free one: port=6106") from error
    try:
        print(f"{folder} at {url} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
