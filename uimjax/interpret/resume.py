"""The sums of a pass over rows, kept in a folder, so that a pass that was stopped goes on."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from uimjax import checkpoint, curvature, programs, store
from uimjax.curvature.source import Gradients
from uimjax.mesh import replicated
from uimjax.rows import Pass

SAVE_SECONDS = 60.0  # between what is kept of a pass


class Kept:
    """One pass's sums: every minute, and at its end."""

    def __init__(self, folder: Path, mesh: Any):
        self.folder, self.mesh, self.saved = folder, mesh, time.monotonic()

    def load(self, like: Any) -> tuple[int, Any]:
        if checkpoint.latest(self.folder) is None:
            return 0, None
        done, total = checkpoint.load(self.folder, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))
        return done, total if self.mesh is None else jax.device_put(total, replicated(self.mesh))

    def save(self, done: int, total: Any, last: bool) -> None:
        if last or time.monotonic() - self.saved >= SAVE_SECONDS:
            checkpoint.save(self.folder, done, total, keep=1)
            self.saved = time.monotonic()


def passes(
    how: Pass, choice: curvature.Kronecker, made: Sequence[Gradients], params: Any, data: Any
) -> Callable[..., Kept | None]:
    """`(name, ..., bases) -> where that pass keeps its sums`, under a digest of everything they follow from: the
    programs whose gradients they are of (`made`, of one checkpoint or several), parameters, rows, source, batch size
    and devices, and the bases they are rotated into. Without a folder they are not kept."""
    if how.folder is None:
        return lambda *_: None
    devices = 1 if how.mesh is None else how.mesh.size
    found = [its.laid.sites for its in made]
    losses = [programs.digest(its.program, its.constants, programs.own_rules(its.program)) for its in found]
    causes = (losses, str(found[0].excluded), store.digest_tree(params), store.digest_tree(data), str(choice.source))
    place = Path(how.folder) / store.stage_key("curvature", *causes, how.batch_size, devices, jax.__version__)

    def kept(*names: Any) -> Kept:
        *name, bases = names
        return Kept(place / "-".join(map(str, [*name, store.digest_tree(bases)])), how.mesh)

    return kept
