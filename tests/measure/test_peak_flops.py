import pytest
import torch

from efftrain.measure.peak_flops import PEAKS, find_arithmetic, find_peak, peak_flops_per_s

# Streaming multiprocessors, multiply-adds of a clock in one of them (tensor cores in half precision
# with float32 accumulation, and float32), boost clock in GHz: from the architecture white papers.
CHIPS = {
    "Tesla V100-SXM2-32GB": (80, 512, 64, 1.53),
    "Tesla T4": (40, 512, 64, 1.59),
    "NVIDIA A10": (72, 512, 128, 1.695),
    "NVIDIA A10G": (80, 256, 128, 1.71),
    "NVIDIA A30": (56, 1024, 64, 1.44),
    "NVIDIA A40": (84, 512, 128, 1.74),
    "NVIDIA RTX A6000": (84, 512, 128, 1.80),
    "NVIDIA A100-SXM4-80GB": (108, 1024, 64, 1.41),
    "NVIDIA L4": (58, 512, 128, 2.04),
    "NVIDIA L40": (142, 256, 128, 2.49),
    "NVIDIA L40S": (142, 512, 128, 2.52),
    "NVIDIA H100 80GB HBM3": (132, 2048, 128, 1.83),
    "NVIDIA H100 PCIe": (114, 2048, 128, 1.62),
    "NVIDIA H100 NVL": (132, 2048, 128, 1.545),
    "NVIDIA H200": (132, 2048, 128, 1.83),
    "NVIDIA B200": (148, 4096, 128, 1.85),
    "NVIDIA GeForce RTX 3090": (82, 256, 128, 1.695),
    "NVIDIA GeForce RTX 4090": (128, 256, 128, 2.52),
    "NVIDIA GeForce RTX 5090": (170, 256, 128, 2.407),
    "NVIDIA RTX 6000 Ada Generation": (142, 512, 128, 2.505),
}


@pytest.mark.parametrize("name", CHIPS)
def test_a_peak_is_what_the_chip_has_times_its_clock(name):
    processors, half, single, ghz = CHIPS[name]
    peak = find_peak(name)
    tflops = 2 * processors * ghz / 1000  # a multiply-add is two operations
    assert peak.tflops["float16"] == pytest.approx(tflops * half, rel=0.02)
    # Float32 runs at a higher clock than tensor cores on Hopper and Blackwell
    assert peak.tflops["float32"] == pytest.approx(tflops * single, rel=0.18)


@pytest.mark.parametrize(
    ("name", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),  # published with sparsity: 1,979
        ("NVIDIA H100 NVL", 835.5),  # 1,671
        ("NVIDIA H100 PCIe", 756),  # 1,513
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-SXM-80GB", 312),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA GB200", 2500),
        ("RTX A6000", 154.8),  # older drivers leave the maker out
    ],
)
def test_names_that_look_alike_are_told_apart(name, bfloat16):
    assert find_peak(name).tflops["bfloat16"] == bfloat16


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H20", "NVIDIA H800", "NVIDIA A800-SXM4-80GB", "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA T400",
        "NVIDIA GeForce RTX 4090 D", "NVIDIA L20", "NVIDIA B300", "NVIDIA T4G", "AMD EPYC", "",
    ],
)  # fmt: skip
def test_a_name_that_is_not_there_has_no_peak(name):
    assert find_peak(name) is None


def test_each_name_is_one_row():
    names = [*CHIPS, "Tesla V100-PCIE-16GB", "NVIDIA H200 NVL", "NVIDIA GeForce RTX 3090 Ti"]
    rows = [find_peak(name) for name in names]
    assert len({row.name for row in rows}) == len(names)
    assert len(PEAKS) == len({row.name for row in PEAKS})


def test_tf32_is_half_of_half_precision_and_never_less_than_float32():
    for peak in PEAKS:
        if "tf32" in peak.tflops:
            assert peak.tflops["tf32"] == pytest.approx(peak.tflops["bfloat16"] / 2, rel=0.02)
            assert peak.tflops["tf32"] >= peak.tflops["float32"]


def test_what_a_device_cannot_do_fast_has_no_peak():
    v100, l4 = find_peak("Tesla V100-SXM2-16GB"), find_peak("NVIDIA L4")
    assert peak_flops_per_s(v100, "float16") == 125e12
    assert peak_flops_per_s(v100, "bfloat16") is None
    assert peak_flops_per_s(v100, "tf32") == 15.7e12, "rounding is not possible, float32 is"
    assert peak_flops_per_s(l4, "float64") is None


@pytest.mark.parametrize(
    ("precision", "arithmetic"),
    [
        ("bf16-mixed", "bfloat16"), ("bf16-true", "bfloat16"), ("16-mixed", "float16"),
        ("16-true", "float16"), ("64-true", "float64"), ("transformer-engine", None),
    ],
)  # fmt: skip
def test_the_arithmetic_is_that_of_the_trainers_precision(precision, arithmetic):
    assert find_arithmetic(precision, convolutions=False) == arithmetic


def test_float32_may_be_rounded_as_pytorch_is_told():
    """PyTorch's defaults round convolutions and not matrix products."""
    assert find_arithmetic("32-true", convolutions=False) == "float32"
    assert find_arithmetic("32-true", convolutions=True) == "tf32"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert find_arithmetic("32-true", convolutions=False) == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
