import json
from pathlib import Path

import pytest
import torch

from efftrain.errors import ConfigError
from efftrain.measure import ceilings
from efftrain.measure.ceilings import (
    best_product,
    load_or_measure,
    measure_ceilings,
)
from efftrain.measure.device import device_name
from efftrain.measure.stopwatch import RUNS, Stopwatch
from efftrain.paths import cache_folder
from efftrain.profiling.roofline import Ceilings

CPU = torch.device("cpu")


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def work(self, *seconds):
        """Work that takes so long; the last figure holds for every call after it."""
        left = list(seconds)

        def run():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def now():
    return FakeClock()


def test_a_rate_is_of_the_median_run_and_the_first_calls_do_not_count(now):
    # two calls of warm-up, then runs of one call each: 2, 2, 9, 2, 2 s
    work = now.work(50, 5, 2, 2, 9, 2, 2)
    assert Stopwatch(CPU, now).rate(work, 600, budget_s=1000) == pytest.approx(300)


def test_short_calls_are_timed_many_at_once(now):
    calls = []

    def work():
        calls.append(None)
        now.now += 0.0001

    assert Stopwatch(CPU, now).rate(work, 1, budget_s=10) == pytest.approx(10_000)
    assert len(calls) == 2 + RUNS * 40  # runs of 4 ms


def test_a_call_over_the_budget_is_not_repeated(now):
    work = now.work(3, 4, 1000)
    assert Stopwatch(CPU, now).rate(work, 8, budget_s=5) == pytest.approx(2)


def test_the_best_size_is_the_ceiling(now):
    seconds = {100: 1.0, 200: 4.0, 400: 64.0}  # 2, 4 and 2 M operations in a second
    best = best_product(
        lambda n: now.work(seconds[n]), Stopwatch(CPU, now), [100, 200, 400], budget_s=1e6
    )
    assert best == pytest.approx(2 * 200**3 / 4)


def test_a_slow_data_type_is_measured_at_small_sizes_alone(now):
    made = []

    def make(size):
        made.append(size)
        return now.work(0.01 * (size / 64) ** 3)

    # 64 takes 7 calls of 10 ms; 128 would take 7 of 80 ms, which fits; 256 7 of 640 ms, which does not
    found = best_product(make, Stopwatch(CPU, now), [64, 128, 256, 512], budget_s=1)
    assert made == [64, 128]
    assert found == pytest.approx(2 * 64**3 / 0.01)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, TypeError, MemoryError])
def test_a_data_type_that_cannot_be_multiplied_has_no_ceiling(now, error):
    def work():
        raise error("not implemented for 'Half'")

    assert best_product(lambda n: work, Stopwatch(CPU, now), [64]) is None


def test_no_memory_for_a_size_keeps_what_smaller_ones_showed(now):
    def make(size):
        if size > 64:
            raise torch.OutOfMemoryError
        return now.work(1)

    assert best_product(make, Stopwatch(CPU, now), [64, 128], 100) == pytest.approx(2 * 64**3)


@pytest.mark.parametrize(("cores", "disturbed"), [(1.0, False), (0.5, True)])
def test_a_thread_that_others_keep_from_its_core_shows(cores, disturbed):
    ticks = iter(range(10**9))
    found = measure_ceilings(
        CPU,
        dtypes=[],
        sizes=[],
        array_bytes=1 << 10,
        clock=lambda: next(ticks) / 1e3,
        cpu_clock=lambda: next(ticks) / 1e3 * cores,
    )
    assert found.disturbed is disturbed


