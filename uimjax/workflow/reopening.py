"""A finished run of a story, opened to be looked at: its task, rows and beginning from its lock. Nothing is written."""

from pathlib import Path
from typing import Any, NamedTuple

from uimjax import checkpoint, store, training
from uimjax.config import LOCK, RunConfig, TextConfig, kind_of, parse, read_yaml
from uimjax.errors import MismatchError, MissingFileError
from uimjax.task import Task
from uimjax.workflow import text, vision

DRAW = "draw-"


class Run(NamedTuple):
    """`folder`: of its training, with the plants; `initial`: the parameters it began with; `rows`: those it is of;
    `documents`: whether they are tokens."""

    folder: Path
    task: Task
    initial: Any
    rows: Any
    documents: bool


def is_story(folder: Path) -> bool:
    """Is it the folder of a run, or of one draw of a run of pictures?"""
    return (_root(folder) / LOCK).is_file()


def reopened(folder: Path) -> Run:
    """Of pictures the first draw, unless `folder` is that of another.

    Raises:
        MissingFileError: nothing is trained there yet. MismatchError: the corpus has changed since, or the model.
        ConfigError: it is no story's.
    """
    root = _root(folder)
    lock = read_yaml(root / LOCK)
    values = lock.get("config", {})
    config = parse(kind_of(values), values, str(root / LOCK))
    if isinstance(config, TextConfig):
        corpus, at = text.load_corpus(config), root
        planted, (task, made) = text.drawn(config, corpus), text.model_of(config, corpus)
        digests = {"train": store.digest_tree(planted.train)}
    else:
        assert isinstance(config, RunConfig)
        at = root / f"{DRAW}0" if folder.absolute() == root else folder
        corpus = vision.load_corpus(config)
        planted, task, made = vision.drawn(config, corpus, int(at.absolute().name.removeprefix(DRAW)))
        digests = vision.digests_of(corpus)
    if digests.items() - lock.get("corpus", {}).items():
        raise MismatchError(f"the corpus is not the one that {root} was run on; bring that back, or run anew")
    if not training.kept(at / "train"):
        raise MissingFileError(f"{at} holds no trained model yet; `uimjax run {root}` goes on")
    return Run(at / "train", task, checkpoint.load(at / "initial", made, 0)[1], planted.train, config.kind == "text")


def _root(folder: Path) -> Path:
    whole = folder.absolute()
    its_draw = whole.name.startswith(DRAW) and whole.name.removeprefix(DRAW).isdecimal()
    return whole.parent if its_draw and not (whole / LOCK).is_file() else whole
