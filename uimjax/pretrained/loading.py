"""`load`: a Hugging Face folder to a Flax NNX model on a mesh, each tensor read straight to its shards."""

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers
from flax import nnx

from uimjax import checkpoint as orbax
from uimjax.errors import MismatchError, ShapeError, UnknownNameError, UnsupportedModelError, UsageError
from uimjax.mesh import split
from uimjax.models.blocks import Shape
from uimjax.pretrained import decoders, encoders
from uimjax.pretrained.adapters import adapted, adapter_leaves, read_adapter
from uimjax.pretrained.base import OWN, Config, Family, Leaf, layered
from uimjax.pretrained.folder import CONFIG, Tensor, read_config, tensors
from uimjax.pretrained.words import read_tokenizer
from uimjax.task import Task

FAMILIES = (*decoders.FAMILIES, *encoders.FAMILIES)
Place = tuple[Any, ...]  # of a parameter in an NNX state


@dataclass(frozen=True)
class Pretrained:
    """A model with what it came with: its `task` (loss, outputs, features) and `params`; `state` that is no parameter
    (running means); `choice`, what its config came to; the `tokenizer`, None where the folder has none; the config of
    the `adapter`, whose parameters alone are then attributed."""

    task: Task
    params: Any
    state: Any
    choice: Any
    family: Family
    config: Mapping[str, Any]
    folder: Path
    tokenizer: tokenizers.Tokenizer | None = None
    adapter: Mapping[str, Any] | None = None

    def module(self, params: Any = None) -> nnx.Module:
        """The Flax NNX module itself, with these parameters (default: its own)."""
        graph = _abstract(self.family, self.choice)[0]
        return nnx.merge(graph, self.params if params is None else params, self.state)


def load(
    folder: str | Path, *, mesh: Any = None, dtype: Any = None, scanned: bool = False, remat: bool = False,
    adapter: str | Path | None = None, checkpoint: str | Path | None = None, step: int | None = None,
) -> Pretrained:  # fmt: skip
    """A checkpoint folder as `save_pretrained` writes it (config.json, safetensors, tokenizer.json).

    `dtype` of the parameters: that of the files by default, float32 for those in float16 (its gradients overflow).
    With a `mesh`, parameters are split over its model axis (`mesh.shard_params`), each device reading its own part.
    `scanned`: layers are stacked, and compiled once; `remat`: a layer's activations are computed again on the way back.
    `adapter`: the folder of a LoRA adapter (peft) on top, whose parameters are then the ones that are attributed.
    `checkpoint`: an Orbax checkpoint, or the `step` (newest) of a run, that the parameters are read from; weights of
    the folder are not looked at then.

    Raises:
        MissingFileError, CorruptError: a file is not there, cut short or damaged. UnsupportedModelError: an unknown
        family, a choice in its config that is not built here, pickled or quantised weights. MismatchError: tensors that
        nobody maps or that are missing, a tokenizer of more words than the model. ShapeError: their shapes do not fit.
    """
    root = Path(folder)
    values, family, choice = _chosen(root, scanned, remat)
    if step is not None and checkpoint is None:
        raise UsageError(f"step {step} of which run? Name its folder: checkpoint=DIR")
    if checkpoint is not None:
        return _restored(root, Path(checkpoint), step, mesh, dtype, scanned, remat, adapter)
    own, low = (None, {}) if adapter is None else read_adapter(Path(adapter))
    if own is not None:
        choice = adapted(family, choice, own, str(adapter))
    graph, *abstract = _abstract(family, choice)
    made = wanted(family, choice)
    held = _matched(family, choice, made, tensors(root) | low, root)
    tokenizer = _tokenizer(family, choice, root)
    leaves = {path: leaf for its in abstract for path, leaf in nnx.to_flat_state(its)}
    found = _read(leaves, made, held, mesh, dtype)
    params, state = (
        nnx.from_flat_state([(path, leaf.replace(found[path])) for path, leaf in nnx.to_flat_state(its)])
        for its in abstract
    )
    task = family.task(graph, state, choice)
    if own is not None:
        task = dataclasses.replace(task, include=("*/lora_*",))
    return Pretrained(task, params, state, choice, family, values, root, tokenizer, own)


