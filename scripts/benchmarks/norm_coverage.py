"""How much of every architecture's normalization parameters `efftrain.peft` finds, and what else.

python scripts/benchmarks/norm_coverage.py                      # timm's families and transformers
python scripts/benchmarks/norm_coverage.py timm --only resnet vision_transformer
python scripts/benchmarks/norm_coverage.py timm --all           # every variant, some minutes
python scripts/benchmarks/norm_coverage.py transformers --json coverage.json

Models are built without weights, on the meta device. efftrain finds norms by running them; here
they are judged by reading: a module is a norm if it holds only vectors and the text of its forward
divides by a mean square, a variance or a norm. The two rules share no code. Exit code 1 where they
disagree.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from efftrain.peft import norm_coverage

DIVIDES = re.compile(
    r"batch_norm|layer_norm|group_norm|instance_norm|rms_?norm|instance_rms|simple_norm|rsqrt|\.sqrt\("
    r"|\bnorm\(|_norm\(|\bstd\(|_std\(|\bvar\(|pow\(-0\.5\)|\*\* ?-0\.5"
)
NOT_A_ROLE = {"v", "tau"}
"""Parameters of a norm that are neither scale nor bias: the activations fused into EvoNorm and FRN."""

MISREAD = {
    "MuseSparkResidualGate": "takes the root of its gate, not of its input",
    "Inkling2BlockAttentionResidual": "an attention over blocks, scaled by the root of the width",
}
"""Classes whose text divides and which are no norms, as a person sees who reads them."""

SMALL = ("test_", "atto", "femto", "pico", "nano", "zepto", "_xxs", "tiny", "_xs", "_050", "mini",
         "small", "_s_", "_b0", "_t", "_s", "18", "26", "b0")  # fmt: skip

LAYER_COUNTS = {
    "num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers",
    "num_encoder_layers", "num_decoder_layers", "depth", "encoder_num_hidden_layers",
    "decoder_num_hidden_layers",
}  # fmt: skip
EXPERT_COUNTS = {"num_experts", "num_local_experts", "n_routed_experts"}
LAYERS = 4

# What some configurations need to be buildable at all: their defaults leave these open.
OPTIONS: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 4},
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "emu3": {"vocabulary_map": {"<image>": 4}},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "informer": {"prediction_length": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "nemotron": {"num_key_value_heads": 8},
    "time_series_transformer": {"prediction_length": 4},
}
OPEN = {
    "head_dim": 64, "num_experts": 4, "n_routed_experts": 4, "n_shared_experts": 1,
    "moe_intermediate_size": 16, "num_experts_per_tok": 2, "top_k_experts": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "mlp_layer_types": ["dense"] * 4,
}  # fmt: skip
"""Values for what a default leaves at None, tried where a model cannot be built without."""


@dataclass(frozen=True)
class Row:
    """One architecture.

    Attributes:
        library: `timm` or `transformers`.
        family: timm's module, or the model type.
        model: Which model of it.
        parameters: Elements of norm parameters, by reading.
        found: Of these, elements that efftrain found.
        missed: Names that it did not find.
        extra: Names that it found and that are none, by reading.
        unknown: Paths that efftrain reports as not recognised.
    """

    library: str
    family: str
    model: str
    parameters: int
    found: int
    missed: tuple[str, ...]
    extra: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether both rules say the same of every parameter."""
        return not (self.missed or self.extra or self.unknown)


def main() -> int:
    """Judge every family and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", nargs="?", choices=["timm", "transformers"])
    parser.add_argument("--only", nargs="*", help="only these families")
    parser.add_argument("--all", action="store_true", help="every variant of timm, not one each")
    parser.add_argument("--json", help="write the rows there, too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, failures = list[Row](), dict[str, str]()
    sources = {"timm": timm_models, "transformers": transformers_models}
    for library, models in sources.items():
        if options.library in (None, library):
            judge_all(library, models(options.only, options.all), rows, failures)
    report(rows, failures)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(
                {"rows": [asdict(row) for row in rows], "not_built": failures}, file, indent=1
            )
    return int(not all(row.agrees for row in rows))


Built = tuple[str, str, Callable[[], nn.Module]]


def judge_all(
    library: str, models: Iterable[Built], rows: list[Row], failures: dict[str, str]
) -> None:
    """Build and judge one after the other; a model that cannot be built is noted with its reason."""
    for family, name, build in models:
        try:
            with torch.device("meta"):
                model = build()
        except Exception as error:
            failures[f"{library} {family}"] = str(error).strip().splitlines()[0][:90]
            continue
        row = judge(library, family, name, model)
        rows.append(row)
        sign = "ok" if row.agrees else "DIFFERS"
        print(f"{library:<13}{family:<34}{row.parameters:>12,}{row.found:>12,}  {sign}", flush=True)


def judge(library: str, family: str, name: str, model: nn.Module) -> Row:
    """Compare what efftrain finds with what reading the code says."""
    coverage = norm_coverage(model)
    ours = {parameter for site in coverage.sites for parameter in site.parameters}
    theirs = set(read_norms(model))
    sizes = {parameter: tensor.numel() for parameter, tensor in model.named_parameters()}
    return Row(
        library=library,
        family=family,
        model=name,
        parameters=sum(sizes[parameter] for parameter in theirs),
        found=sum(sizes[parameter] for parameter in theirs & ours),
        missed=tuple(sorted(theirs - ours)),
        extra=tuple(sorted(ours - theirs)),
        unknown=tuple(suspect.path for suspect in coverage.unknown),
    )


def read_norms(model: nn.Module) -> Iterator[str]:
    """Names of the parameters of modules whose code normalises, without running any of it."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        matrices = any(sum(size > 1 for size in p.shape) > 1 for p in module.parameters())
        if matrices and not isinstance(module, nn.LayerNorm):  # over [C, H, W] it has a scale so
            continue
        if own and type(module).__name__ not in MISREAD and DIVIDES.search(code_of(module)):
            yield from (first[id(p)] for name, p in own.items() if name not in NOT_A_ROLE)


