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
    "score_by_parameter": "uimjax.interpret.shares",
    "score_by_token": "uimjax.interpret.shares",
    "Checkpoint": "uimjax.interpret.trajectory",
    "read_run": "uimjax.interpret.trajectory",
    "Recipe": "uimjax.steps",
    "Method": "uimjax.interpret.base",
    "append_index": "uimjax.interpret.indexing",
    "build_index": "uimjax.interpret.indexing",
    "merge_indexes": "uimjax.interpret.indexing",
    "repair_index": "uimjax.interpret.indexing",
    "open_index": "uimjax.interpret.index",
    "verify_index": "uimjax.interpret.index",
    "trace": "uimjax.interpret.trace",
    "totals": "uimjax.interpret.trace",
    "initial": "uimjax.pretrained.loading",
    "load": "uimjax.pretrained.loading",
    "outline": "uimjax.pretrained.loading",
    "save": "uimjax.pretrained.saving",
    "make_mesh": "uimjax.mesh",
    "keep_buffers": "uimjax.allocator",
    "compile_sooner": "uimjax.compiler",
    "UimError": "uimjax.errors",
}

_MODULES = {
    "factors": "uimjax.factors",  # callable: see there
    "methods": "uimjax.interpret.methods",
    "counterfactual": "uimjax.interpret.counterfactual",
    "check": "uimjax.interpret.check",
    "dynamics": "uimjax.understand.dynamics",
    "representation": "uimjax.understand.representation",
    "scaling": "uimjax.understand.scaling",
}

if TYPE_CHECKING:
    from uimjax import factors as factors
    from uimjax.allocator import keep_buffers as keep_buffers
    from uimjax.compiler import compile_sooner as compile_sooner
    from uimjax.errors import UimError as UimError
    from uimjax.factors import gradient_norms as gradient_norms
    from uimjax.factors import per_example_gradients as per_example_gradients
    from uimjax.interpret import check as check
    from uimjax.interpret import counterfactual as counterfactual
    from uimjax.interpret import methods as methods
    from uimjax.interpret.base import Method as Method
    from uimjax.interpret.index import open_index as open_index
    from uimjax.interpret.index import verify_index as verify_index
    from uimjax.interpret.indexing import append_index as append_index
    from uimjax.interpret.indexing import build_index as build_index
    from uimjax.interpret.indexing import merge_indexes as merge_indexes
    from uimjax.interpret.indexing import repair_index as repair_index
    from uimjax.interpret.methods import score as score
    from uimjax.interpret.shares import score_by_parameter as score_by_parameter
    from uimjax.interpret.shares import score_by_token as score_by_token
    from uimjax.interpret.trace import totals as totals
    from uimjax.interpret.trace import trace as trace
    from uimjax.interpret.trajectory import Checkpoint as Checkpoint
    from uimjax.interpret.trajectory import read_run as read_run
    from uimjax.mesh import make_mesh as make_mesh
    from uimjax.onepass import collect as collect
    from uimjax.pretrained.loading import initial as initial
    from uimjax.pretrained.loading import load as load
    from uimjax.pretrained.loading import outline as outline
    from uimjax.pretrained.saving import save as save
    from uimjax.sketch import DenseSketch as DenseSketch
    from uimjax.sketch import Sketch as Sketch
    from uimjax.sketch import SparseSketch as SparseSketch
    from uimjax.steps import Recipe as Recipe
    from uimjax.taps import sites as sites
    from uimjax.task import Measurement as Measurement
    from uimjax.task import Task as Task
    from uimjax.task import contrast as contrast
    from uimjax.understand import dynamics as dynamics
    from uimjax.understand import representation as representation
    from uimjax.understand import scaling as scaling

__all__ = ["__version__", *_MODULES, *_WHERE]  # pyright: ignore[reportUnsupportedDunderAll]  # the table above


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'uimjax' has no attribute {name!r}; the public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