def initial(
    folder: str | Path,
    seed: int = 0,
    *,
    mesh: Any = None,
    dtype: Any = None,
    scanned: bool = False,
    remat: bool = False,
) -> Pretrained:
    """A model of a folder's config.json with random weights, to be trained from scratch: no weights need be there.

    `dtype` float32 by default; the other choices as `load`'s. Raises: as `load`, what concerns config and tokenizer.
    """
    root = Path(folder)
    values, family, choice = _chosen(root, scanned, remat)
    tokenizer, graph = _tokenizer(family, choice, root), _abstract(family, choice)[0]

    def drawn() -> Any:
        its = nnx.split(family.make(choice, nnx.Rngs(seed)), nnx.Param, ...)[1:]
        return jax.tree.map(lambda x: x if dtype is None else x.astype(dtype), its)

    if mesh is None:  # array by array: as one program, an H100 compiled 16 layers for 170 s
        params, state = drawn()
    else:  # each device draws its own part
        places = jax.tree.map(lambda x: split(mesh, x.shape), jax.eval_shape(drawn))
        params, state = jax.jit(drawn, out_shardings=places)()
    return Pretrained(family.task(graph, state, choice), params, state, choice, family, values, root, tokenizer)


def outline(folder: str | Path, *, dtype: Any = None, scanned: bool = False, remat: bool = False) -> Pretrained:
    """A model of a folder's config.json whose parameters are shapes alone, for plans: nothing else need be there.

    `dtype` by default what the config names, else float32. Raises: as `load`, what concerns the config.
    """
    root = Path(folder)
    values, family, choice = _chosen(root, scanned, remat)
    graph, params, state = _abstract(family, choice)
    named = jnp.dtype(dtype or values.get("dtype") or values.get("torch_dtype") or jnp.float32)
    named = jnp.dtype(jnp.float32) if named == jnp.float16 and dtype is None else named  # as `load` reads them
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, named), params)
    return Pretrained(family.task(graph, state, choice), params, state, choice, family, values, root)


def _restored(root, kept, step, mesh, dtype, scanned, remat, adapter) -> Pretrained:
    """With the parameters of an Orbax checkpoint."""
    if adapter is not None:
        raise UsageError("adapter and checkpoint are both given, and only one can be read here; leave one out")
    made = outline(root, dtype=dtype, scanned=scanned, remat=remat)
    if jax.tree.leaves(made.state):
        raise UnsupportedModelError(f"{root} is a {made.family.types[0]}, whose running means are no parameters; {OWN}")
    place = None if mesh is None else functools.partial(split, mesh)
    found = orbax.read_tree(kept, made.params, step, place)
    return dataclasses.replace(made, params=found, tokenizer=_tokenizer(made.family, made.choice, root))


def _chosen(root: Path, scanned: bool, remat: bool) -> tuple[dict[str, Any], Family, Any]:
    """(the config, its family, what it comes to)."""
    values = read_config(root)
    family = family_of(values, root / CONFIG)
    choice = _choice(family, Config(values, str(root / CONFIG)))
    return values, family, _with(choice, scanned, remat) if scanned or remat else choice


def family_of(values: Mapping[str, Any], where: Path) -> Family:
    """Raises UnsupportedModelError: no such family (the nearest is named), or another head on it."""
    kind, names = values["model_type"], values.get("architectures") or ()
    known = {name: family for family in FAMILIES for name in family.types}
    if kind not in known:
        raise UnsupportedModelError(f"{where}: {UnknownNameError('model_type', kind, known)} {OWN}")
    if names and not set(names) & set(known[kind].architectures):
        raise UnsupportedModelError(
            f"{where}: the architecture is {', '.join(map(str, names))}; "
            f"{', '.join(known[kind].architectures)} are built here. {OWN}"
        )
    return known[kind]


def _choice(family: Family, config: Config) -> Any:
    """Raises UnsupportedModelError: a value is not of the kind it should be, or choices do not fit each other."""
    try:
        return family.read(config)
    except (TypeError, ValueError, LookupError, UsageError) as error:
        raise UnsupportedModelError(f"{config.where} cannot be read as that of a {config.kind}: {error}") from error


