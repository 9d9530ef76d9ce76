"""The model that is asked about, opened as a config names it: a checkpoint folder, or the reader's own module."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tokenizers

from uimjax import checkpoint
from uimjax.errors import MissingFileError, UnsupportedModelError, UsageError
from uimjax.mesh import shard_params, split
from uimjax.models.blocks import Shape
from uimjax.models.own import language_model
from uimjax.pretrained.loading import Pretrained, load
from uimjax.pretrained.words import check_words, need_tokenizer, read_words
from uimjax.references import call
from uimjax.task import Task

DTYPES = {"": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Subject(NamedTuple):
    """The model that failed: its task (of rows `{"tokens", "counted"}`, a loss `[T]`), parameters and tokenizer; the
    most tokens of a row, 0 for no limit; the token that ends a document, if that is known; what was read of a `folder`,
    for saving to one."""

    task: Task
    params: Any
    tokenizer: tokenizers.Tokenizer
    most: int = 0
    end: int | None = None
    folder: Pretrained | None = None


def open_subject(config: Any, mesh: Any = None) -> Subject:
    """A config's `model` (a checkpoint folder, or `pkg.module:factory` of a Flax module) with the parameters of its
    `checkpoint` (Orbax), where one is named; its `task` instead of ours; its `tokenizer`.

    Raises: as `load` and `checkpoint.read_tree`; MissingFileError: no tokenizer. UnsupportedModelError: no language
    model with a loss a token. UsageError: choices that the model cannot take.
    """
    own = ":" in config.model and not Path(config.model).exists()
    found = (_module if own else _folder)(config, mesh)
    _check_words(found, config.tokenizer or config.model)
    chosen = {name: getattr(config, name) for name in ("include", "exclude") if getattr(config, name)}
    if config.adapter and chosen:
        raise UsageError("an adapter's parameters are the ones that are attributed: leave include and exclude out")
    return found._replace(task=dataclasses.replace(found.task, **chosen))


def _folder(config: Any, mesh: Any) -> Subject:
    root, how = Path(config.model), {"scanned": config.scanned, "remat": config.remat}
    if config.task:
        raise UsageError(f"task {config.task} is for a module of your own; {root} is a folder, whose loss is known")
    how |= {"mesh": mesh, "dtype": DTYPES[config.dtype], "step": config.step}
    its = load(root, adapter=config.adapter or None, checkpoint=config.checkpoint or None, **how)
    if not isinstance(its.choice, Shape):
        raise UnsupportedModelError(
            f"{root} is a {its.family.types[0]}; documents are traced for decoders, which have a loss a token "
            "(of a classifier: `uimjax new classified`)"
        )
    words = read_words(config.tokenizer) if config.tokenizer else need_tokenizer(its.tokenizer, root)
    end = its.config.get("eos_token_id")
    return Subject(its.task, its.params, words, its.choice.length, end if isinstance(end, int) else None, its)


def _module(config: Any, mesh: Any) -> Subject:
    for name in ("scanned", "remat", "dtype", "adapter"):
        if getattr(config, name):
            raise UsageError(f"{name} is for models built here; build {config.model} so yourself, and leave it out")
    if not config.tokenizer:
        raise MissingFileError(f"{config.model} comes without a tokenizer: --tokenizer FILE (a tokenizer.json)")
    if config.step is not None and not config.checkpoint:
        raise UsageError(f"step {config.step} of which run? Name its folder: --checkpoint DIR")
    module = call(config.model)
    task, params = language_model(module)
    if config.task:
        task = call(config.task, module)
        if not isinstance(task, Task):
            raise UsageError(f"{config.task} returned {type(task).__name__}; a uimjax.Task was wanted")
    if config.checkpoint:
        params = _restored(config, params, mesh)
    elif any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        raise UsageError(f"{config.model} is a Linen module, without parameters of its own: --checkpoint ORBAX_DIR")
    elif mesh is not None:
        params = shard_params(mesh, params)
    return Subject(task, params, read_words(config.tokenizer))


def _restored(config: Any, params: Any, mesh: Any) -> Any:
    """The checkpoint's, in the place of these."""
    place = None if mesh is None else lambda shape: split(mesh, shape)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    return checkpoint.read_tree(Path(config.checkpoint), shapes, config.step, place)


def _check_words(its: Subject, where: str) -> None:
    """Raises MismatchError: the tokenizer knows ids that the model has no place for."""
    if its.task.outputs is None:
        return
    row = {"tokens": jax.ShapeDtypeStruct((2,), jnp.int32), "counted": jax.ShapeDtypeStruct((2,), jnp.float32)}
    most = jax.eval_shape(its.task.outputs, its.params, row).shape[-1]
    check_words(its.tokenizer, most, where)
