"""Choose an implementation: None picks the first that supports the inputs, a name gives that one or an error."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class KernelError(ValueError):
    """A named implementation does not exist or does not support these inputs; the message says which and why."""


class Implementation(NamedTuple):
    """`refuses(*args, **kwargs)` gives the reason why the inputs are not supported, or None. `backend`: where it is
    picked unasked; None anywhere; `named`: by name alone. By name it runs anywhere (a Pallas kernel off its backend is
    interpreted)."""

    fun: Callable[..., Any]
    refuses: Callable[..., str | None]
    backend: str | None = None
    named: bool = False


def dispatch(op: str, table: Mapping[str, Implementation], name: str | None, *args: Any, **kwargs: Any) -> Any:
    """Run `op` with the implementation asked for; the order of `table` is the order of preference."""
    if name is not None and name not in table:
        raise KernelError(f"{op} has no implementation {name!r}; it has {', '.join(table)}")
    refusals = []
    for key in [name] if name is not None else table:
        if name is None and (table[key].named or table[key].backend not in (None, jax.default_backend())):
            continue
        refused = table[key].refuses(*args, **kwargs)
        if refused is None:
            return table[key].fun(*args, **kwargs)
        refusals.append(f"{key}: {refused}")
    raise KernelError(f"no implementation of {op} takes these inputs. " + "; ".join(refusals))


def interpreted(backend: str) -> bool:
    """Whether a Pallas kernel of `backend` has to be interpreted here."""
    return jax.default_backend() != backend


def power_of_two(size: int, least: int, most: int) -> int:
    """The smallest power of two that holds `size`, within bounds that are powers of two themselves."""
    return min(most, max(least, 1 << max(0, size - 1).bit_length()))
