"""A device's own energy counter, where it has one: NVIDIA's NVML, the RAPL domains of a CPU.

Two readings give the energy between them, of everything that ran on the device. The counters move
in steps (a GPU's sensor every 20 to 100 ms, and on A100 and H100 it looks at a quarter of the time
alone), so a window under about a second says little: read before and after many steps.

Power is never guessed: where there is no counter there is no figure.

Sources: Yang, Adamek and Armour, "Part-time power measurements: nvidia-smi's lack of attention",
arXiv 2312.02741; the kernel's Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import torch

from efftrain.errors import MachineError
from efftrain.optional import require

POWERCAP = Path("/sys/class/powercap")
UJ_PER_J = 1e6
MJ_PER_J = 1e3


class Counter(Protocol):
    """Counts the energy of a part of the machine.

    Attributes:
        source: What counts, and what is counted: "RAPL package-0".
    """

    source: str

    def read_j(self) -> float:
        """Joules since some moment in the past.

        Raises:
            MachineError: The counter can no longer be read.
        """
        ...


def find_counters(device: torch.device | str, powercap: Path = POWERCAP) -> list[Counter]:
    """The counters of a device. No two of them count the same joule, so they may be added up.

    Args:
        device: CUDA: that GPU with its memory. CPU: all packages, and the memory where it is
            counted apart. Linux lets only root read these unless it is told otherwise.
        powercap: Where Linux shows the CPU's.

    Returns:
        None or more, all of which could be read just now.

    Raises:
        MachineError: A CUDA device, and NVML's binding is not installed.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _nvml(device)
    return _rapl(powercap) if device.type == "cpu" else []


class NvmlCounter:
    """A GPU's total since its driver was loaded; Volta and later."""

    def __init__(self, nvml: Any, handle: Any, name: str) -> None:
        """Read by a handle of an initialised NVML."""
        self.source = f"NVML {name}"
        self._nvml, self._handle = nvml, handle

    def read_j(self) -> float:
        """Joules since the driver was loaded."""
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / MJ_PER_J
        except self._nvml.NVMLError as error:
            raise MachineError(f"{self.source} cannot be read: {error}") from error


class RaplCounter:
    """A RAPL domain; its own total starts again at 0 after hours, or minutes of full load.

    One such start between two readings is seen; to miss none, read at least every ten minutes.
    """

    def __init__(self, folder: Path, source: str) -> None:
        """Count from now on."""
        self.source = source
        self._folder = folder
        self._range_uj = self._read_uj("max_energy_range_uj")
        self._last_uj = self._read_uj("energy_uj")
        self._total_uj = 0

    def read_j(self) -> float:
        """Joules since this counter was found."""
        now_uj = self._read_uj("energy_uj")
        step_uj = now_uj - self._last_uj
        self._total_uj += step_uj if step_uj >= 0 else step_uj + self._range_uj
        self._last_uj = now_uj
        return self._total_uj / UJ_PER_J

    def _read_uj(self, file: str) -> int:
        try:
            return int((self._folder / file).read_text())
        except (OSError, ValueError) as error:
            raise MachineError(f"{self.source} cannot be read: {error}") from error


def _nvml(device: torch.device) -> list[Counter]:
    nvml: Any = require("pynvml", extra="energy")
    properties = torch.cuda.get_device_properties(device)
    try:
        nvml.nvmlInit()
        # by its id: NVML's order is not CUDA's, and CUDA_VISIBLE_DEVICES hides devices from one alone
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:  # no driver, a GPU before Volta, a slice of one (MIG)
        return []
    return [NvmlCounter(nvml, handle, properties.name)]


def _rapl(powercap: Path) -> list[Counter]:
    """Packages, and DRAM, which no package includes.

    Left out: cores and graphics, which are part of a package; psys, which includes packages; and
    the same packages once more under intel-rapl-mmio.
    """
    found: list[Counter] = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            if re.fullmatch(r"package-\d+(-die-\d+)?", name):
                found.append(RaplCounter(folder, f"RAPL {name}"))
            elif name == "dram":
                package = (folder.parent / folder.name.rpartition(":")[0] / "name").read_text()
                found.append(RaplCounter(folder, f"RAPL dram of {package.strip()}"))
        except (OSError, MachineError):  # kept from all but root
            continue
    return found
