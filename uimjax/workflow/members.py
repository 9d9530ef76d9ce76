"""Can it be told from a language model which documents it was trained on? Scores of likelihood, no other models."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import roc_auc_score

from uimjax import rows as row
from uimjax.answers.subject import Subject
from uimjax.audit import membership
from uimjax.config import AuditConfig
from uimjax.corpora.texts import Columns, read_texts
from uimjax.errors import DataError
from uimjax.task import Task

CHANCE, LEAST = 0.5, 0.01
FALSE = 0.01  # others that may be taken for members, where the share of members found is told
DRAWS = 1000
HEADLINE = "min_k"  # chosen before any score is seen; the others stand beside it
CANNOT = (
    "members and others have to be alike but for the training: another time, source or length is told as well; who "
    "knows more of the model (its kin, trained with and without) tells more"
)


class Sides(NamedTuple):
    """`texts` of both sides, `member` `[N]` of which they are, and the `places` they came from."""

    texts: list[str]
    member: np.ndarray
    places: list[str]


def read(config: AuditConfig) -> Sides:
    """Both sides, before any model is opened.

    Raises: as `read_texts`; DataError: fewer than two documents of a side.
    """
    sides = {name: _documents(getattr(config, name), config) for name in ("members", "others")}
    for name, its in sides.items():
        if len(its) < 2:
            raise DataError(f"{name}: {len(its)} documents with text; two at least were wanted")
    both = [*sides["members"], *sides["others"]]
    member = np.arange(len(both)) < len(sides["members"])
    return Sides([text for _, text in both], member, [place for place, _ in both])


def card(subject: Subject, config: AuditConfig, sides: Sides, length: int) -> dict[str, Any]:
    """Area under the ROC curve of every score, with a bootstrap interval over members and over others. Of a document
    the first `length` tokens are looked at; one of fewer than two is left out, and named.

    Raises: DataError: fewer than two documents of a side are left.
    """
    codes = [subject.tokenizer.encode(text) for text in sides.texts]
    kept = np.array([len(code.ids) > 1 for code in codes])
    member = sides.member[kept]
    if min(member.sum(), (~member).sum()) < 2:
        raise DataError("fewer than two documents of a side have two tokens; give longer ones")
    codes = [code for code, fits in zip(codes, kept, strict=True) if fits]
    texts = [text for text, fits in zip(sides.texts, kept, strict=True) if fits]
    seen = [text[: code.offsets[:length][-1][1]] or text for text, code in zip(texts, codes, strict=True)]
    found = _scores(subject, _rows(codes, length), seen, config.batch_size)
    draws = _draws(member, config.seed)
    told = {name: _told(values, member, draws) for name, values in found.items()}
    its = told[HEADLINE]
    alarm = its["low"] > CHANCE and its["value"] - CHANCE > LEAST
    return {
        "value": its["value"], "low": its["low"], "high": its["high"], "items": len(texts),
        "also": {name: values["value"] for name, values in told.items()} | {
            f"found at {FALSE:.0%} false": membership.told(found[HEADLINE], member, FALSE).tpr
        },
        "unit": "how often a member's Min-K% is above another's (area under the curve)", "reference": CHANCE,
        "competent": None, "says": "alarm" if alarm else "no alarm from these documents", "cannot": CANNOT,
        "cut_prompts": 0, "left_out": [sides.places[k] for k in np.flatnonzero(~kept)],
    }  # fmt: skip


def _documents(files: Sequence[str], config: AuditConfig) -> list[tuple[str, str]]:
    """(place, text) of each document."""
    found = []
    for file in files:
        blocks = read_texts([Path(file)], Columns(config.text_column), lambda _: None)
        its = [(document.id, document.text) for block in blocks for document in block if document.text.strip()]
        if config.limit is not None and len(its) > config.limit:
            its = [its[k] for k in np.linspace(0, len(its) - 1, config.limit).round().astype(int)]
        found += its
    return found


def _rows(codes: Sequence[Any], length: int) -> dict[str, np.ndarray]:
    """The beginnings of documents."""
    longest = min(length, max(len(code.ids) for code in codes))
    shape = len(codes), longest
    rows = {"tokens": np.zeros(shape, np.int32), "counted": np.zeros(shape, np.float32)}
    for k, code in enumerate(codes):
        ids = code.ids[:length]
        rows["tokens"][k, : len(ids)], rows["counted"][k, : len(ids)] = ids, 1
    return rows


def _scores(subject: Subject, rows: Any, texts: Sequence[str], batch_size: int) -> dict[str, np.ndarray]:
    parts = [[np.asarray(x)[: int(b.mask.sum())] for x in _looked(subject.task)(subject.params, b.rows)]
             for b in row.batches(rows, batch_size)]  # fmt: skip
    log_p, mean, variance = (np.concatenate(x).astype(np.float64) for x in zip(*parts, strict=True))
    counted = np.asarray(rows["counted"])[:, 1:] > 0
    found = {
        "loss": membership.loss(log_p, counted), "min_k": membership.min_k(log_p, counted),
        "zlib": membership.compressed(log_p, counted, texts),
    }  # fmt: skip
    if subject.task.outputs is not None:
        found["min_k_plus"] = membership.min_k_plus(log_p, mean, variance, counted)
    return found


@functools.lru_cache(maxsize=4)
def _looked(task: Task):
    """Compiled: log p of each token after the first, and the mean and variance of log p over the vocabulary there."""

    def one(params: Any, example: Any) -> Any:
        log_p = -task.loss(params, example)[1:]
        if task.outputs is None:
            return log_p, jnp.zeros_like(log_p), jnp.ones_like(log_p)
        every = jax.nn.log_softmax(task.outputs(params, example)[:-1].astype(jnp.float32))
        p = jnp.exp(every)
        mean = jnp.sum(p * every, -1)
        return log_p, mean, jnp.sum(p * jnp.square(every - mean[:, None]), -1)

    return jax.jit(lambda params, rows: jax.vmap(lambda r: one(params, r))(rows))


def _draws(member: np.ndarray, seed: int) -> list[np.ndarray]:
    rng, sides = np.random.default_rng(seed), [np.flatnonzero(member), np.flatnonzero(~member)]
    return [np.concatenate([rng.choice(ids, len(ids)) for ids in sides]) for _ in range(DRAWS)]


def _told(score: np.ndarray, member: np.ndarray, draws: list[np.ndarray]) -> dict[str, float]:
    low, high = np.quantile([roc_auc_score(member[ids], score[ids]) for ids in draws], [0.025, 0.975])
    return {"value": membership.told(score, member, FALSE).auroc, "low": float(low), "high": float(high)}
