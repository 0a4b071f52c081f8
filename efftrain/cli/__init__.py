"""The `efftrain` command: takes the verb and hands over to its module.

Each verb imports torch, Lightning and Hydra by itself, so that `efftrain --help` answers at once.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import NoReturn

from efftrain.config.problem import did_you_mean

VERBS = {
    "train": "fine-tune a model and write what changed, what it cost and how good it is",
    "eval": "evaluate a finished run again: efftrain eval run=<run folder>",
    "export": "write a finished run as a model: efftrain export run=<run folder> to=merged|folded|peft",
    "profile": "what a training step would cost, before it runs: efftrain profile model=… peft=norm",
    "tensorboard": "open the curves of a run: efftrain tensorboard run=<folder>|latest",
    "configs": "list the configs that can be named, or check every one: efftrain configs ls|check",
}

_HELP = """\
efftrain: fine-tune only what matters in a pretrained model, and know exactly what it costs.

  efftrain <verb> [overrides]

{verbs}

  efftrain train                                  the default job: real digits, a shifted domain
  efftrain train peft=norm_head optim.lr=3e-3     change a group, change a value
  efftrain train --cfg job --resolve              print the config without running it
  efftrain train --help                           every key of a verb's config

Exit codes: 0 done; 1 findings or a fault in efftrain; 2 config; 3 data; 4 checkpoint; 5 numbers that
are not finite; 6 machine (disk, device, package); 130 and 143 stopped by a signal.
EFFTRAIN_TRACEBACK=1 shows the traceback of an error.
"""


PIPE_CLOSED = 141
"""Exit code after SIGPIPE (128 + 13)."""


def main() -> None:
    """Entry point of `efftrain` and `python -m efftrain`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
        print(_HELP.format(verbs=verbs), end="")
        return
    if arguments[0] in ("-V", "--version"):
        from efftrain import __version__

        print(f"efftrain {__version__}")
        return
    verb = arguments[0]
    if verb not in VERBS:
        print(f"efftrain: unknown verb '{verb}'{did_you_mean(verb, VERBS)}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    # The verb's module becomes __main__, so that a process which Lightning starts for another
    # device runs `python -m efftrain.cli.train` with the same overrides.
    runpy.run_module(f"efftrain.cli.{verb}", run_name="__main__", alter_sys=True)


def stop_quietly() -> NoReturn:
    """End when the reader of our output, such as `head`, has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(PIPE_CLOSED)
