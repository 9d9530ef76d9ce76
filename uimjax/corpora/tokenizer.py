"""Byte-level and trained BPE tokenizers (Hugging Face `tokenizers`), and lines to tokens with their places.

Every text is encoded line by line, the newline included, so tokens never cross a line and the tokens of a text are
those of its lines side by side. No text can hold a special token: the document mark lies outside the vocabulary.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from uimjax.errors import UsageError
from uimjax.store import digest_text
from uimjax.store.base import atomic

BYTES, MOST = 256, 1 << 20
LONGEST = 1000  # characters of a line that the trainer sees as one


class Encoded(NamedTuple):
    """One line: `ids` `[t]`, and the characters `[start, stop)` of the line that each token covers."""

    ids: np.ndarray
    start: np.ndarray
    stop: np.ndarray


class Tokenizer(NamedTuple):
    """`mark` stands before every document and on padding; it is the last of `size` ids and no text produces it."""

    engine: tokenizers.Tokenizer
    size: int

    @property
    def mark(self) -> int:
        return self.size - 1

    @property
    def digest(self) -> str:
        return digest_text(self.engine.to_str())

    def save(self, path: Path) -> None:
        """`tokenizer.json`, as `tokenizers` reads it."""
        with atomic(path) as temporary:
            temporary.write_text(self.engine.to_str(pretty=True))

    def encode(self, lines: Sequence[str]) -> list[Encoded]:
        """One `Encoded` a line."""
        found = self.engine.encode_batch(list(lines), add_special_tokens=False)
        return [_encoded(one) for one in found]


def _encoded(one: tokenizers.Encoding) -> Encoded:
    places = np.asarray(one.offsets, np.int32).reshape(-1, 2)
    return Encoded(np.asarray(one.ids, np.int32), places[:, 0], places[:, 1])


def byte_tokenizer() -> Tokenizer:
    """One token a byte: 256 ids and the mark."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    return _finished(engine)


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE (arXiv 1508.07909; Radford et al. 2019) of at most `size` ids, the mark included.

    Raises:
        UsageError: fewer ids than the bytes and the mark.
    """
    if not BYTES + 2 <= size <= MOST:
        raise UsageError(f"a BPE vocabulary of {size} was asked for; {BYTES + 2} to {MOST} was wanted (or `bytes`)")
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    engine.train_from_iterator((part for text in texts for part in _parts(text)), trainer)
    return _finished(engine)


def _parts(text: str) -> Iterable[str]:
    """Lines, long ones cut: the trainer's time grows with the square of the longest word."""
    for line in text.split("\n"):
        yield from (line[k : k + LONGEST] for k in range(0, len(line), LONGEST))


def _finished(engine: tokenizers.Tokenizer) -> Tokenizer:
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    engine.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return Tokenizer(engine, engine.get_vocab_size() + 1)
