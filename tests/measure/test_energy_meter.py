import sys
from types import SimpleNamespace

import pytest
import torch

from efftrain.errors import MachineError
from efftrain.measure.energy_meter import find_counters

RANGE_UJ = 1_000_000_000


@pytest.fixture
def powercap(tmp_path):
    """A server with two packages and their memory, as Linux shows it."""
    domains = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "dram",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for folder, name in domains.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(f"{name}\n")
        (tmp_path / folder / "energy_uj").write_text("5000000\n")
        (tmp_path / folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (tmp_path / "intel-rapl").mkdir()  # the control type itself, which has no energy
    return tmp_path


def test_packages_and_their_memory_count_and_nothing_counts_twice(powercap):
    assert [counter.source for counter in find_counters("cpu", powercap)] == [
        "RAPL package-0",
        "RAPL dram of package-0",
        "RAPL package-1",
        "RAPL dram of package-1",
    ]


def test_two_readings_give_the_joules_between_them(powercap):
    counter = find_counters("cpu", powercap)[0]
    before = counter.read_j()
    (powercap / "intel-rapl:0" / "energy_uj").write_text("7500000\n")
    assert counter.read_j() - before == pytest.approx(2.5)
    assert counter.read_j() - before == pytest.approx(2.5)


def test_a_counter_that_starts_again_goes_on_counting(powercap):
    file = powercap / "intel-rapl:0" / "energy_uj"
    counter = find_counters("cpu", powercap)[0]
    before = counter.read_j()
    file.write_text("999000000\n")  # 994 J later
    middle = counter.read_j()
    file.write_text("2000000\n")  # 1 J to the end of the range, 2 after it
    assert middle - before == pytest.approx(994)
    assert counter.read_j() - middle == pytest.approx(3)


def test_dies_of_a_package_count_each(tmp_path):
    for number in range(2):
        folder = tmp_path / f"intel-rapl:{number}"
        folder.mkdir()
        (folder / "name").write_text(f"package-0-die-{number}\n")
        (folder / "energy_uj").write_text("0\n")
        (folder / "max_energy_range_uj").write_text("1\n")
    assert len(find_counters("cpu", tmp_path)) == 2


def test_a_domain_that_may_not_be_read_is_no_counter(powercap):
    # a folder in place of the file fails for root, too, whom permissions do not stop
    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    (powercap / "intel-rapl:0" / "energy_uj").mkdir()
    sources = [counter.source for counter in find_counters("cpu", powercap)]
    assert "RAPL package-0" not in sources
    assert "RAPL package-1" in sources


def test_a_machine_without_counters_has_none(tmp_path):
    assert find_counters("cpu", tmp_path / "missing") == []
    assert find_counters("cpu", tmp_path) == []
    assert find_counters("mps") == []


def test_a_counter_that_goes_away_is_an_error_and_not_zero(powercap):
    counter = find_counters("cpu", powercap)[0]
    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(MachineError, match="RAPL package-0 cannot be read"):
        counter.read_j()


class NVMLError(Exception):
    pass


class FakeNvml:
    """Two GPUs; the counter of the second is broken."""

    NVMLError = NVMLError

    def __init__(self):
        self.millijoules = {"GPU-first": 41_000, "GPU-second": None}
        self.initialised = False

    def nvmlInit(self):
        self.initialised = True

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert self.initialised
        if uuid not in self.millijoules:
            raise NVMLError("not found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.millijoules[handle] is None:
            raise NVMLError("not supported")
        return self.millijoules[handle]


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    names = ["first", "second", "slice"]
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=names[device.index or 0], name="NVIDIA H100"),
    )
    return fake


def test_a_gpu_is_found_by_its_id_and_read_in_joules(nvml):
    (counter,) = find_counters("cuda:0")
    assert counter.source == "NVML NVIDIA H100"
    before = counter.read_j()
    nvml.millijoules["GPU-first"] += 1500
    assert before == pytest.approx(41)
    assert counter.read_j() - before == pytest.approx(1.5)


def test_a_gpu_without_a_counter_and_a_slice_of_one_have_none(nvml):
    assert find_counters("cuda:1") == []
    assert find_counters("cuda:2") == []


def test_no_driver_is_no_counter(nvml):
    def fail():
        raise NVMLError("driver not loaded")

    nvml.nvmlInit = fail
    assert find_counters("cuda:0") == []


def test_a_gpu_that_fails_later_is_an_error_and_not_zero(nvml):
    (counter,) = find_counters("cuda:0")
    nvml.millijoules["GPU-first"] = None
    with pytest.raises(MachineError, match="NVML NVIDIA H100 cannot be read: not supported"):
        counter.read_j()


def test_a_missing_binding_names_the_pip_line(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MachineError, match=r"pip install 'efftrain\[energy\]'"):
        find_counters("cuda:0")