def code_of(module: nn.Module) -> str:
    """The text of a module's forward, of the methods of its own that it calls, and of its base's.

    Calls of its children are taken out: a gate behind a norm is no norm.
    """
    kind = type(module)
    text = source(kind.forward)
    for name in re.findall(r"self\.(_\w+)\(", text):
        text += source(getattr(kind, name, None))
    if re.search(r"super\(\)\.forward\(|\.forward\(self", text):
        bases = (base for base in kind.__mro__[1:] if "forward" in vars(base))
        text += "".join(source(vars(base)["forward"]) for base in bases)
    return re.sub(r"self\.\w+\(|math\.sqrt\(", "(", text)


def source(function: object) -> str:
    """The text of a function without its documentation; empty where there is none."""
    try:
        text = inspect.getsource(inspect.unwrap(function))  # type: ignore[arg-type]  # any object may come
    except (TypeError, OSError):
        return ""
    return re.sub(r'"""[\s\S]*?"""', "", text.partition("):")[2] or text)


def timm_models(only: list[str] | None, every: bool) -> Iterator[Built]:
    """One small model of each family, or all of them."""
    import timm
    from timm.models import list_modules

    for family in sorted(list_modules()):
        if only and family not in only:
            continue
        names = timm.list_models(module=family)
        for name in names if every else [smallest(names)]:
            yield (name if every else family), name, lambda name=name: timm.create_model(name)


def smallest(names: list[str]) -> str:
    """The first name that says it is small."""
    for word in SMALL:
        for name in names:
            if word in name:
                return name
    return names[0]


def transformers_models(only: list[str] | None, _every: bool) -> Iterator[Built]:
    """Every architecture with a base model, cut to a few layers."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    transformers.logging.set_verbosity_error()
    for name in sorted(MODEL_MAPPING_NAMES):
        if not only or name in only:
            yield name, name, lambda name=name: build_transformers(name)


def build_transformers(name: str) -> nn.Module:
    """From the defaults with fewer layers; from the plain defaults where that does not fit."""
    from transformers import AutoConfig, AutoModel

    options = OPTIONS.get(name, {})
    error: Exception | None = None
    for layers, fill in ((True, False), (False, False), (True, True)):
        try:
            config = AutoConfig.for_model(name, **options)
            if layers:
                shrink(config, keep=options)
            if fill:
                fill_in(config)
            return AutoModel.from_config(config)
        except Exception as caught:
            error = error or caught
    raise error or RuntimeError(name)


def fill_in(config: Any) -> None:
    """Give what a default leaves open, in sub-configurations, too."""
    for key, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            fill_in(value)
        elif value is None and key in OPEN:
            setattr(config, key, OPEN[key])


def shrink(config: Any, keep: Iterable[str] = ()) -> None:
    """Cut layers and experts, in sub-configurations, too."""
    for key, value in list(vars(config).items()):
        if hasattr(value, "model_type") and key not in keep:
            shrink(value)
        elif key in LAYER_COUNTS and isinstance(value, int) and value > LAYERS:
            setattr(config, key, LAYERS)
        elif key == "layer_types" and isinstance(value, list) and key not in keep:
            setattr(config, key, value[:LAYERS])
        elif key in EXPERT_COUNTS and isinstance(value, int):
            setattr(config, key, LAYERS)


def report(rows: list[Row], failures: dict[str, str]) -> None:
    """Print where the rules differ, what was not built, and the score."""
    for row in rows:
        if not row.agrees:
            print(f"\n{row.library} {row.model}")
            for what in ("missed", "extra", "unknown"):
                if names := getattr(row, what):
                    print(f"  {what} {len(names)}: {', '.join(names[:3])}")
    if failures:
        print("\nnot built (a package or an option is missing):")
        for name, reason in failures.items():
            print(f"  {name}: {reason}")
    for library in dict.fromkeys(row.library for row in rows):
        group = [row for row in rows if row.library == library]
        total, found = sum(row.parameters for row in group), sum(row.found for row in group)
        extra = sum(len(row.extra) for row in group)
        print(
            f"\n{library}: {len(group)} architectures, {found:,} of {total:,} norm parameters found "
            f"({100 * found / max(total, 1):.4f} %), {extra} others; "
            f"{sum(row.agrees for row in group)} of {len(group)} agree in every name"
        )


if __name__ == "__main__":
    sys.exit(main())
