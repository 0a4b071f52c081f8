"""Let torchvision be imported beside a torch that it was not built for.

PyPI's torchvision is a CUDA build. Beside a CPU build of torch its compiled library does not load;
torchvision then registers shape functions for two operators that nobody has defined, and its import
fails, and with it the import of whatever looks for torchvision: torchmetrics, lightning, timm.
Defining the operators' names and types is enough for models, transforms and data sets; calling the
operators themselves (non-maximum suppression) goes on failing.

`scripts/setup dev` copies this file into .venv and has Python import it at every start, so it
imports nothing that is not loaded already, and waits until torchvision is imported. Where
torchvision's own library loads, it does nothing. It is no part of the package.
"""

import sys

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_libraries = []  # torch forgets a definition once its library object is collected


class _Watch:
    """Sees every first import, finds nothing itself, and acts on one.

    torchvision imports `extension`, which loads the compiled library, and right after it
    `_meta_registrations`, which needs the operators.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Called by Python's import system before it looks for `name`."""
        if name == "torchvision._meta_registrations" and not _libraries:
            extension = sys.modules["torchvision.extension"]
            if not extension._has_ops():
                _define_operators()


def _define_operators():
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)


sys.meta_path.insert(0, _Watch)
