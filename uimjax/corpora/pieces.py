"""Documents cut into rows of tokens, each row with the characters it says: from text, or from tokens as they were kept.

*Guarantee*: `text[start:stop]` of a piece's document is what the piece's tokens say.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders

Place = tuple[int, int]


class Piece(NamedTuple):
    """A row: its tokens, characters `[start, stop)` of its document, and those of each token (or none yet)."""

    tokens: Sequence[int]
    start: int
    stop: int
    places: list[Place]


def pieces(encoded: tokenizers.Encoding, length: int) -> Iterator[Piece]:
    """A document's tokens cut into rows. A row never begins inside a character of several tokens."""
    ids, places = encoded.ids, encoded.offsets
    first = 0
    while first < len(ids):
        stop = min(first + length, len(ids))
        while stop < len(ids) and stop > first + 1 and places[stop][0] < places[stop - 1][1]:
            stop -= 1
        said = [place for place in places[first:stop] if place[1] > place[0]]  # special tokens stand for no character
        yield Piece(ids[first:stop], said[0][0] if said else 0, said[-1][1] if said else 0, places[first:stop])
        first = stop


def kept_pieces(ids: np.ndarray, tokenizer: tokenizers.Tokenizer, length: int) -> tuple[str, list[Piece]]:
    """(the text, rows) of a document that was kept as tokens: its text is what its rows say, one after the other (a
    character over the border of two rows is lost to both)."""
    rows = [ids[first : first + length].tolist() for first in range(0, len(ids), length)]
    texts = tokenizer.decode_batch(rows, skip_special_tokens=True)
    stops = np.cumsum([len(text) for text in texts]).tolist()
    starts = [0, *stops[:-1]]
    return "".join(texts), [Piece(*its, []) for its in zip(rows, starts, stops, strict=True)]


def placed(piece: Piece, tokenizer: tokenizers.Tokenizer) -> Piece:
    """The same with the characters of each token, spelled out one after the other: a character of several tokens is
    the last one's."""
    stream, at, places = decoders.DecodeStream(skip_special_tokens=True), piece.start, []
    for token in piece.tokens:
        said = stream.step(tokenizer, int(token)) or ""
        places.append((at, min(at + len(said), piece.stop)))
        at = places[-1][1]
    return piece._replace(places=places)
