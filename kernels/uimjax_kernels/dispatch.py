"""Choose an implementation: None picks the first that supports the inputs, a name gives that one or an error."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class KernelError(ValueError):
    """A named implementation does not exist or does not support these inputs; the message says which and why."""


class Implementation(NamedTuple):
    """`refuses(*args, **kwargs)` gives the reason why the inputs are not supported, or None."""

    fun: Callable[..., Any]
    refuses: Callable[..., str | None]


def dispatch(op: str, table: Mapping[str, Implementation], name: str | None, *args: Any, **kwargs: Any) -> Any:
    """Run `op` with the implementation asked for; the order of `table` is the order of preference."""
    if name is not None and name not in table:
        raise KernelError(f"{op} has no implementation {name!r}; it has {', '.join(table)}")
    refusals = []
    for key in [name] if name is not None else table:
        refused = table[key].refuses(*args, **kwargs)
        if refused is None:
            return table[key].fun(*args, **kwargs)
        refusals.append(f"{key}: {refused}")
    raise KernelError(f"no implementation of {op} takes these inputs. " + "; ".join(refusals))