def _tokenizer(family: Family, choice: Any, root: Path) -> tokenizers.Tokenizer | None:
    layers = layered(choice)
    if not family.words or layers is None:
        return None
    return read_tokenizer(root, layers.vocabulary, older="gpt2" in family.types)


def _with(choice: Any, scanned: bool, remat: bool) -> Any:
    layers = layered(choice)
    if layers is None:
        raise UnsupportedModelError("scanned layers and rematerialisation are of transformers; this is none")
    layers = dataclasses.replace(layers, scanned=scanned, remat=remat)
    return layers if isinstance(choice, Shape) else dataclasses.replace(choice, layer=layers)


@functools.lru_cache(maxsize=16)
def _abstract(family: Family, choice: Any) -> tuple[Any, Any, Any]:
    """(graph, parameters as shapes, state that is no parameter) of a module that is never filled with numbers."""
    module = nnx.eval_shape(lambda: family.make(choice, nnx.Rngs(0)))
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return graph, params, rest


# ---------------------------------------------------------------- which tensor is which parameter


@dataclass(frozen=True)
class Part:
    """One of our parameters, or one layer of it (`layer` of a stack), by the rule that takes it from their tensor."""

    path: Place
    leaf: Leaf
    layer: int | None = None


def wanted(family: Family, choice: Any) -> dict[str, list[Part]]:
    """Their tensors by name, each with the parts of our parameters that it holds, in order; every one is named."""
    _, *abstract = _abstract(family, choice)
    paths = {path for its in abstract for path, _ in nnx.to_flat_state(its)}
    made: dict[str, list[Part]] = {}
    layers = layered(choice)
    for leaf in (*family.leaves(choice), *adapter_leaves(family, choice)):
        for k in range(layers.layers) if layers and "{i}" in leaf.ours else (None,):
            stacked = k is not None and layers is not None and layers.scanned
            ours = leaf.ours.replace("{i}/", "" if stacked else f"{k}/")
            path = tuple(int(step) if step.isdigit() else step for step in ours.split("/"))
            assert path in paths, f"the table of {family.types[0]} names {ours}, and the model has no such parameter"
            made.setdefault(leaf.theirs.replace("{i}", str(k)), []).append(Part(path, leaf, k if stacked else None))
    for parts in made.values():
        parts.sort(key=lambda part: part.leaf.part)
    named = {part.path for parts in made.values() for part in parts}
    assert named == paths, f"the table of {family.types[0]} lacks {sorted(map(str, paths - named))}"
    return made


