"""The C library's allocator: let it keep what compiled programs free, instead of handing it back to the system."""

import ctypes
import time

_KEEP = {-8: 1, -1: 2**31 - 1, -3: 2**31 - 1}  # glibc's M_ARENA_MAX, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def keep_buffers() -> bool:
    """Call once, before JAX computes anything: on a CPU, each run of a compiled program then finds its memory where the
    last one left it. True where the C library is glibc and took it; elsewhere nothing happens.

    XLA allocates a program's temporary memory anew for every run, and glibc returns large blocks to the system at once,
    so that each run pays for touching fresh pages: two fifths of the time of small and middling networks (measured:
    `benchmarks/factor_cost.py`). The price: threads share one pool, so that compiling takes up to a fifth longer, and
    memory at its peak stays with the process. It is the whole process's setting, so a library should leave it alone;
    the commands that compute on an index and the benchmarks call it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all([mallopt(name, value) == 1 for name, value in _KEEP.items()])


def settle(took_s: float) -> None:
    """Call between runs of a compiled program that took so many seconds each, once their results are there: sleeps a
    hundredth of that, at most 2 ms; not at all where that would be shorter than a sleep can be.

    XLA on a CPU says that results are ready before the thread that ran the program has given its temporary memory back.
    A run that begins in that moment takes as much again, and the heap keeps it: the same job then took 0.9 or 1.4 GB.
    """
    if took_s >= 0.02:
        time.sleep(min(took_s / 100, 0.002))
