"""What a model says to what it failed on, before and after a fix: the outputs that people judge and pages show."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers

from uimjax import rows as row
from uimjax.answers.failures import Failures
from uimjax.corpora.tokenizer import Tokenizer
from uimjax.mitigate.synthetic import answered
from uimjax.report import markup
from uimjax.study.outputs import Output
from uimjax.task import Task

MOST = 12  # of what it failed on
TOKENS = 16  # of an answer to a planted failure
LONGER = 40  # of an answer to a failure of the reader's own
SEEN = "What does the picture show?"


class Voice(NamedTuple):
    """`asked`: (id, prompt, picture or "") of each; `says(params)`: a text of each."""

    asked: Sequence[tuple[str, str, str]]
    says: Callable[[Any], list[str]]

    def outputs(self, said: dict[str, list[str]]) -> list[Output]:
        """What was said, by arm, as people judge it."""
        return [Output(*what, {arm: texts[k] for arm, texts in said.items()}) for k, what in enumerate(self.asked)]


def of_pictures(task: Task, rows: Any) -> Voice:
    """Which class a classifier sees in the first pictures of `rows`."""
    some = row.take(rows, np.arange(min(MOST, row.count(rows))))
    pictures = np.clip(np.round(255 * np.asarray(some["image"])), 0, 255).astype(np.uint8)
    asked = [(f"picture-{k}", SEEN, markup.png(picture.tolist())) for k, picture in enumerate(pictures)]

    def says(params: Any) -> list[str]:
        assert task.outputs is not None  # a classifier's
        best = jax.vmap(task.outputs, (None, 0))(params, some).argmax(-1)
        return [f"class {int(k)}" for k in np.asarray(best)]

    return Voice(asked, says)


def of_texts(task: Task, rows: Any, tokenizer: Tokenizer, most: int = MOST) -> Voice:
    """How a decoder goes on after the first prompts of `rows`, so many at most."""
    some = row.take(rows, np.arange(min(most, row.count(rows))))
    decode = lambda ids: tokenizer.engine.decode([int(k) for k in ids if k < tokenizer.mark])  # noqa: E731  # no marks
    return _spoken(task, some, decode, TOKENS)


def of_probe(task: Task, probe: Any, corpus: Any) -> Voice | None:
    """Of a probe's rows, or of the bad side of its pairs; None where it is of the course of a training."""
    while isinstance(probe, (Mapping, tuple)) and not (isinstance(probe, Mapping) and {"tokens", "image"} & {*probe}):
        if not probe:
            return None
        probe = next(iter(probe.values())) if isinstance(probe, Mapping) else probe[0]
    if not isinstance(probe, Mapping):
        return None
    return of_pictures(task, probe) if "image" in probe else of_texts(task, probe, corpus.tokenizer)


def of_failures(task: Task, failures: Failures, tokenizer: tokenizers.Tokenizer) -> Voice:
    """How the reader's own model answers its failures."""
    rows = jax.tree.map(np.asarray, {name: failures.rows["bad"][name] for name in ("tokens", "counted")})
    voice = _spoken(task, rows, lambda ids: tokenizer.decode([int(k) for k in ids]), LONGER)
    asked = [(str(line.get("id", k)), str(line["prompt"]), "") for k, line in enumerate(failures.lines)]
    return voice._replace(asked=asked)


def _spoken(task: Task, rows: Any, decode: Callable[[Any], str], tokens: int) -> Voice:
    given = zip(np.asarray(rows["tokens"]), np.asarray(rows["counted"]), strict=True)
    asked = [(f"prompt-{k}", decode(line[: int(counted.argmax())]), "") for k, (line, counted) in enumerate(given)]
    return Voice(asked, lambda params: [decode(ids) for ids in answered(task, params, rows, tokens)])
