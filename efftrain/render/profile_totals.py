"""What a profile says of the whole model: each figure with its unit, its origin and its meaning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from efftrain.profiling.report import Profile
from efftrain.profiling.roofline import Ceilings, Roofline
from efftrain.profiling.second_opinion import SecondOpinion
from efftrain.render.quantity import (
    bytes_text,
    count_text,
    milliseconds_text,
    percent_text,
    ratio_text,
)
from efftrain.tags import How

MODEL = "model"
INFERENCE = "inference of one sample"
WHOLE = "the model itself"
SHOWN_ALIVE = 4  # tensors at the peak; the rest is summed up


@dataclass(frozen=True)
class Total:
    """One figure of the whole model.

    Attributes:
        section: What it is a figure of.
        name: Short.
        value: With its unit.
        details: What it consists of, one line each.
        how: From shapes before running, while running, or from a cost model.
        meaning: In one line.
    """

    section: str
    name: str
    value: str
    details: tuple[str, ...]
    how: How
    meaning: str


def totals_line(profile: Profile) -> str:
    """The most asked for figures in one line."""
    params, memory = profile.params, profile.memory
    return " || ".join(
        (
            f"params {params.total:,} (trainable {percent_text(params.trainable_pct)})",
            f"MACs {count_text(profile.macs.forward, digits=4)}",
            f"activations {count_text(profile.activations.total)}",
            f"saved {bytes_text(memory.saved.saved_bytes)}",
            f"step peak {bytes_text(memory.peak.step_peak_bytes)}",
        )
    )


def find_totals(profile: Profile) -> tuple[Total, ...]:
    """Every figure of the whole model that is known, in the order in which they are read."""
    return (*_of_model(profile), *_of_inference(profile), *_of_step(profile))


def _of_model(profile: Profile) -> Iterable[Total]:
    params, size = profile.params, profile.size
    yield Total(
        MODEL,
        "parameters",
        f"{params.total:,}",
        (
            f"trainable {params.trainable:,} ({percent_text(params.trainable_pct)})",
            f"buffers {params.buffers:,}",
        ),
        "predicted",
        "elements of all parameters; a tied tensor counts once",
    )
    widths = ("fp32", size.fp32_bytes), ("fp16", size.fp16_bytes), ("int8", size.int8_bytes)
    yield Total(
        MODEL,
        "size",
        bytes_text(size.model_bytes),
        (
            _parts(*widths, ("int4", size.int4_bytes)),
            *([] if size.delta_bytes is None else [f"delta {bytes_text(size.delta_bytes)}"]),
        ),
        "predicted",
        "parameters and buffers as they are; at other widths parameters alone, without scales;"
        " delta: the file that one fine-tuned task adds",
    )
    if profile.receptive_field.status == "unavailable":
        return
    found = profile.receptive_field.to_dict()
    value = found.get("size", "not known")
    details = [f"stride {found['stride']} px"] if "stride" in found else []
    if found["global"] and value != "global":
        details.append("and all other pixels, through a global pool")
    if profile.receptive_field.unknown:
        details.append(f"not understood: {', '.join(profile.receptive_field.unknown)}")
    yield Total(
        MODEL,
        "receptive field",
        f"{value} px" if isinstance(value, int) else str(value),
        tuple(details),
        "predicted",
        "pixels along the width that a position of the last feature map depends on",
    )


def _of_inference(profile: Profile) -> Iterable[Total]:
    found = profile.activations
    yield Total(
        INFERENCE,
        "MACs",
        count_text(profile.macs.forward, digits=4),
        (f"exactly {profile.macs.forward:,}",),
        "predicted",
        "multiply-accumulates of convolutions, products, attention and recurrent cells",
    )
    yield Total(
        INFERENCE,
        "activations",
        count_text(found.total),
        (
            f"conv and linear outputs alone {count_text(found.conv_linear)}",
            f"with norms and activation functions {count_text(found.unfused_total)}",
        ),
        "predicted",
        "elements of the input and of every layer's output, each tensor once; norms and activation"
        " functions are part of the layer before them",
    )
    yield Total(
        INFERENCE,
        "peak activations",
        count_text(found.peak),
        (f"at {found.peak_layer or WHOLE}", f"alive there: {alive_text(profile)}"),
        "predicted",
        "the most elements alive at one layer: what it reads, writes and must keep for later",
    )
    if profile.intensity is not None:
        yield Total(
            INFERENCE,
            "intensity",
            f"{ratio_text(profile.intensity)} FLOP/byte",
            (),
            "predicted",
            "operations for each byte that is read or written, if nothing stays in a cache",
        )
    if profile.latency is not None:
        yield from _time(INFERENCE, "predicted latency", profile.latency, profile.inference.flops())
    energy = profile.energy
    if energy.estimated_mj is not None:
        yield Total(
            INFERENCE,
            "energy",
            f"{energy.estimated_mj:.3g} mJ",
            (
                f"operations {sum(energy.operations_mj.values()):.3g} mJ, "
                f"memory traffic {energy.traffic_mj:.3g} mJ",
            ),
            "estimated",
            "Horowitz' 45 nm figures for each operation and each byte from memory; tells networks"
            " apart, no chip of today",
        )
    if profile.second_opinion is not None:
        yield _fvcore(profile, profile.second_opinion)


def _time(section: str, name: str, roofline: Roofline, flops: int) -> Iterable[Total]:
    if roofline.predicted_ms is None:
        return
    lines = [f"on {machine_text(roofline.ceilings)}"]
    # a counter here and there, such as BatchNorm's, is not worth a word
    missing = [d for d, count in roofline.without_ceiling.items() if count > 0.001 * flops]
    if missing:
        lines.append(f"no ceiling for {', '.join(missing)}")
    yield Total(
        section,
        name,
        f"{milliseconds_text(roofline.predicted_ms)} ms",
        tuple(lines),
        "predicted",
        "sum over layers of the longer of computing and moving, at the machine's two ceilings",
    )


def machine_text(ceilings: Ceilings) -> str:
    """A machine as its figures were found: "AMD EPYC, 2 threads"."""
    plural = "" if ceilings.threads == 1 else "s"
    threads = "" if ceilings.threads is None else f", {ceilings.threads} thread{plural}"
    disturbed = ", disturbed while it was measured" if ceilings.disturbed else ""
    return f"{ceilings.device}{threads}{disturbed}"


def alive_text(profile: Profile) -> str:
    """The tensors that are alive at the peak of inference, the largest first."""
    alive = sorted(profile.activations.alive_at_peak, key=lambda each: -each.elements)
    parts = [f"{count_text(a.elements)} of {a.path or WHOLE}" for a in alive[:SHOWN_ALIVE]]
    rest = alive[SHOWN_ALIVE:]
    if rest:
        parts.append(f"{count_text(sum(a.elements for a in rest))} of {len(rest)} more")
    return ", ".join(parts)


def _fvcore(profile: Profile, opinion: SecondOpinion) -> Total:
    details = [f"conv and linear outputs {count_text(opinion.conv_linear)}"]
    if profile.macs.forward:
        off = 100 * (opinion.flops / profile.macs.forward - 1)
        details.insert(0, f"{off:+.2f} % beside ours")
    if opinion.unsupported:
        names = [f"{name} ({calls} x)" for name, calls in opinion.unsupported.items()]
        details.append(f"no formula for {', '.join(names)}")
    return Total(
        INFERENCE,
        "fvcore's MACs",
        count_text(opinion.flops, digits=4),
        tuple(details),
        "predicted",
        "what fvcore calls FLOPs: multiply-accumulates, with norms and pools, without fused"
        " attention",
    )


def _of_step(profile: Profile) -> Iterable[Total]:
    section = f"training step, batch {profile.batch_size}"
    flops, peak = profile.flops, profile.memory.peak
    phases = {
        "forward": flops.forward,
        "backward": flops.backward,
        "recompute": flops.recompute,
        "optimizer": flops.optimizer or 0,
    }
    yield Total(
        section,
        "FLOPs",
        count_text(flops.step),
        (
            ", ".join(f"{name} {count_text(n)}" for name, n in phases.items() if n),
            f"other than multiply-accumulates {count_text(flops.elementwise)}",
        ),
        "predicted",
        "two for each multiply-accumulate, and all other arithmetic; nothing for frozen weights",
    )
    if profile.step_latency is not None:
        yield from _time(section, "predicted step", profile.step_latency, profile.flops.step)
    yield Total(
        section,
        "coverage",
        percent_text(profile.training.coverage_pct),
        tuple(
            f"no formula for {name}: {count_text(elements)} elements"
            for name, elements in profile.training.uncounted.items()
        ),
        "predicted",
        "computed elements whose operator has a formula; what has none is in no count",
    )
    causes = sorted(profile.memory.saved.by_cause().items(), key=lambda cause: -cause[1])
    yield Total(
        section,
        "saved",
        bytes_text(profile.memory.saved.saved_bytes),
        (_parts(*causes),) if causes else (),
        "predicted",
        "what autograd keeps from forward until backward, by the operation that keeps it",
    )
    without = "" if profile.flops.optimizer is not None else " (no optimizer given)"
    yield Total(
        section,
        "step peak",
        bytes_text(peak.step_peak_bytes),
        (
            _parts(
                ("parameters", peak.parameter_bytes),
                ("buffers", peak.buffer_bytes),
                ("batch", peak.batch_bytes),
                ("optimizer state", peak.optimizer_bytes),
            )
            + without,
            f"activations, gradients and temporaries at that moment {bytes_text(made_bytes(profile))}"
            + (
                f", {bytes_text(peak.scratch_bytes)} of it in kernels" if peak.scratch_bytes else ""
            ),
            f"gradients after backward {bytes_text(peak.gradient_bytes)}",
        ),
        "predicted",
        "the most that the step holds at any moment",
    )


def made_bytes(profile: Profile) -> int:
    """What the step itself has made at its peak: activations, gradients and temporaries."""
    peak = profile.memory.peak
    there = peak.parameter_bytes + peak.buffer_bytes + peak.batch_bytes + peak.optimizer_bytes
    return peak.step_peak_bytes - there


def _parts(*parts: tuple[str, int]) -> str:
    return ", ".join(f"{name} {bytes_text(size)}" for name, size in parts)
