"""The C++ kernels, compiled when first asked for and kept.

They need a C++ compiler and nothing else: no header of PyTorch, so building takes seconds and outlives
torch's versions. Without a compiler there are no kernels, which is said once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from efftrain.paths import cache_folder

_log = logging.getLogger(__name__)
_lock = threading.Lock()

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
)
# Tried in this order. Without OpenMP's runtime the loops are still vectorized, in one thread.
EXTRAS = (("-march=native", "-fopenmp"), ("-march=native", "-fopenmp-simd"), ())
TIMEOUT_S = 120


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be compiled or loaded, the reason in the log."""
    with _lock:
        return _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = find_compiler()
    if compiler is None:
        problem = f"no C++ compiler found ({', '.join(COMPILERS)}; or set CXX)"
    else:
        problems: list[str] = []
        for extra in EXTRAS:
            try:
                return ctypes.CDLL(str(build(compiler, (*FLAGS, *extra), cache_folder())))
            except (OSError, subprocess.SubprocessError) as error:
                problems.append(_reason(error))
        problem = problems[0]
    _log.warning("memory kernels run unfused, by torch's own operators: %s", problem)
    return None


def find_compiler() -> str | None:
    """$CXX, or the first C++ compiler on the path."""
    asked = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [asked] if asked else COMPILERS)), None)


def build(compiler: str, flags: tuple[str, ...], folder: Path) -> Path:
    """Compile into the folder, unless the same was done there before.

    Args:
        compiler: Path of a C++ compiler.
        flags: What it is called with.
        folder: Made if need be; where it cannot be written, a temporary one is used.

    Returns:
        The shared library. Its name tells sources, flags, compiler and processor.

    Raises:
        OSError: The compiler cannot be started.
        subprocess.SubprocessError: It fails, or takes more than TIMEOUT_S.
    """
    sources = sorted(SOURCES.glob("*.cpp"))
    # every macro that the compiler defines: its version, and what -march=native found
    macros = _run(compiler, *flags, "-x", "c++", "-dM", "-E", os.devnull)
    read = sorted((*SOURCES.glob("*.h"), *sources))
    text = "\n".join(path.read_text(encoding="utf-8") for path in read)
    key = hashlib.sha256("\0".join((compiler, *flags, macros, text)).encode()).hexdigest()[:16]
    path = folder / f"kernels-{key}.so"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder, suffix=".so")
    except OSError:
        descriptor, name = tempfile.mkstemp(suffix=".so")
        path = Path(name)
    os.close(descriptor)
    fresh = Path(name)
    try:
        _run(compiler, *flags, *map(str, sources), "-o", name)
        fresh.replace(path)  # at once: another process may be building the same
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return path


def _run(*command: str) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S
    ).stdout


def _reason(error: Exception) -> str:
    """One line: the compiler's first error where there is one."""
    said = str(getattr(error, "stderr", None) or "").splitlines()
    return next((line for line in said if "error" in line), str(error))
