"""What an operator's result looks like, found faster than torch finds it, and the same.

torch's fake tensors work out each result in Python, for a millisecond or more the first time and a
tenth of one from then on. Here a result is remembered by the operator and all of its arguments
(tensors by shape, strides, type and device), views are left to torch's own kernels for shapes, and a
few operators have rules (`shape_rules`). Whatever is out of the ordinary is asked of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)

from efftrain.graph.observer import storage_key, tensors_in
from efftrain.graph.shape_rules import RULES, Shape


class Recipe(NamedTuple):
    """How to make a result.

    Attributes:
        form: One tensor, several, the first argument itself, or nothing.
        shapes: Of the tensors; None stands for a result that was not asked for.
    """

    form: Literal["one", "tuple", "list", "first", "nothing"]
    shapes: tuple[Shape | None, ...] = ()


# Made anew, written in place, looking at its argument's memory; or none of these for sure.
Kind = Literal["fresh", "in_place", "view", "unknown"]

_DEVICE = torch.ops.prim.device.default
_kinds: dict[Any, Kind] = {}
_recipes: dict[Any, Recipe | None] = {}
_MOST_RECIPES = 50_000  # some 50 MB; a large model has a few hundred
_TORCHS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_PLAIN: frozenset[Any] = frozenset((int, float, bool, str, type(None), *_TORCHS))
_UNKNOWN_TAGS = (
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
)


def forget_shapes() -> None:
    """Forget all results, as in a new process."""
    _recipes.clear()


class ShapeMode(FakeTensorMode):
    """Makes tensors that have shapes but no values; an `Observer` gets its results here."""

    def __init__(self, **options: Any) -> None:
        """As torch's."""
        super().__init__(**options)
        self._likes: dict[torch.device, dict[str, Any]] = {}

    def result_of(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What the operator returns; whatever torch returns where that is not known for sure."""
        if func is _DEVICE and type(args[0]) is FakeTensor:
            return args[0].fake_device
        kind = _kinds.get(func)
        if kind is None:
            kind = _kinds[func] = _kind(func)
        if kind == "unknown":
            return func(*args, **kwargs)
        if kind == "view":
            return self._view(func, args, kwargs)
        key = _key(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        if key in _recipes:
            recipe = _recipes[key]
            return func(*args, **kwargs) if recipe is None else self._make(recipe, args)
        rule = RULES.get(func)
        shapes = rule(args) if rule is not None and not kwargs else None
        if shapes is not None:
            form = "first" if kind == "in_place" else "one" if len(shapes) == 1 else "tuple"
            recipe = Recipe(form, shapes)
            result = self._make(recipe, args)
        else:
            result = func(*args, **kwargs)
            recipe = _recipe(kind, result, args, kwargs)
        if len(_recipes) >= _MOST_RECIPES:
            _recipes.clear()
        _recipes[key] = recipe
        return result

    def _view(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        base = args[0] if args else None
        if type(base) is not FakeTensor or not _ordinary(base) or kwargs:
            return func(*args, **kwargs)
        if any(isinstance(argument, Tensor) for argument in args[1:]):
            return func(*args, **kwargs)
        with in_kernel_invocation_manager(self):
            made = func(*args)
            if isinstance(made, Tensor):
                return self._fake(made, base.fake_device)
            return [self._fake(each, base.fake_device) for each in made]

    def _make(self, recipe: Recipe, args: Sequence[Any]) -> Any:
        form = recipe.form
        if form == "first":
            return args[0]
        if form == "nothing":
            return None
        with in_kernel_invocation_manager(self):
            made = [None if shape is None else self.empty(shape) for shape in recipe.shapes]
        if form == "one":
            return made[0]
        return tuple(made) if form == "tuple" else made

    def empty(self, shape: Shape) -> FakeTensor:
        """A tensor of some shape; called where no mode is on."""
        sizes, strides, dtype, device = shape
        return self._fake(torch.empty_strided(sizes, strides, dtype=dtype, device="meta"), device)

    def _fake(self, meta: Tensor, device: torch.device) -> FakeTensor:
        """What FakeTensor's constructor makes, whose checks take most of its time."""
        like = self._likes.get(device)
        if like is None:
            like = self._likes[device] = dict(vars(FakeTensor(self, meta, device)))
        made: Any = Tensor._make_subclass(
            FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device
        )
        cast(Any, torch)._C._set_warn_deprecated_on_mutable_data_ptr(made)
        made.__dict__.update(like)
        return made


def _kind(func: Any) -> Kind:
    """What is known of an operator's results from its schema."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.name.startswith("aten::"):
        return "unknown"  # of a library, or of higher order
    if any(tag in func.tags for tag in _UNKNOWN_TAGS):
        return "unknown"
    if func is torch.ops.aten._unsafe_view.default:
        return "view"  # what its schema leaves out
    aliases: list[Any] = [returned.alias_info for returned in schema.returns]
    if all(alias is None for alias in aliases):
        return "fresh"
    if not any(alias is None or alias.is_write for alias in aliases):
        # one that is made of others may copy instead
        composite = cast(Any, torch)._C._dispatch_has_kernel_for_dispatch_key
        return "unknown" if composite(func.name(), "CompositeImplicitAutograd") else "view"
    first: Any = schema.arguments[0].alias_info if schema.arguments else None
    if len(aliases) > 1 or first is None or not first.is_write:
        return "unknown"
    return "in_place" if aliases[0].before_set == first.before_set else "unknown"


def _ordinary(tensor: FakeTensor) -> bool:
    """Without a value that torch knows, and dense."""
    return tensor.constant is None and tensor.layout is torch.strided


def _key(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """Everything that a result's shape may depend on; None where that cannot be told."""
    parts: list[Any] = [func, torch.get_default_dtype()]
    if not _describe(parts, args):
        return None
    if kwargs:
        parts.extend(kwargs)
        if not _describe(parts, kwargs.values()):
            return None
    # without a tensor or a device among its arguments, a result is where the caller's defaults say
    return tuple(parts) if any(type(part) is torch.device for part in parts) else None


def _describe(parts: list[Any], values: Any) -> bool:
    for value in values:
        kind = cast(Any, type(value))
        if kind is FakeTensor:
            dtype = value.dtype
            if not _ordinary(value) or dtype.is_complex:
                return False
            parts += (value.shape, value.stride(), dtype, value.fake_device)
        elif kind in _PLAIN:
            parts += (kind, value)  # 1, 1.0 and True are equal, and are not the same
        elif kind is list or kind is tuple:
            parts.append(len(value))
            if not _describe(parts, value):
                return False
        else:
            return False
    return True


def _recipe(kind: Kind, result: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Recipe | None:
    """How the result can be made again; None where it has to be asked for each time."""
    if kind == "in_place":
        return Recipe("first") if result is args[0] else None
    if result is None:
        return Recipe("nothing")
    if isinstance(result, Tensor):
        form, made = "one", [result]
    elif type(result) in (list, tuple):
        form, made = ("list" if type(result) is list else "tuple"), list(cast(Any, result))
    else:
        return None
    memory = {storage_key(t) for t in tensors_in([*args, *kwargs.values()])}
    shapes: list[Shape | None] = []
    for each in made:
        if each is None:
            shapes.append(None)
            continue
        if type(each) is not FakeTensor or not _ordinary(each):
            return None
        if each.storage_offset() or storage_key(each) in memory:
            return None
        memory.add(storage_key(each))
        shape = Shape(each.shape, each.stride(), each.dtype, each.fake_device)
        if each.untyped_storage().nbytes() != shape.memory_bytes():
            return None
        shapes.append(shape)
    return Recipe(form, tuple(shapes))
