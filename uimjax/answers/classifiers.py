"""The classifier that is asked about, opened as a config names it: a checkpoint folder, the reader's own module, or a
head that is fitted here to features of a model that cannot be opened.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx

from uimjax import checkpoint
from uimjax.corpora.examples import Kind
from uimjax.corpora.labelled import Encoder, Labelled
from uimjax.errors import ShapeError, UnsupportedModelError, UsageError
from uimjax.interpret.representation import fit_head
from uimjax.mesh import shard_params, split
from uimjax.models.classifiers import classifier_task
from uimjax.models.encoders import ImageShape, TextShape
from uimjax.models.resnets import ResNetShape
from uimjax.pretrained.loading import Pretrained, load, outline
from uimjax.pretrained.pictures import Pictures, read_pictures
from uimjax.pretrained.words import check_words, need_tokenizer, read_words
from uimjax.references import call
from uimjax.store import digest_text
from uimjax.task import Task

HEAD = "head"  # the name of a model that is fitted here
CLASSES = (ImageShape, ResNetShape, TextShape)


class Classifier(NamedTuple):
    """`opened(examples) -> (task, params, names of the outputs)`, of rows that the `encoder` makes and their `"label"`;
    `classes`: what the model calls them; () where the examples say so, None where its outputs have no names."""

    encoder: Encoder
    classes: tuple[str, ...] | None
    opened: Callable[[Labelled], tuple[Task, Any, tuple[str, ...]]]

    @property
    def kind(self) -> Kind:
        return self.encoder.kind


def is_classifier(model: str) -> bool:
    """Is it a checkpoint folder of one, or the head that is fitted here? Raises as `load`, what concerns the config."""
    if model == HEAD:
        return True
    if not (Path(model) / "config.json").is_file():
        return False
    choice = outline(model).choice
    return isinstance(choice, CLASSES) and bool(choice.classes)


def open_classifier(config: Any, mesh: Any = None) -> Classifier:
    """Raises: as `load` and `checkpoint.read_tree`; UnsupportedModelError: it tells no classes apart. UsageError:
    choices that the model cannot take."""
    if config.model == HEAD:
        idle = ("checkpoint", "step", "tokenizer", "task", "scanned", "remat", "side", "channels", "length", "classes")
        refuse(config, "a head is fitted here, to features", idle)
        return Classifier(features(), (), lambda examples: _headed(config, examples, mesh))
    refuse(config, "it is that of a head that is fitted here (--model head)", ("decay",))
    if config.step is not None and not config.checkpoint:
        raise UsageError(f"step {config.step} of which run? Name its folder: --checkpoint DIR")
    if ":" in config.model and not Path(config.model).exists():
        return _module(config, mesh)
    return _folder(config, mesh)


def refuse(config: Any, why: str, names: tuple[str, ...]) -> None:
    """Raises UsageError: a choice that would change nothing."""
    for name in names:
        if getattr(config, name) != type(config).model_fields[name].get_default():
            raise UsageError(f"{name} {getattr(config, name)}: {why}; leave it out")


def _headed(config: Any, examples: Labelled, mesh: Any) -> tuple[Task, Any, tuple[str, ...]]:
    task, params = fitted(examples, config.decay, mesh)
    return _chosen(config, task), params, examples.classes


def _folder(config: Any, mesh: Any) -> Classifier:
    root = Path(config.model)
    refuse(config, f"{root} is a folder, whose loss and sizes are known", ("task", "side", "channels"))
    made = outline(root)
    if not isinstance(made.choice, CLASSES) or not made.choice.classes:
        raise UnsupportedModelError(
            f"{root} is a {made.family.types[0]} without classes; failures of a decoder are lines with a prompt "
            "and what it said (`uimjax new failures`)"
        )
    how = {"scanned": config.scanned, "remat": config.remat, "step": config.step}
    its = load(root, mesh=mesh, checkpoint=config.checkpoint or None, **how)
    names = class_names(its)
    if config.classes:
        if len(config.classes) != len(names):
            raise UsageError(f"{len(config.classes)} classes are named and {root} tells {len(names)} apart")
        names = tuple(config.classes)
    encoder, task = _inputs(config, its)
    return Classifier(encoder, names, lambda _: (_chosen(config, task), its.params, names))


def class_names(its: Pretrained) -> tuple[str, ...]:
    """By number, as the config names them."""
    named = {int(number): str(name) for number, name in (its.config.get("id2label") or {}).items()}
    return tuple(named.get(k, f"LABEL_{k}") for k in range(its.choice.classes))


def _inputs(config: Any, its: Pretrained) -> tuple[Encoder, Task]:
    choice = its.choice
    if isinstance(choice, TextShape):
        words = read_words(config.tokenizer) if config.tokenizer else need_tokenizer(its.tokenizer, its.folder)
        check_words(words, choice.layer.vocabulary, config.tokenizer or str(its.folder))
        most = choice.layer.length - choice.offset
        if config.length > most:
            raise ShapeError(f"rows of {config.length} tokens; this model has {most} positions: --length {most}")
        return texts(words, config.length), its.task
    refuse(config, "pictures are no words", ("tokenizer", "length"))
    square = isinstance(choice, ImageShape)
    side, kind = (choice.side, "ViT") if square else (0, "ConvNext")
    found = read_pictures(its.folder, side, choice.channels, kind)
    return pictures(found), found.scaled(its.task)


def _chosen(config: Any, task: Task) -> Task:
    chosen = {name: getattr(config, name) for name in ("include", "exclude") if getattr(config, name)}
    return dataclasses.replace(task, **chosen)


def _module(config: Any, mesh: Any) -> Classifier:
    refuse(config, f"{config.model} is built by you, of pictures", ("scanned", "remat", "tokenizer", "length"))
    module = call(config.model)
    if not isinstance(module, nnx.Module):
        raise UsageError(f"{config.model} returned {type(module).__name__}; a flax.nnx.Module of images was wanted")
    module.eval()  # dropout, running means
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    task = call(config.task, module) if config.task else classifier_task(graph, rest)
    if not isinstance(task, Task):
        raise UsageError(f"{config.task} returned {type(task).__name__}; a uimjax.Task was wanted")
    if config.checkpoint and jax.tree.leaves(nnx.state(module, nnx.BatchStat)):
        raise UsageError(
            f"{config.model} has running means, which are no parameters: a checkpoint's would be left out. Let the "
            "function load them itself"
        )
    if config.checkpoint:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        place = None if mesh is None else lambda shape: split(mesh, shape)
        params = checkpoint.read_tree(Path(config.checkpoint), shapes, config.step, place)
    elif mesh is not None:
        params = shard_params(mesh, params)
    found = Pictures(config.channels, config.side)
    task = _chosen(config, found.scaled(task))
    names = tuple(config.classes) or None
    return Classifier(pictures(found), names, lambda its: (task, params, _outputs(task, params, its, names)))


def _outputs(task: Task, params: Any, examples: Labelled, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of the model's outputs, numbers where it has none.

    Raises:
        UsageError: the task has no outputs. ShapeError: the model does not take these rows, or tells other classes
        apart.
    """
    row = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in examples.rows.items()}
    if task.outputs is None:
        raise UsageError("the task has no outputs(params, example), the logits of the classes, which mistakes are of")
    try:
        found = jax.eval_shape(task.outputs, params, row)
    except Exception as error:  # it is the reader's own code
        raise ShapeError(f"the model does not take pictures {list(row['image'].shape)}: {error}") from error
    if found.ndim != 1 or found.shape[0] < len(examples.classes) or (names and found.shape[0] != len(names)):
        told = f"its outputs are {list(found.shape)} and there are {len(examples.classes)} classes"
        raise ShapeError(f"{told}: {', '.join(examples.classes[:8])}")
    return names or tuple(map(str, range(found.shape[0])))


