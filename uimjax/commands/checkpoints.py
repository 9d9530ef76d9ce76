"""Checkpoints that a command looks at: language models over one corpus, the reader's own tasks, or those of a run."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.commands.base import loaded
from uimjax.errors import MissingFileError, ShapeError, UnsupportedModelError, UsageError

LENGTH, BATCH = 256, 16  # tokens of a row, rows at once
ENDINGS = (".npy", ".npz", ".parquet", ".jsonl")  # of files of features
WANTED = "(uimjax.Task, params, rows)"
OWN = "as the task says, summed where it is [T]"


class Checkpoint(NamedTuple):
    """What one of the series brings: `rows` a pytree of `[N, ...]`, the same of all; `loss`, in words what a row's loss
    is; `documents`: whether rows are the ones of a corpus, `tokens` and `counted`."""

    task: Any
    params: Any
    rows: Any
    loss: str
    documents: bool


class Run(NamedTuple):
    """A series in one folder: after which numbers of finished `epochs` the training in `folder` kept its parameters;
    `first`: the checkpoint it began with."""

    folder: Path
    epochs: list[int]
    first: Checkpoint


def features_in(folder: Path) -> list[Path]:
    """Its files of features."""
    return [path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file()]


def run_in(given: Sequence[str], references: Sequence[str] | None) -> Path | None:
    """The folder of a run among what was given, None where there is none; what does not go with it is refused. That of
    `training.fit` where features lie, too, is a run only with a function.

    Raises:
        UsageError: a function that is lacking, too many, or of no use; more than one run. MissingFileError: with a
            function, a folder that is no run.
    """
    folders = [Path(where) for where in given if Path(where).is_dir()]
    if not folders:
        return None
    from uimjax import training
    from uimjax.commands.names import PARTS
    from uimjax.workflow.reopening import is_story

    own = [path for path in folders if training.is_run(path) and (references or not features_in(path))]
    where = next((path for path in folders if path in own or is_story(path)), None)
    if where is None:
        if parts := [str(path / part) for path in folders for part in PARTS if is_story(path / part)]:
            raise UsageError(f"{folders[0]} holds several runs; name one of them: {', '.join(parts)}")
        if references:
            raise MissingFileError(
                f"{folders[0]} is no run; with --task one of training.fit(folder=..., snapshots=...) was wanted. The "
                "folder that `uimjax run CONFIG` writes goes without --task"
            )
        return None
    if len(given) > 1:
        raise UsageError(f"{where} is a run, which is a series alone; name nothing beside it")
    if is_story(where) and references:
        raise UsageError(f"{where} is of `uimjax run`, which knows its task; leave --task out")
    if not is_story(where) and len(references or ()) != 1:
        raise UsageError(
            f"{where} is of training.fit, which keeps no task: one --task pkg.module:function was wanted, returning "
            f"{WANTED} with the parameters it began with"
        )
    return where


def run_of(where: Path, references: Sequence[str] | None) -> Run:
    """What `run_in` found, opened.

    Raises:
        MissingFileError: it has kept nothing yet. UsageError: as `opened`. MismatchError: as `reopened`.
    """
    from uimjax import training
    from uimjax.workflow.reopening import is_story, reopened

    if not is_story(where):
        if not (epochs := training.kept(where)):
            raise MissingFileError(f"{where} has kept no parameters yet; let training.fit go on in it")
        return Run(where, epochs, next(_tasks(references or ())))
    its = reopened(where)
    loss = "the sum over its tokens, nats" if its.documents else "nats"
    first = Checkpoint(its.task, its.initial, its.rows, loss, its.documents)
    return Run(its.folder, training.kept(its.folder), first)


def names(args: argparse.Namespace, run: Run | None = None) -> list[str]:
    """One a checkpoint, told apart, each fit for the name of a file."""
    if run is not None:
        return [f"epoch-{epochs}" for epochs in run.epochs]
    stems = [Path(where).absolute().name for where in args.model or ()] or [ref.partition(":")[2] for ref in args.task]
    return [name if stems.count(name) == 1 else f"{k}-{name}" for k, name in enumerate(stems)]


def opened(args: argparse.Namespace, out: Path, progress: Any, run: Run | None = None) -> Iterator[Checkpoint]:
    """Each in turn, so that one model alone need be held.

    Raises:
        UsageError: a function of the reader's that returns something else, or another tokenizer than the first
            model's. UnsupportedModelError: a model that is no decoder. MissingFileError, DataError: as `load`,
            or as `training.parameters`.
    """
    if run is not None:
        return _epochs(run)
    return _models(args, out, progress) if args.model else _tasks(args.task)


def _epochs(run: Run) -> Iterator[Checkpoint]:
    from uimjax import training

    for epochs in run.epochs:
        yield run.first._replace(params=training.parameters(run.folder, run.first.params, epochs))


def _tasks(references: Sequence[str]) -> Iterator[Checkpoint]:
    for reference in references:
        task, params, rows = loaded(reference, WANTED, 3)
        yield Checkpoint(task, params, rows, OWN, False)


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
