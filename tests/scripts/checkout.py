"""A checkout on a machine that has only what a test gives it: which Python, and how much disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = ("scripts/setup", "scripts/torchvision_shim.py", "pyproject.toml", "constraints.txt")
TOOLS = "bash cat cp dirname env grep mkdir mv rm sed sleep tail"
GIB = 1024**2  # in df's KiB

PYTHON = """#!/usr/bin/env bash
# Says which version it is, makes empty environments that hold itself, and notes what pip is asked.
case "$*" in
  --version) echo "Python {version}" ;;
  *"import venv"*) exit {lacks_venv} ;;
  *"-m venv "*) mkdir -p "${{!#}}"/{{bin,lib/python{short}/site-packages}}; cp "$0" "${{!#}}/bin/python" ;;
  *"pip --version"*) ;;
  *"pip install"*)
    asked="$*"
    echo "${{asked#* -c }}${{PYTHONPATH:+ with PYTHONPATH}}" >>"$PIP_CALLS"
    sleep "${{PIP_SECONDS:-0}}"
    echo "${{PIP_SAYS:-}}"
    exit "${{PIP_EXIT:-0}}" ;;
  *) exec "{real}" "$@" ;;
esac
"""


class Checkout:
    """A copy of what scripts/setup needs, and a PATH that holds nothing but what is put there."""

    def __init__(self, folder: Path) -> None:
        self.here = folder / "elsewhere"
        self.root = folder / "a checkout"  # with a space
        self.bin = folder / "bin"
        self.calls = folder / "pip-calls"
        for path in (self.here, self.root / "scripts", self.bin):
            path.mkdir(parents=True)
        for name in NEEDED:
            shutil.copy(ROOT / name, self.root / name)
        for tool in TOOLS.split():
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.disk(free_kib=50 * GIB)

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def python(self, name: str, version: str, lacks_venv: bool = False) -> Path:
        """Put a Python in the PATH, or at an absolute path."""
        file = self.bin / name
        file.write_text(
            PYTHON.format(
                version=version,
                short=version.rpartition(".")[0],
                lacks_venv=int(lacks_venv),
                real=sys.executable,
            )
        )
        file.chmod(0o755)
        return file

    def disk(self, free_kib: int) -> None:
        (self.bin / "df").write_text(
            "#!/usr/bin/env bash\n"
            "echo 'Filesystem     1024-blocks      Used Available Capacity Mounted on'\n"
            f"echo '/dev/my disk      263174212  26921268  {free_kib}      25% /a b'\n"
        )
        (self.bin / "df").chmod(0o755)

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": str(self.bin), "PIP_CALLS": str(self.calls), **more}

    def command(self, *extras: str) -> list[str]:
        return [str(self.root / "scripts" / "setup"), *extras]

    def setup(self, *extras: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*extras),
            cwd=self.here,
            env=self.environment(**more),
            text=True,
            capture_output=True,
            timeout=60,
        )

    def pip_calls(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def mark(self) -> Path:
        """A file that is gone once .venv has been made anew."""
        file = self.venv / "mark"
        file.parent.mkdir(exist_ok=True)
        file.touch()
        return file
