"""Who may import whom. HOUSE is the rule; a module that is new under efftrain/ gets its place there."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "efftrain"

STANDARD_LIBRARY = ""
TORCH = "torch safetensors numpy"
ANY = "*"
NO_HYDRA = "* -hydra -omegaconf"
NO_LIGHTNING = NO_HYDRA + " -lightning -pytorch_lightning -lightning_fabric"

# A room imports from lower floors, from itself and from its own row: peft, memory and profiling
# stand in rows of their own, so that none of them sees another.
HOUSE = (
    # floor, rooms, packages from outside
    (7, "__init__ __main__ cli", ANY),
    (6, "jobs", ANY),
    (5, "config render", ANY),
    (4, "callbacks causal_lm task models data schedules", NO_HYDRA),
    (3, "measure", NO_LIGHTNING),
    (2, "peft", TORCH),
    (2, "memory", TORCH),
    (2, "profiling", TORCH + " fvcore"),
    (1, "graph surgery", TORCH),
    (0, "errors units tags paths files optional run", STANDARD_LIBRARY),
)

BUILDERS = {"hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.*"}  # call is the same one
BUILDERS_MODULE = "hydra._internal.instantiate"


class Row(NamedTuple):
    number: int
    floor: int
    outside: str

    def allows(self, package: str) -> bool:
        names = self.outside.split()
        return package in names or ("*" in names and f"-{package}" not in names)


ROOMS = {
    room: Row(number, floor, outside)
    for number, (floor, rooms, outside) in enumerate(HOUSE)
    for room in rooms.split()
}


class Import(NamedTuple):
    line: int
    name: str


def imports_of(file: Path, package: Path) -> Iterator[Import]:
    """Every import in a file, as a full dotted name, wherever in the file it stands."""
    here = [package.name, *file.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (Import(node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            # importlib.import_module("x"), __import__("x") and our own require("x", extra="x")
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            name = getattr(node.args[0], "value", None)
            if called in ("import_module", "__import__", "require") and isinstance(name, str):
                yield Import(node.lineno, name)


def broken_rules(package: Path) -> list[str]:
    """One line for each import that HOUSE forbids, and for each module that it does not know."""
    found = []
    for file in sorted(package.rglob("*.py")):
        where = file.relative_to(package)
        room = where.with_suffix("").parts[0]
        if room not in ROOMS:
            found.append(f"{where}: give {room} a place in HOUSE, in tests/test_layers.py")
            continue
        for line, name in imports_of(file, package):
            top, *rest = name.split(".")
            if top == "efftrain":
                if rest == ["__version__"]:
                    continue
                # `from efftrain import select`: a name that is no room is a public one
                reason = forbidden(room, rest[0] if rest and rest[0] in ROOMS else "__init__")
            elif top in sys.stdlib_module_names or ROOMS[room].allows(top):
                reason = None
            else:
                reason = f"{room} may import {ROOMS[room].outside or 'the standard library'}"
            if reason:
                found.append(f"{where}:{line}: imports {name}, but {reason}")
    return found


def forbidden(room: str, other: str) -> str | None:
    """Why one room may not import another; None where it may."""
    mine, theirs = ROOMS[room], ROOMS[other]
    if theirs.number == mine.number or theirs.floor < mine.floor:
        return None
    if theirs.floor == mine.floor:
        return f"{room} and {other} stand apart"
    return f"{other} is above {room}"


def files_that_build(package: Path) -> list[str]:
    """Files that reach Hydra's instantiate, by whatever name."""
    return sorted(
        str(file.relative_to(package)) for file in package.rglob("*.py") if builds(file, package)
    )


def builds(file: Path, package: Path) -> bool:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    meaning = {}  # what a local name stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                meaning[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    used = {name for _, name in imports_of(file, package)}
    used |= {full_name(node, meaning) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return any(name in BUILDERS or name.startswith(BUILDERS_MODULE) for name in used)


def full_name(node: ast.expr, meaning: dict[str, str]) -> str:
    """`hu.instantiate` as `hydra.utils.instantiate`, after `import hydra.utils as hu`."""
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, meaning)}.{node.attr}"
    return meaning.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def test_every_import_goes_downward_and_every_room_keeps_to_its_packages() -> None:
    broken = broken_rules(PACKAGE)
    assert not broken, "\n" + "\n".join(broken)


