"""Does a compiled program fit? Asked of the compiler before anything runs; what runs then is compiled already."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from uimjax import machine
from uimjax.errors import NoRoomError


class Need(NamedTuple):
    """Of one run of a compiled program: bytes of memory on each device (inputs, outputs and what is in between)."""

    bytes: int


_KNOWN: weakref.WeakKeyDictionary[Any, dict[Any, Need]] = weakref.WeakKeyDictionary()


def need(program: Any, *args: Any) -> Need:
    """Of a jitted program and its arguments (arrays, or shapes); a run with them does not compile again."""
    held = program.lower(*args).compile().memory_analysis()
    if held is None:  # a backend that does not say
        return Need(0)
    sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes", "generated_code_size_in_bytes")
    return Need(sum(int(getattr(held, name)) for name in sizes) - int(held.alias_size_in_bytes))


def _remembered(program: Any, args: Sequence[Any]) -> Need:
    """As `need`, which compiles at each call: a program that is asked about again with arguments like those of before
    (a training of other rows, a fit that is read) has the same."""
    leaves, structure = jax.tree.flatten(args)
    alike = structure, tuple((jax.typeof(x), getattr(x, "sharding", None)) for x in leaves)
    known = _KNOWN.setdefault(program, {})
    if alike not in known:
        known[alike] = need(program, *args)
    return known[alike]


def check(made: Callable[[int], tuple[Any, ...]], size: int, what: str, step: int = 1) -> Need:
    """Refuse a run that the device has no room for. `made(size)`: the program and its arguments at a size (a batch, so
    many models together), a multiple of `step`.

    Raises:
        NoRoomError: it does not fit; the largest size that does is named, found by compiling for it.
    """
    program, *given = made(size)
    wanted, free = _remembered(program, given), machine.device_memory() + there(given)
    if wanted.bytes <= free:
        return wanted
    low, high = 0, size // step  # in steps: low fits (or is nothing), high does not
    while high - low > max(1, low // 8):  # within an eighth: every look is a compilation
        middle = (low + high) // 2
        low, high = (middle, high) if need(*made(middle * step)).bytes <= free else (low, middle)
    cure = f"At most {low * step} fit." if low else f"Not even {step} fit: take a smaller model, or more devices."
    raise NoRoomError(f"{what} of {size} needs {gib(wanted.bytes)} on each device, and {gib(free)} are free. {cure}")


def there(tree: Any) -> int:
    """Bytes of a pytree that the first device holds already: they are counted as taken, and in a program's need."""
    if jax.default_backend() == "cpu":
        return sum(x.nbytes for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
    device = jax.local_devices()[0]
    shards = [s for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) for s in x.addressable_shards]
    return sum(s.data.nbytes for s in shards if s.device == device)


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
