"""The two figures of a machine that the roofline needs, measured once and kept.

The first is the best rate of a matrix product, for each data type; the second that of a copy or of
a triad (a + s b) whose arrays are larger than every cache. Bytes are counted as in STREAM: those
that the program reads and writes, without what a cache fetches before it is written.

Source: McCalpin, "Memory bandwidth and machine balance in current high performance computers",
IEEE TCCA newsletter, 1995 (STREAM; each array at least four times the caches).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from efftrain.errors import ConfigError, EfftrainError, MachineError
from efftrain.files import write_text
from efftrain.measure.device import device_name
from efftrain.measure.step_clock import Clock
from efftrain.measure.stopwatch import RUNS, Stopwatch, Work
from efftrain.paths import cache_folder
from efftrain.profiling.roofline import Ceilings
from efftrain.units import MIB

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float64)
SIZES = (256, 512, 1024, 2048, 4096, 8192)
DTYPE_BUDGET_S = 0.8
"""A product too slow for this is measured at the smaller sizes: half precision without hardware."""
MEMORY_BUDGET_S = 0.8


def load_or_measure(
    device: torch.device | str = "cpu",
    *,
    refresh: bool = False,
    folder: Path | None = None,
    measure: Callable[[torch.device], Ceilings] | None = None,
) -> Ceilings:
    """The ceilings of a device at the current number of CPU threads; some seconds the first time.

    They are kept as JSON for each device name, number of threads, version of torch and precision of
    float32 products. A file that cannot be read is measured again; a folder that cannot be written
    costs the measurement each time, and no more. Figures that other programs disturbed are given,
    and not kept.

    Args:
        device: Such as "cpu", "cuda:1".
        refresh: Whether to measure again: the machine was busy the last time.
        folder: Where they are kept; without, $EFFTRAIN_CACHE, or efftrain in $XDG_CACHE_HOME or
            in ~/.cache.
        measure: What to do where they are not there; without, `measure_ceilings`.

    Returns:
        The ceilings.

    Raises:
        ConfigError: A device without memory or speed (meta).
        MachineError: It had to be measured and has too little free memory.
    """
    device = torch.device(device)
    kept = None if refresh else kept_ceilings(device, folder)
    if kept is not None:
        return kept
    found = (measure or measure_ceilings)(device)
    if not found.disturbed:
        path = _cache_file(device, cache_folder() if folder is None else folder)
        with contextlib.suppress(EfftrainError):
            write_text(path, json.dumps(found.to_dict(), indent=2) + "\n")
    return found


def kept_ceilings(
    device: torch.device | str = "cpu", folder: Path | None = None
) -> Ceilings | None:
    """The ceilings that `load_or_measure` has kept of a device, without measuring anything.

    Args:
        device: Such as "cpu", "cuda:1".
        folder: Where they are kept; as for `load_or_measure`.

    Returns:
        None where there are none for it at the current number of CPU threads.
    """
    device = torch.device(device)
    kept = _read(_cache_file(device, cache_folder() if folder is None else folder))
    asked = (device_name(device), _threads(device))
    return kept if kept is not None and (kept.device, kept.threads) == asked else None


def measure_ceilings(
    device: torch.device,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    sizes: Sequence[int] = SIZES,
    array_bytes: int | None = None,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> Ceilings:
    """Measure a device.

    Args:
        device: CPU, CUDA, MPS or another that torch can wait for.
        dtypes: Of the products; one that the device cannot multiply is left out.
        sizes: Rows and columns of the products, ascending; the best one counts.
        array_bytes: Of each array that is moved; without, more than the caches hold.
        clock: Seconds, monotonic.
        cpu_clock: Seconds that this process had of all cores.

    Returns:
        The ceilings, at the CPU's current number of threads. Whether a CPU was disturbed is looked
        up before, between and after; of an accelerator it is not known.

    Raises:
        ConfigError: A device without memory or speed (meta).
        MachineError: There is no memory for the arrays.
    """
    if device.type == "meta":
        raise ConfigError("the meta device computes nothing, so it has no ceilings; use cpu")
    watch = Stopwatch(device, clock, cpu_clock)
    array_bytes = array_bytes or _array_bytes(device)
    peaks: dict[str, float] = {}
    with torch.inference_mode():
        disturbed = watch.is_disturbed()
        for dtype in dtypes:
            peak = best_product(lambda n, dtype=dtype: _product(n, dtype, device), watch, sizes)
            if peak is not None:
                peaks[str(dtype).removeprefix("torch.")] = peak
        disturbed |= watch.is_disturbed()
        bandwidth = _bandwidth(watch, array_bytes, device)
        disturbed |= watch.is_disturbed()
    return Ceilings(
        device=device_name(device),
        threads=_threads(device),
        flops_per_s=peaks,
        bytes_per_s=bandwidth,
        source=(
            f"measured with torch {torch.__version__}: matrix products (float32 at precision "
            f"{torch.get_float32_matmul_precision()}), copy and triad of "
            f"{array_bytes / MIB:.0f} MiB arrays"
        ),
        measured_on=datetime.date.today().isoformat(),
        disturbed=disturbed,
    )


def best_product(
    make: Callable[[int], Work],
    watch: Stopwatch,
    sizes: Sequence[int],
    budget_s: float = DTYPE_BUDGET_S,
) -> float | None:
    """The best rate of a matrix product over several sizes.

    Args:
        make: Makes a product of two square matrices of that many rows.
        watch: Times it.
        sizes: Ascending; it ends where the next is expected to take longer than what is left.
        budget_s: Seconds for all of them.

    Returns:
        Operations in a second, a multiply-accumulate as two; None where no size can be multiplied.
    """
    best = None
    began = watch.clock()
    for size in sizes:
        operations = 2 * size**3
        left_s = budget_s - (watch.clock() - began)
        if best is not None and (RUNS + 2) * operations / best > left_s:
            break
        try:
            rate = watch.rate(make(size), operations, left_s)
        except (RuntimeError, TypeError, MemoryError):  # no such product here, or no memory for it
            break
        best = rate if best is None else max(best, rate)
    return best


def _cache_file(device: torch.device, folder: Path) -> Path:
    threads = _threads(device)
    key = [
        device_name(device),
        *([] if threads is None else [f"{threads}threads"]),
        f"torch{torch.__version__}",
        torch.get_float32_matmul_precision(),
    ]
    return folder / f"ceilings-{re.sub(r'[^A-Za-z0-9.+]+', '-', ' '.join(key))}.json"


def _read(path: Path) -> Ceilings | None:
    try:
        return Ceilings.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # an EfftrainError is a ValueError
        return None


def _threads(device: torch.device) -> int | None:
    return torch.get_num_threads() if device.type == "cpu" else None


def _product(size: int, dtype: torch.dtype, device: torch.device) -> Work:
    a, b = (_random(size * size, dtype, device).view(size, size) for _ in range(2))
    if dtype == torch.int8:
        return lambda: torch.ops.aten._int_mm(a, b.t())  # cuBLAS wants the second by columns
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _bandwidth(watch: Stopwatch, array_bytes: int, device: torch.device) -> float:
    try:
        streams = _streams(array_bytes, device)
    except (RuntimeError, MemoryError) as error:
        raise MachineError(
            f"{device} has no memory for three arrays of {array_bytes / MIB:.0f} MiB, by which its "
            "bandwidth is measured; end what else runs there"
        ) from error
    return max(watch.rate(work, moved, MEMORY_BUDGET_S) for work, moved in streams)


def _streams(array_bytes: int, device: torch.device) -> list[tuple[Work, int]]:
    """Copy and triad, each with the bytes that it moves."""
    elements = max(1, array_bytes // 4)
    a, b, c = (_random(elements, torch.float32, device) for _ in range(3))
    moved = 4 * elements
    return [
        (lambda: c.copy_(a), 2 * moved),
        (lambda: torch.add(a, b, alpha=3.0, out=c), 3 * moved),
    ]


def _random(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of a generator of its own; a device may be faster with zeros than with anything else."""
    generator = torch.Generator(device).manual_seed(0)
    if dtype == torch.int8:
        return torch.randint(-9, 9, (elements,), dtype=dtype, device=device, generator=generator)
    numbers = torch.rand(elements, dtype=torch.float32, device=device, generator=generator)
    return numbers.to(dtype)


def _array_bytes(device: torch.device) -> int:
    """Four times the caches; on an accelerator ten times the 50 MiB of an H100's."""
    if device.type != "cpu":
        return 512 * MIB
    return min(max(4 * _cache_bytes(), 64 * MIB), 512 * MIB)


def _cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Of all last-level caches together; 0 where the system does not say."""
    caches: dict[tuple[int, str], int] = {}
    for index in root.glob("cpu[0-9]*/cache/index[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            level = int((index / "level").read_text())
            cores = (index / "shared_cpu_list").read_text().strip()
            kibibytes = int((index / "size").read_text().strip().removesuffix("K"))
            caches[level, cores] = kibibytes * 1024
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)
