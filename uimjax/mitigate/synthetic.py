"""Synthetic rows to tune on.

- `swapped`: counterfactual texts, in which the words of two groups change places (CDA: Lu et al. 2018, arXiv
  1807.11714; Zmigrod et al. 2019, arXiv 1906.04571).
- `filled`: templates with every choice of their words, so that no two words keep company more often than others.
- `continued`: what the model itself writes after the beginnings of rows: self-distillation.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax.errors import UsageError
from uimjax.task import Task

CHOICE = re.compile(r"\{([^{}]*)\}")
MOST = 4096  # texts of one template


def swapped(texts: Iterable[str], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Each text with the words of every pair in each other's place, whole words alone; a word keeps its capitals.

    Raises:
        UsageError: no pair, a blank word, or a word in two places.
    """
    words = [word.lower() for pair in pairs for word in pair]
    if not words or not all(word.strip() for word in words) or len(set(words)) < len(words):
        raise UsageError(f"pairs {list(pairs)} arrived; words that stand in one pair each were wanted")
    partner = {a.lower(): b.lower() for a, b in pairs} | {b.lower(): a.lower() for a, b in pairs}
    found = re.compile(
        rf"(?<!\w)({'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})(?!\w)", re.IGNORECASE
    )

    def other(match: re.Match[str]) -> str:
        word, new = match[0], partner[match[0].lower()]
        if word.isupper() and sum(map(str.isalpha, word)) > 1:
            return new.upper()
        return new[:1].upper() + new[1:] if word[:1].isupper() else new

    return [found.sub(other, text) for text in texts]


def filled(template: str) -> list[str]:
    """Every text that a template stands for: `the {nurse|pilot} said {he|she} is late` for four of them.

    Raises:
        UsageError: no choice in it, a brace without its partner, or more than `MOST` texts.
    """
    parts = CHOICE.split(template)
    words = [part.split("|") for part in parts[1::2]]
    if not words or any("{" in part or "}" in part for part in parts[::2]) or min(map(len, words)) < 2:
        raise UsageError(f"template {template!r}: choices between braces were wanted, {{he|she}}, each of two or more")
    if np.prod([len(its) for its in words], dtype=float) > MOST:
        raise UsageError(f"template {template!r} stands for more than {MOST} texts; cut it into several")
    made = []
    for chosen in itertools.product(*words):
        texts = [*itertools.chain.from_iterable(zip(parts[::2], chosen, strict=False)), parts[-1]]
        made.append("".join(texts))
    return made


def continued(
    task: Task, params: Any, rows: Any, prompt: float = 0.25, temperature: float = 1.0, seed: int = 0,
    batch_size: int = 8,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Rows `{"tokens", "counted"}` `[N, T]` that begin as `rows` do, with the share `prompt` of their tokens (one at
    least), and go on as the model says, drawn at the `temperature`; as many tokens count as before. A token costs a
    pass over its row.

    Raises:
        UsageError: the task has no outputs (logits `[T, V]`), or a share or temperature that is none.
    """
    if task.outputs is None:
        raise UsageError("rows are continued by the model's logits, and the task has no outputs")
    if not 0 < prompt < 1 or not temperature > 0:
        raise UsageError(f"prompt={prompt}, temperature={temperature} arrived; (0, 1) and above 0 were wanted")
    given, counted = np.asarray(rows["tokens"]), np.asarray(rows["counted"])
    many = (counted > 0).sum(1)
    starts = np.maximum(1, np.floor(prompt * many)).astype(np.int32)
    tokens = _written(task, params, rows, starts, many, temperature, seed, batch_size)
    return {"tokens": np.where(counted > 0, tokens, given).astype(given.dtype), "counted": counted.copy()}


def answered(task: Task, params: Any, rows: Any, tokens: int, batch_size: int = 8) -> list[np.ndarray]:
    """What the model says by greedy decoding from the first counted token of each row on, ids of at most so many tokens
    (a row ends at its length).

    Raises:
        UsageError: the task has no outputs (logits `[T, V]`).
    """
    if task.outputs is None:
        raise UsageError("an answer is decoded from the model's logits, and the task has no outputs")
    starts = np.maximum(1, np.asarray(rows["counted"]).argmax(1)).astype(np.int32)
    stops = np.minimum(starts + tokens, np.asarray(rows["tokens"]).shape[1])
    made = _written(task, params, rows, starts, stops, 0.0, 0, batch_size)
    return [line[a:b] for line, a, b in zip(made, starts, stops, strict=True)]


def _written(
    task: Task, params: Any, rows: Any, starts: np.ndarray, stops: np.ndarray, temperature: float, seed: int,
    batch_size: int,
) -> np.ndarray:  # fmt: skip
    """Tokens `[N, T]`, those from `starts` to `stops` `[N]` as the model says; a key of its own for each row."""
    program, parts, size = _writer(task, temperature), [], min(batch_size, row.count(rows))
    places = {"rows": rows, "starts": starts, "stops": np.asarray(stops)}
    for number, batch in enumerate(row.batches(places, size)):
        keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(seed), k))(number * size + np.arange(size))
        last = np.asarray(batch.rows["stops"]).max()
        made = program(params, batch.rows["rows"], batch.rows["starts"], last, keys)
        parts.append(np.asarray(made)[: int(batch.mask.sum())])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _writer(task: Task, temperature: float):
    def write(params: Any, rows: Any, starts: Any, stop: Any, keys: Any) -> Any:
        assert task.outputs is not None  # `continued` has seen to it
        outputs = task.outputs

        def step(t: Any, tokens: Any) -> Any:
            logits = jax.vmap(lambda k: outputs(params, {**row_at(k), "tokens": tokens[k]})[t - 1])(
                jnp.arange(len(tokens))
            )
            drawn = jnp.argmax(logits, -1)
            if temperature:
                drawn = jax.vmap(lambda key, z: jax.random.categorical(jax.random.fold_in(key, t), z))(
                    keys, logits.astype(jnp.float32) / temperature
                )
            return tokens.at[:, t].set(jnp.where(t >= starts, drawn, tokens[:, t]).astype(tokens.dtype))

        row_at = lambda k: jax.tree.map(lambda x: x[k], rows)  # noqa: E731  # once
        return jax.lax.fori_loop(1, stop, step, jnp.asarray(rows["tokens"]))

    return jax.jit(write)
