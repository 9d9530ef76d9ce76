"""Where a training run's curves go: JSON lines and TensorBoard (without TensorFlow)."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from uimjax.errors import OutputError
from uimjax.store.base import make_folder


class Sink(Protocol):
    """One method: scalars at a step. Writing a step again (after a resume) must leave one record of it."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...


class JsonLines:
    """`metrics.jsonl`: one object a step. Steps from `resume` on are cut off, so a resumed run has no doubles."""

    def __init__(self, path: Path, resume: int = 0):
        make_folder(path.parent)
        self._path = path
        kept = []
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)  # the last may be torn by a crash
            whole = [line.strip() for line in lines if line.endswith("\n")]
            kept = [line for line in whole if line and json.loads(line)["step"] < resume]
        path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step} | {k: float(v) for k, v in scalars.items()}) + "\n")
        except OSError as error:
            raise OutputError(f"cannot append to {self._path}: {error.strerror}") from error


class TensorBoard:
    """An event file that `tensorboard --logdir` reads; a resumed run opens a further file, which TensorBoard merges."""

    def __init__(self, folder: Path):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(make_folder(folder)))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  # generated
        from tensorboard.plugins.scalar import summary_v2

        for name, value in scalars.items():
            event = Event(summary=summary_v2.scalar_pb(name, float(value)), step=step, wall_time=time.time())
            self._writer.add_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
