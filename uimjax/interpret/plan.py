"""What a job will cost, said before it is begun: where its time goes, what it holds at most, what it leaves on disk.

On this machine the job's own program is compiled, and a short piece of the work is done and timed. For a chip that is
not at hand the products of its program are counted and set against the chip's published ceilings.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from uimjax import machine
from uimjax.errors import NoRoomError
from uimjax.room import gib

TRIAL_S = 2.0  # of work, once everything is compiled
SHARE = 0.2  # of a chip's ceiling that per-example gradients of language models reach (see `docs: plan`)


class Room(NamedTuple):
    """Bytes that are free; None: not known."""

    device: int | None
    host: int | None
    disk: int | None


class Plan(NamedTuple):
    """`seconds` of each part of the work, in order; bytes on one device and of this process at their most (on a CPU the
    second holds the first), and on disk at the end; `how` it was found out."""

    job: str
    seconds: dict[str, float]
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    room: Room
    how: dict[str, Any]
    cures: dict[str, str] = {}  # of what does not fit: the largest that does

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def check(self) -> "Plan":
        """Itself, where there is room.

        Raises:
            NoRoomError: there is not.
        """
        for told in self.cures.values():
            raise NoRoomError(told)
        wanted = (self.device_bytes, self.host_bytes, self.disk_bytes)
        for what, size, free in zip(("each device", "this process", "the disk"), wanted, self.room, strict=True):
            if free is not None and size > free:
                raise NoRoomError(f"{self.job} needs {gib(size)} on {what}, and {gib(free)} are free")
        return self

    def lines(self) -> list[str]:
        """For people."""
        held = zip(
            ("device", "host", "disk"), (self.device_bytes, self.host_bytes, self.disk_bytes), self.room, strict=True
        )
        longest = max(map(len, self.seconds))
        return [
            f"{self.job}: {duration(self.total)}",
            *(
                f"  {name:<{longest}}  {duration(s):>10}  {s / max(self.total, 1e-9):4.0%}"
                for name, s in self.seconds.items()
            ),
            *(
                f"  {what:<6} {gib(size)}" + (f" of {gib(free)} free" if free is not None else "")
                for what, size, free in held
            ),
            *(f"  {name}: {value}" for name, value in self.how.items()),
        ]

    def document(self) -> dict[str, Any]:
        """For machines."""
        return {**self._asdict(), "room": self.room._asdict(), "total": self.total}


def duration(seconds: float) -> str:
    """In the unit people would take."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2f} s"


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it gave), once it is there."""
    start = time.perf_counter()
    found = jax.block_until_ready(call())
    return time.perf_counter() - start, found


def steady(call: Callable[[], Any], budget_s: float = TRIAL_S, most: int = 20) -> tuple[float, int]:
    """(median seconds, of how many) of a call that is warm."""
    took: list[float] = []
    while len(took) < 2 or (sum(took) < budget_s and len(took) < most):
        took.append(timed(call)[0])
    return statistics.median(took), len(took)


class Watch:
    """What the job would hold: `job` does a part of it here, `probe` what only the plan does, `holds` is what it would
    keep that is not here, `passes` what it would take and give back. `most`: bytes at the worst moment."""

    def __init__(self):
        self.level = self.most = machine.resident()

    def job(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """(seconds, what it gave)."""
        before = self._begin()
        found = timed(call)
        self.passes(machine.most_resident() - before)
        self.level += machine.resident() - before
        return found

    def probe(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """(seconds, what it gave); what it takes for a moment counts, what it keeps does not."""
        before = self._begin()
        found = timed(call)
        self.passes(machine.most_resident() - before)
        return found

    def holds(self, size: float) -> None:
        self.level += int(size)
        self.passes(0)

    def passes(self, size: float) -> None:
        self.most = max(self.most, self.level + int(size))

    def _begin(self) -> int:
        machine.forget_peak()
        return machine.resident()


def at_ceiling(operations: float, chip: machine.Chip, dtype: Any) -> float:
    """Seconds that the operations take where a chip reaches its ceiling."""
    return operations / (chip.bfloat16 if jax.numpy.dtype(dtype) == jax.numpy.bfloat16 else chip.float32)
