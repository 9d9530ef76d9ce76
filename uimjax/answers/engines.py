"""One face for both ways to answer: an index of sketched rows, or whole gradients scored row by row.

Either gives the strongest rows of every question, totals by group, and the shares of single tokens on both sides.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from uimjax import rows as row
from uimjax.answers.failures import Failures, shuffled
from uimjax.curvature import blocks
from uimjax.curvature.base import Source
from uimjax.curvature.kronecker import Kronecker
from uimjax.errors import UnknownNameError, UsageError
from uimjax.interpret import base, exact, methods, positions, shares
from uimjax.interpret import groups as grouping
from uimjax.interpret import trace as tracing
from uimjax.interpret.base import Method, Scores
from uimjax.interpret.exact import Ready
from uimjax.interpret.groups import Totals
from uimjax.interpret.hits import Trace
from uimjax.interpret.index import Index
from uimjax.rows import Pass
from uimjax.task import Task

WHOLE_SCORES = 1 << 28  # of rows times questions: "auto" scores whole gradients up to there, as all are held
WORK = 10**12  # of parameters times tokens: "auto" takes whole gradients up to there, twenty minutes of two cores
FASTER = 1000  # times that on an accelerator
DRAWS = 2  # labels drawn a row for the Fisher matrix of "auto"
PIECE = 8  # documents whose tokens are looked at together


class Answering(NamedTuple):
    """`strongest(k)`: the k rows at either end of every question; `by_group(labels)`: the scores of all rows added up;
    `document_tokens(question, rows)` `[n, T]` and `question_tokens(question, rows)` `[n, Tq]`: shares of the row's
    score, which they add up to; None where the measurement has no parts, or whole rows alone
    were scored."""

    method: str
    unit: str
    strongest: Callable[[int], Trace]
    by_group: Callable[[Any], Totals]
    document_tokens: Callable[[int, Any], np.ndarray] | None
    question_tokens: Callable[[int, Any], np.ndarray] | None


def choose(
    asked: str, parameters: int, rows: int, questions: int, retain: bool, tokens: int = 0
) -> tuple[str, str]:  # fmt: skip
    """(the method that a name stands for, why): `auto` by size, as `uimjax help trace` says. `tokens`: of all rows."""
    if asked != methods.AUTO:
        return asked, "asked for"
    if retain:
        return "retain_cos", "clean documents to retain are given"
    if parameters > methods.LARGE:
        return "trackstar", f"{parameters:,} parameters are more than {methods.LARGE:,}, so gradients are sketched"
    most = WORK if jax.default_backend() == "cpu" else WORK * FASTER
    if parameters * tokens > most:
        told = f"{parameters:,} parameters times {tokens:,} tokens are more than {most:,}"
        return "trackstar", f"{told}: whole gradients would take long here, so an index is built"
    if rows * questions > WHOLE_SCORES:
        return (
            "trackstar",
            f"{rows:,} rows and {questions:,} questions are too many scores to hold, so an index is built",
        )
    return "relatif", f"{parameters:,} parameters are few enough for whole gradients and EK-FAC"


INDEXED = ("grad_dot", "grad_cos", "logra", "trackstar", "retain_cos")  # that an index of sketched rows answers
WHOLE = ("relatif", "ekfac", "kfac", "diagonal")  # of whole gradients
HEAD = "cg"  # of a head: small enough for products with its curvature


def check_method(name: str, retain: bool, more: Sequence[str] = ()) -> None:
    """Before anything is read or built; `more` methods that serve beside those of documents.

    Raises:
        UnknownNameError: no method, or one that answers no such question. UsageError: retain and a method that does
        not, or the other way round.
    """
    if name == methods.AUTO:
        return
    known = (*INDEXED, *WHOLE, *more)
    if name not in known:
        where = " of documents (uj.score takes it)" if name in (*methods.PRESETS, *methods.BASELINES) else ""
        raise UnknownNameError(f"method{where}", name, (methods.AUTO, *known))
    if retain and name != "retain_cos":
        raise UsageError(f"{name} keeps nothing of what is right: leave retain out, or take retain_cos")
    if name == "retain_cos" and not retain:
        raise UsageError("retain_cos keeps what the model does right: --retain FILES, held-out clean documents")


def is_whole(name: str) -> bool:
    """Is it a method of whole gradients and of the last checkpoint, which needs no index?"""
    return name in WHOLE


# ---------------------------------------------------------------- of an index


def of_index(
    index: Index, task: Task, params: Any, data: Any, failures: Failures, method: str, retain: Any = None,
    null: int = 0, together: int = PIECE,
) -> Answering:  # fmt: skip
    """The curvature is measured once, and serves all that is asked; `together`: rows, or questions, in memory at once.
    Raises as `trace.trace`."""
    each, asked = not failures.together, (task, params, data, failures.measurement, failures.rows)
    question = tracing.question(index, *asked, each, together)
    span = None if retain is None else tracing.retained(index, task, params, data, retain)
    made = tracing.by(question, method, span)
    band = tracing.beside(made, *asked, null, shuffled, together) if null else None

    def strongest(k: int) -> Trace:
        return tracing.top(made, k) if band is None else tracing.top_beside(made, question.vectors, band, k)

    def by_group(labels: Any) -> Totals:
        groups = grouping.grouped(labels)
        return grouping.totals(tracing.streamed(made), groups, index.rows, label, made.unit)

    def document_tokens(number: int, rows: Any) -> np.ndarray:
        return positions.token_scores(made, task, params, rows, together, number)

    def question_tokens(number: int, rows: Any) -> np.ndarray:
        assert failures.parts is not None
        one = jax.tree.map(lambda x: x[number], failures.rows)
        return positions.query_token_scores(made, failures.parts, task, params, one, rows, number, together)

    label = base.said(made.method, made.damping)
    parts = None if failures.parts is None or failures.together else question_tokens
    return Answering(label, made.unit, strongest, by_group, document_tokens, parts)


# ---------------------------------------------------------------- of whole gradients


def of_whole(task: Task, params: Any, data: Any, failures: Failures, method: str, how: Pass) -> Answering:
    """All scores are held; the curvature's sums are kept in the pass's folder, so that a run that was stopped goes on.
    Raises as `methods.score`."""
    each, chosen = not failures.together, _plain(methods.get(method), task)
    ready = exact.ready(task, params, data, failures.measurement, failures.rows, chosen, how)
    ready = ready._replace(question=failures.measurement.name)
    values = exact.streamed(ready, params, data, failures.rows, chosen, each, how)
    base.finite(values, f"scores of {chosen.name}")
    label = base.said(chosen, ready.how.get("damping"))
    parts = None if failures.parts is None or failures.together else failures.parts
    both = _Tokens(ready, task, params, failures, dataclasses.replace(chosen, normalize="none"), chosen, each)
    made = of_scores(Scores(values, label, chosen.unit(failures.measurement), ready.how))
    return made._replace(document_tokens=both.of_documents, question_tokens=None if parts is None else both.of_question)


def of_scores(found: Scores) -> Answering:
    """Of scores that are held, without those of tokens."""
    values = found.values

    def strongest(k: int) -> Trace:
        order = np.argsort(-values, axis=0, kind="stable").T[:, : min(k, len(values))]
        other = np.argsort(values, axis=0, kind="stable").T[:, : min(k, len(values))]
        best, worst = (np.take_along_axis(values.T, ids, 1) for ids in (order, other))
        return Trace(order, best, other, worst, found.method, found.unit, found.how)

    def by_group(labels: Any) -> Totals:
        return grouping.totals(iter([(0, values)]), grouping.grouped(labels), len(values), found.method, found.unit)

    return Answering(found.method, found.unit, strongest, by_group, None, None)


def _plain(method: Method, task: Task) -> Method:
    """Without approximation of the directions, labels drawn `DRAWS` times a row (or the true ones, without outputs)."""
    its = method.curvature
    assert isinstance(its, Kronecker)
    source = Source("empirical") if task.outputs is None else dataclasses.replace(its.source, samples=DRAWS)
    return dataclasses.replace(method, curvature=dataclasses.replace(its, terms=0, query_rank=0, source=source))


class _Tokens(NamedTuple):
    """`- <grad f, H^-1 grad loss>` by the tokens of either; scaled to the score of the chosen method, which divides by
    norms of the row and of the question alone."""

    ready: Ready
    task: Task
    params: Any
    failures: Failures
    method: Method
    chosen: Method
    each: bool

    def of_documents(self, question: int, rows: Any) -> np.ndarray:
        queries = self._question(question)
        (chunk,) = exact.directions(self.ready, self.params, queries, self.method, self.each)
        along = shares.along_rows(self.task.loss)
        directions = blocks.split(self.ready.laid, chunk)
        found = np.concatenate([
            np.asarray(along(self.params, b.rows, directions))[b.mask, :, 0] for b in row.batches(rows, PIECE)
        ])  # fmt: skip
        return found * self._scale(queries, rows, found)

    def of_question(self, question: int, rows: Any) -> np.ndarray:
        assert self.failures.parts is not None
        queries, along = self._question(question), shares.along_rows(self.failures.parts)
        turned = self.ready._replace(asked=self.ready.laid)  # documents as questions: the curvature is symmetric
        chunks = exact.directions(turned, self.params, rows, self.method, True)
        found = np.concatenate([
            np.asarray(along(self.params, queries, blocks.split(self.ready.laid, chunk)))[0].T for chunk in chunks
        ])  # fmt: skip
        return found * self._scale(queries, rows, found)

    def _question(self, question: int) -> Any:
        at = np.array([question]) if self.each else np.arange(row.count(self.failures.rows))
        return row.take(self.failures.rows, at)

    def _scale(self, queries: Any, rows: Any, found: np.ndarray) -> np.ndarray:
        values = exact.streamed(self.ready, self.params, rows, queries, self.chosen, self.each, Pass(PIECE))[:, 0]
        whole = found.sum(1)
        return (np.where(whole == 0, 0.0, values) / np.where(whole == 0, 1.0, whole))[:, None]
