"""Which module is running."""

from __future__ import annotations

from typing import Any, cast

from torch import nn


class ModuleStack:
    """Follows the calls of a model's modules.

    A module that stands in several places goes by its first name; one that is called several times
    gets a new call number each time.
    """

    def __init__(self, model: nn.Module) -> None:
        """Put hooks on every module; they stay, unless `remove` is called."""
        self._running: list[tuple[str, int]] = []
        self._hooks: list[Any] = []
        self._calls = 0
        modules: dict[str, Any] = dict(cast(Any, model).named_modules())
        self.types = {path: type(module).__name__ for path, module in modules.items()}
        # not any(module.children()): an empty container is false, and a compiled module has no truth
        self.leaves = {p for p, module in modules.items() if next(module.children(), None) is None}
        for path, module in modules.items():
            enter = module.register_forward_pre_hook(self._entering(path), prepend=True)
            leave = module.register_forward_hook(self._leaving, always_call=True)
            self._hooks += [enter, leave]

    def remove(self) -> None:
        """Take the hooks off again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._running.clear()

    @property
    def path(self) -> str:
        """The innermost module that is running; "" where none is, or the whole model."""
        return self._running[-1][0] if self._running else ""

    @property
    def call(self) -> int:
        """The number of that module's call; 0 where none is running."""
        return self._running[-1][1] if self._running else 0

    def _entering(self, path: str) -> Any:
        def enter(module: nn.Module, args: Any) -> None:
            self._calls += 1
            self._running.append((path, self._calls))

        return enter

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running:  # empty where a hook before ours failed
            self._running.pop()
