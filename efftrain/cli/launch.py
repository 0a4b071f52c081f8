"""Start a verb under Hydra: check everything first, then run, then end with the right exit code.

Hydra's own errors come one at a time, with exit code 1, and a misspelt key in a YAML file not at
all. So every job's config is composed and validated before Hydra starts the first one.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser  # the parser hydra.main uses; pinned below 1.4
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from efftrain.cli import stop_quietly
from efftrain.config.compose import compose, expand_sweep, parse_overrides
from efftrain.config.hydra_node import check_hydra_node
from efftrain.config.problem import Problem
from efftrain.config.validate import require_valid, validate
from efftrain.errors import INTERRUPTED, ConfigError, EfftrainError, MachineError
from efftrain.paths import conf_dir

TRACEBACK_VARIABLE = "EFFTRAIN_TRACEBACK"


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
        if args.config_path:
            raise ConfigError("--config-path: not offered; --config-dir adds a folder of your own")
        if not _only_shows(args):
            _check_jobs(name, args, schema, folders)
        elif not args.shell_completion:
            _check_what_is_shown(name, args, folders)
        base = str(folders[-1])
        failures: list[Exception] = []
        run = _guarded(job, schema, failures)
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
        found = [*composition.problems, *check_hydra_node(composition.config.hydra)]
        config = composition.config.copy()
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        found += validate(config, schema, composition.sources)
        if args.multirun:
            found += _check_processes(config)
        problems.update(dict.fromkeys(map(str, found)))
        if not found:
            _check_run_folder(composition.config, args.multirun)
    if problems:
        raise ConfigError(*problems)


def _check_what_is_shown(name: str, args: Namespace, folders: list[Path]) -> None:
    """Hydra sets its logging up even to print a help text; typos may be shown, code may not run."""
    overrides = [] if args.multirun else list(args.overrides)
    problems = check_hydra_node(compose(name, overrides, folders).config.hydra)
    if problems:
        raise ConfigError(*map(str, problems))


def _check_processes(config: DictConfig) -> list[Problem]:
    """Lightning starts other processes by this very command line, sweep and all."""
    if "TORCHELASTIC_RUN_ID" in os.environ or _count_processes(config.get("trainer") or {}) == 1:
        return []
    what = "a sweep cannot start several processes, each would sweep again; run the jobs one by one"
    return [Problem("trainer.devices", what)]


def _count_processes(trainer: Mapping[str, Any]) -> int:
    """How many processes the Trainer would start, at least."""
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        devices = len(devices)
    elif str(devices) in ("auto", "-1"):
        import torch

        on_cpu = trainer.get("accelerator") == "cpu"
        devices = 1 if on_cpu else max(1, torch.accelerator.device_count())
    elif "," in str(devices):
        devices = str(devices).count(",") + 1
    return int(devices) * int(nodes)


def _check_run_folder(config: DictConfig, multirun: bool) -> None:
    """A finished run is not written over; `hydra.run.dir` and `hydra.sweep.dir` can name any folder."""
    key, pattern = (
        ("hydra.sweep.dir", "*/summary.json") if multirun else ("hydra.run.dir", "summary.json")
    )
    folder = Path(str(OmegaConf.select(config, key)))
    if any(folder.glob(pattern)):
        raise MachineError(
            f"{key}: {folder} holds a run already; name another folder or move it away"
        )


def _config_folders(args: Namespace) -> list[Path]:
    """Where YAML is looked for: the user's --config-dir first, the shipped one last."""
    if not args.config_dir:
        return [conf_dir()]
    own = Path(args.config_dir).resolve()
    if not own.is_dir():
        _fail(f"--config-dir: no folder {args.config_dir}", ConfigError.exit_code)
    return [own, conf_dir()]


def _only_shows(args: Namespace) -> bool:
    """Whether the call prints something instead of running a job."""
    return bool(args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)


def _guarded(
    job: Callable[[DictConfig], None], schema: type, failures: list[Exception]
) -> Callable[[DictConfig], None]:
    """Check a job's config once more, and keep its failure in its own train.log.

    What only a sweeper knows (an interval, a key of hydra.sweeper.params) was not there to be checked
    before. A single run's failure is handed on in `failures`: Hydra would print a line of its own
    about it. A sweep's has to reach Hydra, whose launchers may run it in another process.
    """

    def run(config: DictConfig) -> None:
        try:
            require_valid(config, schema)
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
