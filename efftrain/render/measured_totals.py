"""What was measured, what fits and what each device holds, as figures beside the predicted ones."""

from __future__ import annotations

from collections.abc import Iterable

from efftrain.measure.cost_report import CostReport, MethodFit
from efftrain.measure.latency import Latency
from efftrain.measure.measured import Measured
from efftrain.profiling import Profile
from efftrain.profiling.strategy import DevicePeak
from efftrain.render.profile_totals import INFERENCE, Total
from efftrain.render.quantity import bytes_text, milliseconds_text, ratio_text

MEASURED = "measured on {}"


def measured_totals(report: CostReport) -> tuple[Total, ...]:
    """Every figure of a report that its profile does not hold, in the order in which it is read."""
    found: list[Total] = []
    if report.measured is not None:
        found += _of_runs(report.measured, report.profile)
    if report.per_device is not None:
        found.append(_of_device(report.per_device))
    return (*found, *_of_fits(report.fits))


def _of_runs(measured: Measured, profile: Profile) -> Iterable[Total]:
    latency, throughput = measured.latency, measured.throughput
    section = MEASURED.format(_machine(latency))
    predicted = None if profile.latency is None else profile.latency.predicted_ms
    error_pct = measured.layer_error_pct(profile)
    details = [_percentiles(latency)]
    if latency.disturbed:
        details.append("other programs disturbed it")
    if predicted is not None:
        details.append(f"{ratio_text(latency.p50_ms / predicted)} x what was predicted")
    if error_pct is not None:
        details.append(f"predicted times of the layers are off by {error_pct:.0f} % (median)")
    yield Total(
        section,
        "latency",
        f"{milliseconds_text(latency.p50_ms)} ms",
        tuple(details),
        "measured",
        "inference of one sample at a time, median",
    )
    yield Total(
        section,
        "throughput",
        f"{throughput.best.samples_per_s:,.1f} samples/s",
        (
            f"with a batch of {throughput.best.batch_size}",
            "by batch: "
            + ", ".join(f"{p.batch_size}: {p.samples_per_s:,.1f}" for p in throughput.points),
        ),
        "measured",
        f"{INFERENCE.split(' ')[0]}, the best over several batch sizes",
    )
    if measured.energy is not None:
        yield Total(
            section,
            "energy",
            f"{measured.energy.sample_mj:,.3g} mJ",
            (f"{measured.energy.samples:,} samples by {', '.join(measured.energy.sources)}",),
            "measured",
            "of inference of one sample at a time, what else ran on the device included",
        )
    if measured.step is not None:
        step_predicted = None if profile.step_latency is None else profile.step_latency.predicted_ms
        details = [_percentiles(measured.step)]
        if step_predicted is not None:
            times = ratio_text(measured.step.p50_ms / step_predicted)
            details.append(f"{times} x what was predicted ({milliseconds_text(step_predicted)} ms)")
        yield Total(
            section,
            f"step, batch {measured.step.samples}",
            f"{milliseconds_text(measured.step.p50_ms)} ms",
            tuple(details),
            "measured",
            "forward, loss, backward and update, median",
        )


def _of_device(peak: DevicePeak) -> Total:
    parts = (
        ("parameters", peak.parameter_bytes),
        ("gradients", peak.gradient_bytes),
        ("optimizer state", peak.optimizer_bytes),
        ("buckets", peak.bucket_bytes),
        ("put together for a while", peak.unsharded_bytes),
        ("activations and the rest", peak.working_bytes),
    )
    return Total(
        f"training step on {peak.devices} devices, {peak.strategy}",
        "peak of each",
        bytes_text(peak.device_peak_bytes),
        (", ".join(f"{name} {bytes_text(size)}" for name, size in parts if size), peak.assumptions),
        peak.obtained,
        "the most that one device holds at any moment; no more than the sum of its parts",
    )


def _of_fits(fits: tuple[MethodFit, ...]) -> Iterable[Total]:
    limits = [fit.fit.limit_bytes for fit in fits if fit.fit is not None]
    into = f" into {bytes_text(limits[0])}" if limits else ""
    for fit in fits:
        value, details = _fit_text(fit)
        yield Total(
            f"the largest batch whose step fits{into}",
            f"{fit.method}, memory={fit.memory}",
            value,
            details,
            "predicted",
            "samples; what a step holds at most is predicted from shapes",
        )


def _fit_text(fit: MethodFit) -> tuple[str, tuple[str, ...]]:
    if fit.fit is None:
        return "not here", (fit.why_not,)
    peak = bytes_text(fit.fit.step_peak_bytes)
    if fit.fit.batch_size == 0:
        return "0", (f"{fit.fit.smallest_batch} would need {peak}",)
    return f"{fit.fit.batch_size:,}", (f"a step holds {peak}",)


def _percentiles(latency: Latency) -> str:
    return (
        f"p90 {milliseconds_text(latency.p90_ms)}, p99 {milliseconds_text(latency.p99_ms)} ms; "
        f"{latency.runs} runs after {latency.warmup}"
    )


def _machine(latency: Latency) -> str:
    if latency.threads is None:
        return latency.device
    return f"{latency.device}, {latency.threads} thread{'s' if latency.threads > 1 else ''}"