def canonical(family: Family, made: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """What each name in a file is called in the table: older endings, and bare models without their prefix."""
    names = list(names)
    bare = family.prefix and not any(name.startswith(family.prefix) for name in names)
    out = {}
    for name in names:
        new = next((name.removesuffix(old) + now for old, now in family.renamed if name.endswith(old)), name)
        whole = family.prefix + new
        out[name] = whole if bare and (whole in made or family.is_ignored(whole)) else new
    return out


def _matched(
    family: Family, choice: Any, made: dict[str, list[Part]], held: dict[str, Tensor], root: Path
) -> dict[str, Tensor]:
    """The tensors under the names of the table, all there, none left over, and twice the same where they are tied.

    Raises:
        MismatchError: missing or unmapped tensors. UnsupportedModelError: a dtype that is no plain float.
    """
    own = {new: held[name] for name, new in canonical(family, made, held).items()}
    lacking = sorted(set(made) - set(own))
    if lacking:
        near = difflib.get_close_matches(lacking[0], set(own) - set(made), n=1)
        raise MismatchError(
            f"{root} lacks {len(lacking)} tensors that its config promises, first {lacking[0]}"
            + (f" (it has {near[0]})" if near else "")
            + ". Is the config that of these weights?"
        )
    tied = family.tied(choice)
    over = sorted(name for name in set(own) - set(made) - set(tied) if not family.is_ignored(name))
    if over:
        raise MismatchError(
            f"{root} holds {len(over)} tensors that {family.types[0]} as built here has no place for, first {over[0]}. "
            f"Scores of a model without them would be of another model. {OWN}"
        )
    odd = next((name for name in made if own[name].dtype not in _READ), None)
    if odd is not None:
        raise UnsupportedModelError(f"{root}: {odd} is of {own[odd].dtype}; {', '.join(_READ)} were wanted")
    for name, same in tied.items():
        if name in own and not _alike(own[name], own[same]):
            raise MismatchError(
                f"{root}: its config ties {name} to {same}, and the two hold other numbers. Set tie_word_embeddings to "
                "false in the config, if the model was trained so."
            )
    return {name: own[name] for name in made}


def _alike(one: Tensor, two: Tensor) -> bool:
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    a, b = (orbax.read_safetensors(its.file, {its.stored: _reading(its, None)})[its.stored] for its in (one, two))
    return bool(jnp.array_equal(a, b))


# ---------------------------------------------------------------- reading

_READ = {"F64": jnp.float64, "F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float16}


def _read(leaves: dict[Place, Any], made: dict[str, list[Part]], held: dict[str, Tensor], mesh: Any, dtype: Any) -> Any:
    """Every array by path, a file at a time: no more than one file is held beside them."""
    found: dict[Place, Any] = {}
    layers: dict[Place, dict[int, Any]] = {}
    _check_shapes(held, made, leaves)
    for file in sorted({its.file for its in held.values()}):
        names = {name: its for name, its in held.items() if its.file == file}
        read = orbax.read_safetensors(file, {its.stored: _reading(its, mesh) for its in names.values()})
        for name, its in names.items():
            x = read.pop(its.stored)
            for part in made[name]:
                value = _taken(x, part.leaf, _dtype(its.dtype, dtype), mesh)
                if part.layer is None:
                    found[part.path] = value
                else:
                    layers.setdefault(part.path, {})[part.layer] = value
                    if len(layers[part.path]) == leaves[part.path].shape[0]:
                        stack = layers.pop(part.path)
                        found[part.path] = _stack([stack[k] for k in range(len(stack))], mesh)
    return found


def _check_shapes(held: dict[str, Tensor], made: dict[str, list[Part]], leaves: Any) -> None:
    """Raises ShapeError: before any tensor is read."""
    for name, its in held.items():
        ours = [jax.ShapeDtypeStruct(leaves[p.path].shape[p.layer is not None :], jnp.float32) for p in made[name]]
        want = jax.eval_shape(made[name][0].leaf.put, ours).shape
        if want != its.shape:
            raise ShapeError(f"{its.file}: {name} is {list(its.shape)} and its config makes it {list(want)}")


def _dtype(stored: str, asked: Any) -> Any:
    if asked is not None:
        return jnp.dtype(asked)
    return jnp.float32 if stored == "F16" else _READ[stored]


def _reading(its: Tensor, mesh: Any) -> jax.ShapeDtypeStruct:
    """As it lies in the file; of a mesh each device reads its part."""
    sharding = None if mesh is None else split(mesh, its.shape)
    return jax.ShapeDtypeStruct(its.shape, _READ[its.dtype], sharding=sharding)


def _taken(x: Any, leaf: Leaf, dtype: Any, mesh: Any) -> Any:
    rule = dataclasses.replace(leaf, ours="", theirs="")  # the same program for all that are taken alike
    shape = jax.eval_shape(rule.take, x).shape
    return _take(x, rule, jnp.dtype(dtype), None if mesh is None else split(mesh, shape))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _take(x: Any, rule: Leaf, dtype: Any, sharding: Any) -> Any:
    found = rule.take(x).astype(dtype)
    return found if sharding is None else jax.lax.with_sharding_constraint(found, sharding)


def _stack(parts: list[Any], mesh: Any) -> Any:
    return _stacked(parts, None if mesh is None else split(mesh, (len(parts), *parts[0].shape)))


@functools.partial(jax.jit, static_argnums=1)
def _stacked(parts: list[Any], sharding: Any) -> Any:
    found = jnp.stack(parts)
    return found if sharding is None else jax.lax.with_sharding_constraint(found, sharding)
