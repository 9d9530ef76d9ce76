"""What every gradient method has to beat: chance, losses, norms, representations, words."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import factors as algebra
from uimjax import rows as row
from uimjax.errors import UnknownNameError, UsageError
from uimjax.interpret import base, lexical, representation
from uimjax.interpret.base import Scores
from uimjax.taps import Sites, capture
from uimjax.task import RELATIVE, Task

LEXICAL = ("bm25", "ngram")  # they read texts
NAMES = ("random", "loss", "grad_norm", "rep_sim", "representer", *LEXICAL)
Texts = tuple[Sequence[str], Sequence[str]]


def score(
    name: str, task: Task, params: Any, data: Any, queries: Any, each: bool, batch_size: int, seed: int = 0,
    texts: Texts | None = None,
) -> Scores:  # fmt: skip
    """`[N, Q]` with `each`, else `[N, 1]` of the queries' mean. `uj.score` calls this.

    Raises:
        UnknownNameError; UsageError: the task or the call lacks what the baseline compares.
    """
    if name not in NAMES:
        raise UnknownNameError("baseline", name, NAMES)
    if name in LEXICAL:
        if texts is None:
            raise UsageError(f"{name} compares words: pass texts=(texts of the training rows, texts of the queries)")
        values = {"bm25": lexical.bm25, "ngram": lexical.ngram}[name](*texts)
    elif name == "rep_sim":
        values = representation.rep_sim(task, params, data, queries, batch_size)
    elif name == "representer":
        found = representation.representer(task, params, data, queries, batch_size)
        return found if each else found._replace(values=found.values.mean(1, keepdims=True))
    else:
        asked = row.count(queries) if each else 1
        if name == "random":
            return Scores(np.random.default_rng(seed).normal(size=(row.count(data), asked)), name, RELATIVE)
        program = _row_numbers(task, base.training_sites(task, params, data, check=False), name)
        found = np.repeat(_mapped(program, params, data, batch_size)[:, None], asked, 1)
        return Scores(found, name, "nats" if name == "loss" else "norm of the gradient")
    return Scores(values if each else values.mean(1, keepdims=True), name, RELATIVE)


@functools.lru_cache(maxsize=16)
def _row_numbers(task: Task, found: Sites, name: str):
    if name == "loss":
        return jax.jit(lambda params, rows: jax.vmap(lambda r: jnp.sum(task.loss(params, r)))(rows))
    return jax.jit(lambda params, rows: algebra.norm(found, capture(found, params, rows)[1]))


def _mapped(program: Callable, params: Any, data: Any, batch_size: int) -> np.ndarray:
    parts = [np.asarray(program(params, b.rows))[: int(b.mask.sum())] for b in row.batches(data, batch_size)]
    return np.concatenate(parts)
