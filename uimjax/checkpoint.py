"""Orbax v1 checkpoints, atomic, with the digests that Orbax itself does not check.

A pytree is stored as a flat dictionary of its leaves by path, so any structure (NNX states, Optax tuples) comes back
in the shape of the template it is loaded into. This module alone speaks to Orbax.
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import CorruptError, MismatchError, MissingFileError, ShapeError
from uimjax.store import digest_array, read_json, read_manifest, write_json, write_manifest
from uimjax.store.base import make_folder

KEEP = 2  # newest steps kept
MARK = "run.json"  # whose checkpoints they are


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


def finished(folder: Path) -> list[int]:
    """Steps that are finished and there, in order."""
    if not folder.is_dir():
        return []
    with _orbax().training.Checkpointer(str(folder.absolute())) as checkpointer:
        return sorted(int(c.step) for c in checkpointer.checkpoints)


def claim(folder: Path, key: str) -> None:
    """A folder holds the checkpoints of one run: the first that claims it leaves its key there.

    Raises:
        MismatchError: another run did.
    """
    mark = make_folder(folder) / MARK
    if not mark.exists():
        write_json(mark, key)
    elif read_json(mark) != key:
        raise MismatchError(
            f"{folder} holds checkpoints of another run (loss, recipe, rows, parameters or JAX); choose another"
        )


def latest(folder: Path) -> int | None:
    """The newest finished step, or None."""
    return max(finished(folder), default=None)


def has(folder: Path, step: int) -> bool:
    """Is that step finished and there?"""
    return step in finished(folder)


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


def steps_in(folder: Path) -> list[int]:
    """Steps of checkpoints in a folder, as a checkpointer keeps them; none for a checkpoint itself.

    Raises:
        MissingFileError: it is neither.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder; one of Orbax checkpoints was wanted")
    found = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())
    if not found and not any((folder / mark).exists() for mark in ("_CHECKPOINT_METADATA", "_METADATA")):
        raise MissingFileError(f"{folder} holds no Orbax checkpoint and no steps of a run")
    return found


def read_tree(
    folder: Path, template: Any, step: int | None = None, place: Callable[[Any], Any] | None = None, under: str = ""
) -> Any:
    """Arrays for a template from any Orbax checkpoint, or from a step (the newest) of a run's, by the names of its
    leaves: whatever stands above them there (`params`, a whole training state) is found. `place`: of an array's shape,
    where it is to lie. `under`: what stands directly above the names ("nu": Adam's second moments of them). Nothing
    else of the checkpoint is read.

    Raises:
        MissingFileError, CorruptError. MismatchError: leaves are missing, or stand in several places. ShapeError.
    """
    ocp, steps = _orbax(), steps_in(folder)
    if step is not None and step not in steps:
        raise MissingFileError(f"{folder} has no step {step}; its steps are {', '.join(map(str, steps)) or 'none'}")
    root = _step_folder(folder, steps[-1] if step is None else step) if steps else folder.absolute()
    try:
        held = ocp.metadata(root).metadata
    except (ValueError, OSError, LookupError) as error:
        raise CorruptError(f"{root} cannot be read as an Orbax checkpoint: {error}") from error
    paths = {_named(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(held)[0]}
    leaves = jax.tree_util.tree_flatten_with_path(template)[0]
    wanted = [_named(path) for path, _ in leaves]
    above = _above(root, wanted, paths, under)
    spec = {}
    for name, (_, leaf) in zip(wanted, leaves, strict=True):
        if tuple(paths[above + name].shape) != tuple(leaf.shape):
            raise ShapeError(f"{root}: {name} is {list(paths[above + name].shape)}, the model's {list(leaf.shape)}")
        at = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if place is None else place(leaf.shape)
        spec[above + name] = jax.ShapeDtypeStruct(leaf.shape, paths[above + name].dtype, sharding=at)  # as it is stored
    asked = jax.tree_util.tree_map_with_path(lambda path, _: spec.get(_named(path), ocp.PLACEHOLDER), held)
    try:
        found = ocp.load(root, asked)
    except (ValueError, OSError, LookupError) as error:
        raise CorruptError(f"{root} cannot be read: {error}") from error
    arrays = {_named(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}
    if steps and (kept := _digests(folder, int(root.name))).exists():
        _check_digests(root, {above + name: arrays[above + name] for name in wanted}, read_manifest(kept))
    made = [arrays[above + name].astype(leaf.dtype) for name, (_, leaf) in zip(wanted, leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(template), made)


def _step_folder(folder: Path, step: int) -> Path:
    """However many zeros stand before its number."""
    return next(p for p in folder.absolute().iterdir() if p.name.isdigit() and int(p.name) == step)


def _named(path: Any) -> str:
    """Of a leaf, the same for a state, a dictionary of it, and our own flat ones."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _above(root: Path, wanted: list[str], held: Mapping[str, Any], under: str) -> str:
    """What stands before the wanted names in a checkpoint. Raises MismatchError."""
    tails = [name.removesuffix(wanted[0]) for name in held if name.endswith(wanted[0])]
    fits = [
        above for above in tails if (not above or above.endswith(".")) and all(above + name in held for name in wanted)
    ]
    if under:
        fits = [above for above in fits if f".{above}".endswith(f".{under}.")]
    plain = [above for above in fits if above in ("", "params.")]
    fits = plain or [above for above in fits if above.endswith(".params.")] or fits
    if len(fits) == 1:
        _check_rest(root, wanted, held, fits[0])
        return fits[0]
    if fits:
        raise MismatchError(f"{root} holds such parameters several times, under {', '.join(map(repr, fits))}")
    if under and all(any(other.endswith(name) for other in held) for name in wanted):
        raise MismatchError(f"{root} holds nothing of these parameters under {under!r}")
    lacking = next((name for name in wanted if not any(other.endswith(name) for other in held)), wanted[0])
    near = difflib.get_close_matches(lacking, held, n=1, cutoff=0.4)
    raise MismatchError(
        f"{root} holds another model: it has no {lacking}{f' (it has {near[0]})' if near else ''}. Load it with the"
        " model that it was saved from."
    )


def _check_rest(root: Path, wanted: list[str], held: Mapping[str, Any], above: str) -> None:
    """Beside the wanted ones stand no numbers that belong to the same model.

    Raises:
        MismatchError: it has more parameters, so it is another model.
    """
    tops = {name.split(".")[0] for name in wanted}
    mine = {name.removeprefix(above): leaf for name, leaf in held.items() if name.startswith(above)}
    more = [name for name, leaf in mine.items()
            if name not in wanted and (above or name.split(".")[0] in tops) and jnp.issubdtype(leaf.dtype, jnp.floating)]  # fmt: skip  # noqa: E501
    if more:
        raise MismatchError(
            f"{root} holds another model: it has {len(more)} arrays more than this one, first {more[0]}. Load it with "
            "the model that it was saved from; of a model with state beside its parameters save nnx.state(model, "
            "nnx.Param)."
        )


def _check_digests(root: Path, arrays: Mapping[str, Any], kept: Mapping[str, str]) -> None:
    plain = {name.removesuffix(".value"): digest for name, digest in kept.items()}
    for name, leaf in arrays.items():
        if digest_array(np.asarray(leaf)) != plain[name]:
            raise CorruptError(f"{root}: {name} is not what was saved. Train again from the start.")


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