def test_this_machine_is_measured_and_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    found = measure_ceilings(
        CPU, dtypes=[torch.float32, torch.int8], sizes=[32], array_bytes=1 << 16
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert set(found.flops_per_s) == {"float32", "int8"}
    assert (found.device, found.threads) == (device_name(CPU), torch.get_num_threads())
    assert found.ridge("float32") > 0
    assert torch.__version__ in found.source
    assert len(found.measured_on.split("-")) == 3


def test_meta_has_no_ceilings(tmp_path):
    with pytest.raises(ConfigError, match="use cpu"):
        load_or_measure("meta", folder=tmp_path)


class Measuring:
    """Stands in for the measurement and counts how often it is asked for."""

    def __init__(self):
        self.calls = 0
        self.disturbed = False

    def __call__(self, device):
        self.calls += 1
        return Ceilings(
            device=device_name(device),
            threads=torch.get_num_threads(),
            flops_per_s={"float32": 1e9 * self.calls},
            bytes_per_s=1e8,
            source="fake",
            disturbed=self.disturbed,
        )


@pytest.fixture
def measure():
    return Measuring()


def test_a_machine_is_measured_once(tmp_path, measure):
    first = load_or_measure("cpu", folder=tmp_path, measure=measure)
    assert load_or_measure("cpu", folder=tmp_path, measure=measure) == first
    assert measure.calls == 1


def test_on_demand_it_is_measured_again_and_the_new_figures_stay(tmp_path, measure):
    load_or_measure("cpu", folder=tmp_path, measure=measure)
    again = load_or_measure("cpu", refresh=True, folder=tmp_path, measure=measure)
    assert again.flops_per_s == {"float32": 2e9}
    assert load_or_measure("cpu", folder=tmp_path, measure=measure) == again


def test_figures_that_others_disturbed_are_measured_again_next_time(tmp_path, measure):
    measure.disturbed = True
    assert load_or_measure("cpu", folder=tmp_path, measure=measure).disturbed
    measure.disturbed = False
    assert load_or_measure("cpu", folder=tmp_path, measure=measure).flops_per_s == {"float32": 2e9}
    load_or_measure("cpu", folder=tmp_path, measure=measure)
    assert measure.calls == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(torch, "get_num_threads", lambda: 64),
        lambda patch: patch.setattr(torch, "__version__", "9.9.9"),
        lambda patch: patch.setattr(ceilings, "device_name", lambda device: "another"),
        lambda patch: patch.setattr(torch, "get_float32_matmul_precision", lambda: "high"),
    ],
    ids=["threads", "torch", "device", "precision"],
)
def test_another_machine_or_setting_has_figures_of_its_own(tmp_path, measure, monkeypatch, change):
    load_or_measure("cpu", folder=tmp_path, measure=measure)
    change(monkeypatch)
    load_or_measure("cpu", folder=tmp_path, measure=measure)
    assert measure.calls == 2
    assert len(list(tmp_path.glob("ceilings-*.json"))) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"device": "x"}', "\x00"])
def test_a_broken_file_is_measured_again(tmp_path, measure, content):
    load_or_measure("cpu", folder=tmp_path, measure=measure)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert load_or_measure("cpu", folder=tmp_path, measure=measure).flops_per_s == {"float32": 2e9}
    assert json.loads(file.read_text())["flops_per_s"] == {"float32": 2e9}


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path, measure):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "below"
    assert load_or_measure("cpu", folder=folder, measure=measure).threads == 1
    assert load_or_measure("cpu", folder=folder, measure=measure).threads == 1
    assert measure.calls == 2


def test_the_cache_lies_where_the_user_or_the_system_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("EFFTRAIN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/efftrain")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder() == Path("/home/someone/.cache/efftrain")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "efftrain"
    monkeypatch.setenv("EFFTRAIN_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


def test_the_last_level_caches_of_all_cores_are_added_up_once_each(tmp_path):
    def core(number, *caches):
        for index, (level, size, cores) in enumerate(caches):
            folder = tmp_path / f"cpu{number}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(f"{level}\n")
            (folder / "size").write_text(f"{size}\n")
            (folder / "shared_cpu_list").write_text(f"{cores}\n")

    core(0, (1, "32K", "0"), (3, "32768K", "0-1"))
    core(1, (1, "32K", "1"), (3, "32768K", "0-1"))
    core(2, (1, "32K", "2"), (3, "32768K", "2"))
    assert ceilings._cache_bytes(tmp_path) == 2 * 32 * 2**20
    assert ceilings._cache_bytes(tmp_path / "nothing") == 0
