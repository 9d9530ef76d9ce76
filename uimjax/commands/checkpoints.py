"""Checkpoints that a command looks at: language models over one corpus, or the reader's own tasks."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.commands.base import loaded
from uimjax.errors import ShapeError, UnsupportedModelError, UsageError

LENGTH, BATCH = 256, 16  # tokens of a row, rows at once
WANTED = "(uimjax.Task, params, rows)"


class Checkpoint(NamedTuple):
    """What one of the series brings: `rows` a pytree of `[N, ...]`, the same of all; `loss`, in words what a row's loss
    is; `documents`: whether rows are the ones of a corpus, `tokens` and `counted`."""

    task: Any
    params: Any
    rows: Any
    loss: str
    documents: bool


def names(args: argparse.Namespace) -> list[str]:
    """One a checkpoint, told apart, each fit for the name of a file."""
    stems = [Path(where).absolute().name for where in args.model or ()] or [ref.partition(":")[2] for ref in args.task]
    return [name if stems.count(name) == 1 else f"{k}-{name}" for k, name in enumerate(stems)]


def opened(args: argparse.Namespace, out: Path, progress: Any) -> Iterator[Checkpoint]:
    """Each in turn, so that one model alone need be held.

    Raises:
        UsageError: a function of the reader's that returns something else, or another tokenizer than the first
            model's. UnsupportedModelError: a model that is no decoder. MissingFileError, DataError: as `load`.
    """
    return _models(args, out, progress) if args.model else _tasks(args)


def _tasks(args: argparse.Namespace) -> Iterator[Checkpoint]:
    for reference in args.task:
        task, params, rows = loaded(reference, WANTED, 3)
        yield Checkpoint(task, params, rows, "as the task says, summed where it is [T]", False)


def _models(args: argparse.Namespace, out: Path, progress: Any) -> Iterator[Checkpoint]:
    from uimjax.corpora.preparing import corpus_files, prepare
    from uimjax.models.blocks import Shape
    from uimjax.pretrained.loading import load
    from uimjax.pretrained.words import need_tokenizer

    corpus_files(args.corpus)  # what is not there is said before a model is read
    words, data = "", None
    for where in args.model:
        its = load(where)
        if not isinstance(its.choice, Shape) or its.task.features is None:
            raise UnsupportedModelError(
                f"{where} is a {its.family.types[0]}; rows of documents are for decoders. Save features of others as "
                ".npy [N, d], and name the files; or give your own --task"
            )
        tokenizer = need_tokenizer(its.tokenizer, Path(where))
        if data is None:
            words, length = tokenizer.to_str(), min(its.choice.length or LENGTH, LENGTH)
            data = prepare(args.corpus, tokenizer, out / "corpus", length=length, progress=progress).rows
        if tokenizer.to_str() != words:
            raise UsageError(f"{where} has another tokenizer than {args.model[0]}; checkpoints of one model fit")
        yield Checkpoint(its.task, its.params, data, "the sum over its tokens, nats", True)


def write_features(its: Checkpoint, limit: int, path: Path, progress: Any) -> None:
    """Features `[N, d]` float32 of at most `limit` rows, evenly spaced, a batch at a time."""
    import jax

    from uimjax import rows as row
    from uimjax.store.base import atomic

    data = row.spread(its.rows, limit)
    features: Callable[[Any, Any], Any] = jax.jit(jax.vmap(its.task.features, (None, 0)))
    count, held = row.count(data), None
    with atomic(path) as temporary:
        for first in progress(range(0, count, BATCH), f"features of {path.stem}", unit="batches"):
            batch = next(iter(row.batches(data, BATCH, first, min(first + BATCH, count))))
            found = np.asarray(features(its.params, batch.rows), np.float32)[np.asarray(batch.mask)]
            if found.ndim != 2:
                raise ShapeError(f"features of {path.stem} are {list(found.shape[1:])} a row; [D] was wanted")
            if held is None:
                held = np.lib.format.open_memmap(temporary, "w+", np.float32, (count, found.shape[1]))
            held[first : first + len(found)] = found
        if held is not None:
            held.flush()
