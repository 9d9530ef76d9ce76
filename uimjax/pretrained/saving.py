"""`save`: parameters back to the folder format they were loaded from, for use elsewhere."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from uimjax.errors import MismatchError, OutputError, UsageError
from uimjax.pretrained import adapters
from uimjax.pretrained.folder import CONFIG, INDEX, WEIGHTS, has_weights, tensors
from uimjax.pretrained.loading import Pretrained, canonical, wanted
from uimjax.store import write_json
from uimjax.store.base import atomic, intended, make_folder

MOST = 4 << 30  # bytes a file
BESIDE = ("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.jinja",
          "generation_config.json", "preprocessor_config.json", "*.model")  # fmt: skip


def save(model: Pretrained, folder: str | Path, params: Any = None, *, most: int = MOST) -> Path:
    """Write `params` (default: the model's own) as safetensors of at most `most` bytes a file, with config and
    tokenizer beside them: `transformers` and `load` read it. Tensors have the parameters' dtype. Of a model with an
    adapter that alone is written, as peft reads it.

    Raises:
        OutputError: the folder cannot be written, or holds another checkpoint. MismatchError: parameters of another
        model. UsageError: they lie on devices of several processes.
    """
    root = Path(folder)
    params = model.params if params is None else params
    _check(model, params)
    held = [path.name for path in root.glob("*") if intended(path.name) is None] if root.is_dir() else []
    if model.adapter is not None:
        return _adapter(root, model, params, held)
    if CONFIG in held or any(name.endswith(".safetensors") for name in held):
        raise OutputError(f"{root} holds a checkpoint already; choose an empty or a new folder")
    make_folder(root)
    names, total = _files(root, model, params, most)
    if len(set(names.values())) > 1:
        write_json(root / INDEX, {"metadata": {"total_size": total}, "weight_map": names})
    dtype = str(np.dtype(max(jax.tree.leaves(params), key=lambda x: x.size).dtype))
    kept = {key: value for key, value in model.config.items() if key not in ("torch_dtype", "dtype")}
    beside = [path for pattern in BESIDE for path in model.folder.glob(pattern) if path.is_file()]
    for path in beside:
        with atomic(root / path.name) as temporary:
            shutil.copyfile(path, temporary)
    with atomic(root / CONFIG) as temporary:  # last: a folder without it is no checkpoint
        temporary.write_text(json.dumps(kept | {"dtype": dtype}, indent=2) + "\n")
    return root


def _adapter(root: Path, model: Pretrained, params: Any, held: list[str]) -> Path:
    if adapters.CONFIG in held or adapters.WEIGHTS in held:
        raise OutputError(f"{root} holds an adapter already; choose an empty or a new folder")
    make_folder(root)
    names = [name for name in wanted(model.family, model.choice) if adapters.is_adapters(name)]
    with atomic(root / adapters.WEIGHTS) as temporary:
        save_file(dict(_tensors(model, params, names)), temporary, {"format": "pt"})
    write_json(root / adapters.CONFIG, dict(model.adapter or {}))
    return root


def _check(model: Pretrained, params: Any) -> None:
    if not all(x.is_fully_addressable for x in jax.tree.leaves(params) if isinstance(x, jax.Array)):
        raise UsageError(
            "these parameters lie on devices of several processes; gather them first (jax.experimental.multihost_utils."
            "process_allgather) and save in one process"
        )
    mine, theirs = (jax.tree.map(lambda x: tuple(x.shape), its) for its in (model.params, params))
    if jax.tree.structure(model.params) != jax.tree.structure(params) or mine != theirs:
        raise MismatchError(f"these parameters are not of the model in {model.folder}")


def _files(root: Path, model: Pretrained, params: Any, most: int) -> tuple[dict[str, str], int]:
    """(the file of each tensor, bytes of all); a file is written when the next tensor would make it too large."""
    sizes = _sizes(model, params)
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    names = {}
    for k, group in enumerate(groups):
        file = WEIGHTS if len(groups) == 1 else f"model-{k + 1:05d}-of-{len(groups):05d}.safetensors"
        beside = _no_parameters(model) if k == 0 else {}
        with atomic(root / file) as temporary:
            try:
                save_file(dict(_tensors(model, params, group)) | beside, temporary, {"format": "pt"})
            except SafetensorError as error:
                raise OutputError(f"cannot write {root / file}: {error}") from error
        names |= dict.fromkeys([*group, *beside], file)
    return names, sum(sizes.values())


def _no_parameters(model: Pretrained) -> dict[str, np.ndarray]:
    """What came with it and is no parameter (counters, masks), as it was."""
    if not has_weights(model.folder):
        return {}
    made, found, out = wanted(model.family, model.choice), tensors(model.folder), {}
    for name, new in canonical(model.family, made, found).items():
        if model.family.is_ignored(new) and new not in made:
            with safe_open(found[name].file, framework="numpy") as held:
                out[new] = held.get_tensor(name)
    return out


def _state(model: Pretrained, params: Any) -> dict[Any, Any]:
    return dict([*nnx.to_flat_state(params), *nnx.to_flat_state(model.state)])


def _sizes(model: Pretrained, params: Any) -> dict[str, int]:
    state, out = _state(model, params), {}
    for name, parts in wanted(model.family, model.choice).items():
        shapes = [state[part.path].shape[part.layer is not None :] for part in parts]
        out[name] = sum(math.prod(shape) for shape in shapes) * state[parts[0].path].dtype.itemsize
    return out


def _tensors(model: Pretrained, params: Any, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    state, made = _state(model, params), wanted(model.family, model.choice)
    for name in names:
        leaves = [state[p.path][...] if p.layer is None else state[p.path][...][p.layer] for p in made[name]]
        yield name, np.ascontiguousarray(np.asarray(made[name][0].leaf.put(leaves)))
