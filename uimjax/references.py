"""The reader's own functions and modules, by `pkg.module:name`."""

import importlib
import sys
from pathlib import Path
from typing import Any

from uimjax.errors import UimError, UsageError


def resolve(reference: str) -> Any:
    """The object that `pkg.module:name` names; the working folder is searched too.

    Raises:
        UsageError: no such module or name.
    """
    module, _, name = reference.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{reference!r} cannot be imported: {error}. Write it as pkg.module:name.") from error


def call(reference: str, *args: Any) -> Any:
    """What the reader's own function returns.

    Raises:
        UsageError: it cannot be imported, is no function, or fails; its own error is the cause.
    """
    try:
        return resolve(reference)(*args)
    except UimError:
        raise
    except Exception as error:
        raise UsageError(f"{reference!r} failed: {type(error).__name__}: {error}") from error
