"""uimjax: understand, interpret and mitigate what models inherit from their pretraining data.

The public names are imported on first use, so that `import uimjax` and `uimjax --help` do not import jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Task": "uimjax.task",
    "Measurement": "uimjax.task",
    "contrast": "uimjax.task",
    "sites": "uimjax.taps",
    "Sketch": "uimjax.sketch",
    "DenseSketch": "uimjax.sketch",
    "SparseSketch": "uimjax.sketch",
    "per_example_gradients": "uimjax.factors",
    "gradient_norms": "uimjax.factors",
    "collect": "uimjax.onepass",
    "score": "uimjax.interpret.methods",
    "Method": "uimjax.interpret.base",
    "build_index": "uimjax.interpret.index",
    "open_index": "uimjax.interpret.index",
    "verify_index": "uimjax.interpret.index",
    "trace": "uimjax.interpret.trace",
    "make_mesh": "uimjax.mesh",
    "keep_buffers": "uimjax.allocator",
    "UimError": "uimjax.errors",
}

if TYPE_CHECKING:
    import uimjax.factors as factors  # a module that is callable: see there
    from uimjax.allocator import keep_buffers as keep_buffers
    from uimjax.errors import UimError as UimError
    from uimjax.factors import gradient_norms as gradient_norms
    from uimjax.factors import per_example_gradients as per_example_gradients
    from uimjax.interpret.base import Method as Method
    from uimjax.interpret.index import build_index as build_index
    from uimjax.interpret.index import open_index as open_index
    from uimjax.interpret.index import verify_index as verify_index
    from uimjax.interpret.methods import score as score
    from uimjax.interpret.trace import trace as trace
    from uimjax.mesh import make_mesh as make_mesh
    from uimjax.onepass import collect as collect
    from uimjax.sketch import DenseSketch as DenseSketch
    from uimjax.sketch import Sketch as Sketch
    from uimjax.sketch import SparseSketch as SparseSketch
    from uimjax.taps import sites as sites
    from uimjax.task import Measurement as Measurement
    from uimjax.task import Task as Task
    from uimjax.task import contrast as contrast

__all__ = ["__version__", "factors", *_WHERE]  # pyright: ignore[reportUnsupportedDunderAll]  # the table above


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name == "factors":  # a module that is callable
        return importlib.import_module("uimjax.factors")
    raise AttributeError(f"module 'uimjax' has no attribute {name!r}; the public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
