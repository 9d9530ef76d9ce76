"""Orbax v1 checkpoints, atomic, with the digests that Orbax itself does not check.

A pytree is stored as a flat dictionary of its leaves by path, so any structure (NNX states, Optax tuples) comes back
in the shape of the template it is loaded into. This module alone speaks to Orbax.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import CorruptError, MismatchError, MissingFileError
from uimjax.store import digest_array, read_manifest, write_manifest
from uimjax.store.base import make_folder

KEEP = 2  # newest steps kept


def _orbax() -> Any:
    """Loaded where it is needed: it takes half a second, and most scores keep nothing."""
    from orbax.checkpoint import v1

    return v1


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): jnp.asarray(leaf) for path, leaf in leaves}


def _digests(folder: Path, step: int) -> Path:
    return folder / f"digests-{step}.json"


def save(folder: Path, step: int, tree: Any, keep: int | None = KEEP) -> None:
    """Write one step; older ones beyond the newest `keep` are removed (None: none). Digests first, the commit last."""
    make_folder(folder)
    flat = _flat(tree)
    write_manifest(_digests(folder, step), {name: digest_array(leaf) for name, leaf in flat.items()})
    ocp = _orbax()
    policy: Any = ocp.training.preservation_policies.LatestN(keep)
    with ocp.training.Checkpointer(str(folder.absolute()), preservation_policy=policy) as checkpointer:
        checkpointer.save(step, flat, overwrite=True)
        kept = {c.step for c in checkpointer.checkpoints}
    for path in folder.glob("digests-*.json"):
        if int(path.stem.split("-")[1]) not in kept:
            path.unlink()


def latest(folder: Path) -> int | None:
    """The newest finished step, or None."""
    if not folder.is_dir():
        return None
    with _orbax().training.Checkpointer(str(folder.absolute())) as checkpointer:
        return None if checkpointer.latest is None else int(checkpointer.latest.step)


def has(folder: Path, step: int) -> bool:
    """Is that step finished and there?"""
    if not folder.is_dir():
        return False
    with _orbax().training.Checkpointer(str(folder.absolute())) as checkpointer:
        return step in {c.step for c in checkpointer.checkpoints}


def load(folder: Path, template: Any, step: int | None = None) -> tuple[int, Any]:
    """(step, tree in the template's structure), every array's digest checked.

    Raises:
        MissingFileError: no finished checkpoint. MismatchError: other leaves or shapes. CorruptError: changed bytes.
    """
    step = latest(folder) if step is None else step
    if step is None:
        raise MissingFileError(f"{folder} holds no finished checkpoint; run `uimjax train` first")
    wanted = read_manifest(_digests(folder, step))
    flat = _flat(template)
    if set(flat) != set(wanted):
        odd = sorted(set(flat) ^ set(wanted))[:4]
        raise MismatchError(
            f"{folder} holds another model: {odd} do not match. Load it with the model it was saved from."
        )
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    spec = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in flat.items()}
    with _orbax().training.Checkpointer(str(folder.absolute())) as checkpointer:
        try:
            found = checkpointer.load(step, spec)
        except (ValueError, OSError, LookupError) as error:
            raise CorruptError(f"checkpoint {step} in {folder} cannot be read: {error}") from error
    for name, leaf in found.items():
        if digest_array(np.asarray(leaf)) != wanted[name]:
            raise CorruptError(
                f"checkpoint {step} in {folder}: {name} is not what was saved. Train again from the start."
            )
    return step, jax.tree.unflatten(jax.tree.structure(template), [found[name] for name in flat])


def read_safetensors(file: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Tensors of one file by name, each read straight to the shards that its sharding names.

    Raises:
        CorruptError: the file is not what its header says.
    """
    ocp = _orbax()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    spec = {
        name: x if x.sharding is not None else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        for name, x in wanted.items()
    }
    context = ocp.Context()  # its options are fixed once it is entered
    context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
    with context:
        try:
            return ocp.load(str(file.absolute()), spec)
        except (ValueError, OSError, LookupError) as error:
            raise CorruptError(f"{file} cannot be read: {error}. Download it again.") from error