def test_one_file_of_config_calls_hydras_instantiate() -> None:
    files = files_that_build(PACKAGE)
    assert len(files) == 1, files
    assert files[0].startswith("config/")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with every room, in which nothing is forbidden yet."""
    root = tmp_path / "efftrain"
    for room in ROOMS:
        if not room.startswith("__"):
            (root / room).mkdir(parents=True)
            (root / room / "__init__.py").write_text("import json\n")
    (root / "__init__.py").write_text("from efftrain import peft\n")
    assert broken_rules(root) == []
    return root


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("peft/x.py", "import lightning"),
        ("peft/x.py", "from efftrain.memory import swap"),
        ("peft/x.py", "from efftrain import profiling"),
        ("peft/x.py", "from .. import memory"),
        ("peft/x.py", "from ..memory.swap import reduce"),
        ("peft/sub/x.py", "from ...memory import swap"),
        ("peft/x.py", "def f():\n    import timm"),
        ("peft/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import timm"),
        ("peft/x.py", "from efftrain.optional import require\nrequire('timm', extra='timm')"),
        ("peft/x.py", "import importlib\nimportlib.import_module('timm')"),
        ("peft/x.py", "import fvcore"),
        ("memory/x.py", "import efftrain.profiling.count"),
        ("profiling/x.py", "import efftrain.measure"),
        ("graph/x.py", "import efftrain.peft"),
        ("measure/x.py", "import pytorch_lightning"),
        ("measure/x.py", "from lightning import pytorch"),
        ("callbacks/x.py", "from omegaconf import DictConfig"),
        ("callbacks/x.py", "from efftrain.render import tables"),
        ("config/x.py", "from efftrain.cli import main"),
        ("errors/x.py", "import torch"),
        ("files/x.py", "import efftrain.graph"),
    ],
)
def test_a_forbidden_import_is_found_with_its_file_and_line(
    package: Path, file: str, code: str
) -> None:
    path = package / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(code)
    (broken,) = broken_rules(package)
    assert broken.startswith(f"{file}:{len(code.splitlines())}: imports ")


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("peft/x.py", "import torch, numpy, safetensors.torch, json"),
        ("peft/x.py", "from . import norms\nfrom efftrain.surgery import fold"),
        ("profiling/x.py", "from fvcore.nn import FlopCountAnalysis"),
        ("callbacks/x.py", "import lightning.pytorch\nfrom efftrain.task import Task"),
        ("files/x.py", "from efftrain.errors import MachineError"),
        ("run/x.py", "from efftrain import __version__, units"),
        ("cli/x.py", "import hydra, timm\nfrom efftrain.render import tables"),
    ],
)
def test_a_downward_import_is_allowed(package: Path, file: str, code: str) -> None:
    (package / file).write_text(code)
    assert broken_rules(package) == []


def test_the_public_names_of_the_package_are_above_every_room(package: Path) -> None:
    (package / "peft" / "x.py").write_text("from efftrain import select")
    (broken,) = broken_rules(package)
    assert "__init__ is above peft" in broken


def test_a_module_without_a_place_is_reported_with_where_to_add_it(package: Path) -> None:
    (package / "gadgets.py").write_text("")
    assert broken_rules(package) == [
        "gadgets.py: give gadgets a place in HOUSE, in tests/test_layers.py"
    ]


@pytest.mark.parametrize(
    "code",
    [
        "from hydra.utils import instantiate",
        "from hydra.utils import instantiate as make",
        "from hydra.utils import call",
        "from hydra.utils import *",
        "import hydra\nhydra.utils.instantiate({})",
        "import hydra.utils\nmake = hydra.utils.instantiate",
        "import hydra.utils as hu\nhu.call({})",
        "from hydra import utils\nutils.instantiate({})",
        "def f():\n    from hydra import utils as u\n    return u.instantiate({})",
        "from hydra._internal.instantiate import _instantiate2",
        "from hydra._internal.instantiate._instantiate2 import instantiate_node",
    ],
)
def test_hydras_instantiate_is_found_under_any_name(package: Path, code: str) -> None:
    (package / "models" / "build.py").write_text(code)
    assert files_that_build(package) == ["models/build.py"]


def test_the_rest_of_hydra_is_not_taken_for_instantiate(package: Path) -> None:
    code = "from hydra.utils import get_class\nfrom hydra import compose\nself.instantiate()"
    (package / "config" / "x.py").write_text(code)
    assert files_that_build(package) == []
