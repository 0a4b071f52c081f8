"""Start a verb under Hydra: check everything first, then run, then end with the right exit code.

Hydra's own errors come one at a time, with exit code 1, and a misspelt key in a YAML file not at
all. So every job's config is composed and validated before Hydra starts the first one.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser  # the parser hydra.main uses; pinned below 1.4
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from efftrain.cli import stop_quietly
from efftrain.config.allow import trusted_packages
from efftrain.config.compose import compose, expand_sweep, parse_overrides
from efftrain.config.problem import Problem
from efftrain.config.sources import COMMAND_LINE
from efftrain.config.validate import validate
from efftrain.errors import INTERRUPTED, ConfigError, EfftrainError, MachineError
from efftrain.paths import RunFolder, conf_dir

TRACEBACK_VARIABLE = "EFFTRAIN_TRACEBACK"

_PROCESSES = ("strategy", "devices")

_HYDRA_PARTS = frozenset({"hydra", "hydra_plugins"})
"""Packages whose objects a Hydra node may name without being trusted."""


def launch(verb: str, schema: type, job: Callable[[DictConfig], None]) -> NoReturn:
    """Run a verb with the overrides of the command line, and exit.

    Args:
        verb: Name of the primary config.
        schema: The dataclass that its config is checked against.
        job: Called once per job with a config that has passed the check.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    args = get_args_parser().parse_args()
    name = args.config_name or verb
    folders = _config_folders(args)
    try:
        if args.experimental_rerun:
            raise ConfigError(
                "--experimental-rerun loads a pickle, which can run code; not offered"
            )
        if not _only_shows(args):
            _check_jobs(name, args, schema, folders)
        base = str(folders[-1])
        failures: list[Exception] = []
        run = _logged(job, failures)
        hydra.main(version_base="1.3", config_path=base, config_name=name)(run)()
        if failures:
            raise failures[0]
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C", INTERRUPTED)
    except EfftrainError as error:
        _fail(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(" ".join(f"{error} {error.__cause__ or ''}".split()), ConfigError.exit_code)
    except BrokenPipeError:
        stop_quietly()
    except OSError as error:
        where = f"cannot use {error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", MachineError.exit_code)
    except Exception as error:
        hint = "" if _wants_traceback() else f"; set {TRACEBACK_VARIABLE}=1 for the traceback"
        lines = str(error).strip().splitlines() or ["no message"]
        _fail(f"{type(error).__name__}: {lines[0]}{hint}", 1)
    sys.exit(0)


def _check_jobs(name: str, args: Namespace, schema: type, folders: list[Path]) -> None:
    """Compose and validate each job, and raise all problems together."""
    if args.multirun:
        jobs = expand_sweep(args.overrides)
    else:
        jobs = [list(args.overrides)]
        sweeps = [o.input_line for o in parse_overrides(args.overrides) if o.is_sweep_override()]
        if sweeps:
            raise ConfigError(f"{sweeps[0]}: several values need -m (one run for each)")
    problems: dict[str, None] = {}
    for overrides in jobs:
        composition = compose(name, overrides, folders)
        found = [*composition.problems, *_check_hydra_node(composition.config)]
        config = composition.config.copy()
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        found += validate(config, schema, composition.sources)
        if args.multirun:
            found += _check_strategy(config)
        problems.update(dict.fromkeys(map(str, found)))
        if not found and not args.multirun:
            _check_run_folder(composition.config)
    if problems:
        raise ConfigError(*problems)


def _check_hydra_node(config: DictConfig) -> list[Problem]:
    """Hydra builds its callbacks, launcher and sweeper itself, before any code of ours runs."""
    node = config.hydra
    parts = {f"hydra.callbacks.{name}": part for name, part in (node.callbacks or {}).items()}
    parts |= {"hydra.launcher": node.launcher, "hydra.sweeper": node.sweeper}
    known = _HYDRA_PARTS | trusted_packages()
    problems = []
    for key, part in parts.items():
        target = str(part.get("_target_", "")) if isinstance(part, DictConfig) else ""
        package = target.split(".")[0]
        if target and package not in known:
            problems.append(Problem(f"{key}._target_", f"may not build '{target}'", COMMAND_LINE))
    return problems


def _check_strategy(config: DictConfig) -> list[Problem]:
    """Lightning starts the other processes by this very command line, sweep and all."""
    strategy, devices = (OmegaConf.select(config, f"trainer.{key}") for key in _PROCESSES)
    if "ddp" not in str(strategy) or devices in (1, "1") or "TORCHELASTIC_RUN_ID" in os.environ:
        return []
    what = "a sweep cannot start several processes, each would sweep again; run the jobs one by one"
    return [Problem("trainer.strategy", what)]


def _check_run_folder(config: DictConfig) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hydra.run.dir may use resolvers that the job sets up
        folder = RunFolder(Path(str(OmegaConf.select(config, "hydra.run.dir"))))
    if folder.summary_json.exists():
        raise MachineError(
            f"hydra.run.dir: {folder.root} holds a finished run; name another folder or move it away"
        )


def _config_folders(args: Namespace) -> list[Path]:
    """Where YAML is looked for: the user's --config-dir first, the shipped one last."""
    shipped = Path(args.config_path).resolve() if args.config_path else conf_dir()
    if not args.config_dir:
        return [shipped]
    own = Path(args.config_dir).resolve()
    if not own.is_dir():
        _fail(f"--config-dir: no folder {args.config_dir}", ConfigError.exit_code)
    return [own, shipped]


def _only_shows(args: Namespace) -> bool:
    """Whether the call prints something instead of running a job."""
    return bool(args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)


def _logged(
    job: Callable[[DictConfig], None], failures: list[Exception]
) -> Callable[[DictConfig], None]:
    """Keep a failed job's reason in its own train.log, which the others of a sweep cannot reach.

    A single run's failure is handed on in `failures`: Hydra would print a line of its own about it.
    A sweep's has to reach Hydra, whose launchers may run it in another process.
    """

    def run(config: DictConfig) -> None:
        try:
            job(config)
        except Exception as error:
            logging.getLogger("efftrain.failure").error("%s", error, exc_info=True)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            failures.append(error)

    return run


def _wants_traceback() -> bool:
    return os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")


def _fail(message: str, code: int) -> NoReturn:
    if _wants_traceback():
        traceback.print_exc()
    for line in message.splitlines():
        print(f"efftrain: {line}", file=sys.stderr)
    sys.exit(code)
