"""What a machine holds: memory and disk at hand, what this process takes of it; and chips as published."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from uimjax.errors import UnknownNameError


class Chip(NamedTuple):
    """Ceilings of one device: multiply-adds count twice. `bfloat16` and `float32` operations a second (float32 products
    as JAX takes them unless told otherwise: TF32, on TPUs bfloat16), `memory` in bytes."""

    bfloat16: float
    float32: float
    memory: float


# Dense, without sparsity: NVIDIA's data sheets, Google Cloud's TPU system architecture pages.
CHIPS = {
    "a100-40": Chip(312e12, 156e12, 40e9),
    "a100-80": Chip(312e12, 156e12, 80e9),
    "h100": Chip(989e12, 494e12, 80e9),
    "h200": Chip(989e12, 494e12, 141e9),
    "b200": Chip(2250e12, 1100e12, 180e9),
    "tpu-v4": Chip(275e12, 275e12, 32e9),
    "tpu-v5e": Chip(197e12, 197e12, 16e9),
    "tpu-v5p": Chip(459e12, 459e12, 95e9),
    "tpu-v6e": Chip(918e12, 918e12, 32e9),
}


def chip(name: str) -> Chip:
    """Raises UnknownNameError, with the nearest name."""
    if name not in CHIPS:
        raise UnknownNameError("chip", name, CHIPS)
    return CHIPS[name]


def device_memory() -> int:
    """Bytes that the first device still has; on a CPU, the host's."""
    device = jax.local_devices()[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    return host_memory() if not stats else int(stats["bytes_limit"] - stats["bytes_in_use"])


def host_memory() -> int:
    """Bytes that this process may still take: what the system has left, or its container."""
    free = _meminfo() or 2**63 - 1
    try:  # cgroup v2
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        kept = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return free if most == "max" else min(free, int(most) - used + int(kept.get("inactive_file", 0)))
    except (OSError, ValueError):
        return free


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def disk(folder: str | Path) -> int:
    """Bytes free where a folder is, or will be."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


# ---------------------------------------------------------------- what this process takes


def resident() -> int:
    """Bytes of memory this process holds now (0 where the system does not say)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def most_resident() -> int:
    """The most it held, since `forget_peak` (on Linux) or since it began."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    except OSError:
        import resource  # not on every system

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10


def forget_peak() -> None:
    """Let `most_resident` count from now on, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def nbytes(tree: Any) -> int:
    """Of all arrays of a pytree."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