# ---------------------------------------------------------------- inputs


def pictures(its: Pictures) -> Encoder:
    return Encoder("image", lambda value: ({"image": its.read(value)}, ""), str(its))


def texts(words: tokenizers.Tokenizer, length: int) -> Encoder:
    """Texts of at most `length` tokens with the tokenizer's special ones; of a longer one its beginning."""
    name = f"{digest_text(words.to_str())}, {length} tokens"
    whole = tokenizers.Tokenizer.from_str(words.to_str())
    whole.no_padding()
    whole.no_truncation()
    short = tokenizers.Tokenizer.from_str(whole.to_str())
    short.enable_truncation(length)

    def encode(value: str) -> tuple[dict[str, np.ndarray], str]:
        ids, count = short.encode(value).ids, len(whole.encode(value).ids)
        if not ids:
            raise ValueError("the tokenizer makes no token of it")
        tokens, counted = np.zeros(length, np.int32), np.zeros(length, np.uint8)
        tokens[: len(ids)], counted[: len(ids)] = ids, 1
        over = f"longer than a row: {count} tokens, of which the model sees {len(ids)}"
        return {"tokens": tokens, "counted": counted}, over if count > length else ""

    return Encoder("text", encode, name)


def features() -> Encoder:
    def encode(value: Any) -> tuple[dict[str, np.ndarray], str]:
        found = np.asarray(value)
        with np.errstate(over="ignore"):
            kept = found.astype(np.float32) if found.ndim == 1 and found.dtype.kind in "fiu" else None
        if kept is None or not np.isfinite(kept).all():
            raise ValueError(f"{found.dtype}{list(found.shape)} arrived; a vector of finite numbers was wanted")
        return {"features": kept}, ""

    return Encoder("features", encode, "vectors")


# ---------------------------------------------------------------- a head of frozen features


def fitted(examples: Labelled, decay: float, mesh: Any) -> tuple[Task, Any]:
    """A softmax head of the features `[D]` and a bias, at the minimum of `mean nll + decay |W|^2` (convex), which
    stands for the last layer of a model that was not opened.

    Raises:
        ShapeError: fewer than two classes. NonFiniteError: as `fit_head`.
    """
    rows, classes = examples.rows, len(examples.classes)
    if classes < 2:
        raise ShapeError(f"all examples are of one class, {examples.classes[0]}; a head tells two or more apart")
    values = np.concatenate([rows["features"], np.ones((len(rows["label"]), 1), np.float32)], 1)
    found = fit_head(np.asarray(values, np.float64), np.asarray(rows["label"]), classes, decay).weights
    params = {"kernel": jnp.asarray(found[:, :-1].T, jnp.float32), "bias": jnp.asarray(found[:, -1], jnp.float32)}
    return HEAD_TASK, params if mesh is None else shard_params(mesh, params)


def _logits(params: Any, example: Any) -> Any:
    return example["features"] @ params["kernel"] + params["bias"]


def _nll(params: Any, example: Any) -> Any:
    return -jax.nn.log_softmax(_logits(params, example))[example["label"]]


HEAD_TASK = Task(
    loss=_nll, outputs=_logits, features=lambda _, example: example["features"],
    label=lambda example: jnp.asarray(example["label"]),
)  # fmt: skip
