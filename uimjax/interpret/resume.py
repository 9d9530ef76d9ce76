"""The sums of a pass over rows, kept in a folder, so that a pass that was stopped goes on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from uimjax import checkpoint, store
from uimjax.curvature import Kronecker
from uimjax.interpret import base
from uimjax.rows import Pass
from uimjax.taps import Sites

SAVE_SECONDS = 60.0  # between what is kept of a pass


class Kept:
    """One pass's sums: every minute, and at its end."""

    def __init__(self, folder: Path):
        self.folder, self.saved = folder, time.monotonic()

    def load(self, like: Any) -> tuple[int, Any]:
        if checkpoint.latest(self.folder) is None:
            return 0, None
        return checkpoint.load(self.folder, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))

    def save(self, done: int, total: Any, last: bool) -> None:
        if last or time.monotonic() - self.saved >= SAVE_SECONDS:
            checkpoint.save(self.folder, done, total, keep=1)
            self.saved = time.monotonic()


def passes(how: Pass, choice: Kronecker, found: Sites, params: Any, data: Any) -> Callable[..., Kept | None]:
    """`name -> where the pass of that name keeps its sums`, under a digest of everything they follow from: loss,
    parameters (or several checkpoints'), rows, the curvature's source, batch size and devices. Without a folder they
    are not kept."""
    if how.folder is None:
        return lambda *_: None
    devices = 1 if how.mesh is None else how.mesh.size
    loss = base.program_digest(found.program, found.constants, base.own_rules(found.program))
    causes = (loss, str(found.excluded), store.digest_tree(params), store.digest_tree(data), str(choice.source))
    place = how.folder / store.stage_key("curvature", *causes, choice.kind, how.batch_size, devices, jax.__version__)
    return lambda *names: Kept(place / "-".join(map(str, names)))
