"""Errors with the exit code that the command line turns them into.

Every error says what is wrong, where (the config key), what is allowed and what to do next, in
one line. A library user catches `EfftrainError`; the command line prints it and exits.
"""

from __future__ import annotations


class EfftrainError(ValueError):
    """Base of every error that efftrain raises on purpose."""

    exit_code: int = 1


class ConfigError(EfftrainError):
    """A config, an override or a selection that cannot be run.

    Args:
        problems: One line each; all of them are reported together.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        """Keep the problems apart, so that each can stand on a line of its own."""
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(EfftrainError):
    """Samples or labels that cannot be trained on."""

    exit_code = 3


class CheckpointError(EfftrainError):
    """A weights file, delta or run folder that is missing, damaged or of another model."""

    exit_code = 4


class NumericError(EfftrainError):
    """A loss, gradient or weight that is not finite."""

    exit_code = 5


class MachineError(EfftrainError):
    """A disk, device or optional package that is not there."""

    exit_code = 6


INTERRUPTED = 130
"""Exit code after SIGINT (128 + 2)."""

TERMINATED = 143
"""Exit code after SIGTERM (128 + 15)."""
