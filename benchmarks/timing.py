"""Medians of compiled programs, interleaved so that a noisy machine disturbs all of them alike; compile time apart.

Every program here runs as `uimjax index build` does, with freed buffers kept: the plain gradient it is measured against
gains by that as well.
"""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from uimjax import machine as memory
from uimjax.allocator import keep_buffers
from uimjax.compiler import compile_sooner

KEPT = keep_buffers()  # before anything computes
compile_sooner()


def compiled(fun: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """A program compiled ahead of time, and the seconds that took."""
    start = time.perf_counter()
    program = jax.jit(fun).lower(*args).compile()
    return program, round(time.perf_counter() - start, 3)


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Warm every call up, then time them in turn: {name: median seconds}."""
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


class Peak:
    """The most memory taken from here on, MiB above what is held: what was freed before is handed back first. Linux
    alone can start anew; elsewhere it is the rise of the most since the process began."""

    def __init__(self):
        if sys.platform == "linux":
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        self.held = most_resident()

    def mib(self) -> float:
        return most_resident() - self.held


def most_resident() -> float:
    """Of this process alone, MiB."""
    return memory.most_resident() / 2**20


def machine() -> dict[str, str]:
    return {
        "device": jax.devices()[0].device_kind,
        "buffers": "kept" if KEPT else "not kept",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def arguments(doc: str, only: Sequence[str] = (), peers: bool = False, folder: str = "") -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no large network")
    if only:
        parser.add_argument("--only", nargs="+", choices=only, help="these networks alone")
    if peers:
        parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has torch and the peers")
    if folder:
        parser.add_argument("--folder", default=folder, help=f"where what is trained is kept (default {folder})")
    return parser.parse_args()


def report(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        json.dump(result, sys.stdout, indent=1)
        print()
    else:
        for key, value in result.items():
            print(f"{key:32} {value}")
