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
    "make_mesh": "uimjax.mesh",
}

if TYPE_CHECKING:
    from uimjax.mesh import make_mesh as make_mesh
    from uimjax.taps import sites as sites
    from uimjax.task import Measurement as Measurement
    from uimjax.task import Task as Task
    from uimjax.task import contrast as contrast

__all__ = ["__version__", *_WHERE]  # pyright: ignore[reportUnsupportedDunderAll]  # the names of the table above


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'uimjax' has no attribute {name!r}; the public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
