"""The development aid that lets torchvision be imported beside a torch it was not built for."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

# As torchvision does: the library first, then shape functions for the operators that it defines.
SHAPES = """
import torch, torchvision.extension

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0)

@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return dets.new_empty(0)
"""
LIBRARY = """
import torch

library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor mine) -> Tensor")
library.define("qnms(Tensor mine) -> Tensor")
"""
SCHEMA = "import torch, torchvision; print(torch.ops.torchvision.nms.default._schema)"


@pytest.fixture
def torchvision(tmp_path: Path) -> Path:
    """A torchvision that holds nothing but the part that fails; its library does not load."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from . import extension, _meta_registrations\n")
    (package / "extension.py").write_text("def _has_ops(): return False\n")
    (package / "_meta_registrations.py").write_text(SHAPES)
    return package


def python(code: str, before: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that reads no .pth files, with one folder before the installed ones."""
    paths = [str(before), str(SCRIPTS), sysconfig.get_path("purelib")]
    return subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", f"import sys; sys.path += {paths}\n{code}"],
        text=True,
        capture_output=True,
        timeout=120,
    )


def test_without_it_such_a_torchvision_cannot_be_imported(torchvision: Path) -> None:
    done = python("import torchvision", torchvision.parent)
    assert "operator torchvision::nms does not exist" in done.stderr


def test_it_defines_the_operators_that_the_library_would_have(torchvision: Path) -> None:
    done = python(f"import torchvision_shim; {SCHEMA}", torchvision.parent)
    assert done.stderr == ""
    assert done.stdout == (
        "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor\n"
    )


def test_it_does_nothing_where_the_library_loads(torchvision: Path) -> None:
    (torchvision / "extension.py").write_text(LIBRARY + "def _has_ops(): return True\n")
    done = python(f"import torchvision_shim; {SCHEMA}", torchvision.parent)
    assert done.stderr == ""
    assert done.stdout == "torchvision::nms(Tensor mine) -> Tensor\n"


def test_it_adds_no_import_to_the_start_of_python(tmp_path: Path) -> None:
    code = "before = {*sys.modules}; import torchvision_shim; print({*sys.modules} - before)"
    assert python(code, tmp_path).stdout == "{'torchvision_shim'}\n"


@pytest.mark.slow
def test_in_this_environment_torchvision_and_all_that_looks_for_it_import_without_warning() -> None:
    code = (
        "import torchvision, lightning, timm\n"
        "timm.create_model('resnet18')\n"
        "torchvision.models.resnet50()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], text=True, capture_output=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
