"""Training text made harmless and readable: control characters shown, secrets masked, tokens' shares as levels.

Everything here returns plain strings and numbers; the template escapes them. Training text is hostile by assumption.
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

LEVELS = 5
MASK = "•" * 8  # of whatever length the secret is
PATH = 240  # characters of a path that a page shows
SIDE = 96  # pixels of a picture that a page shows
LONGEST = 2000  # characters of one document that a page shows


class Piece(NamedTuple):
    """A stretch of one line: `css` is "p1".."p5" (proponent), "n1".."n5" (opponent), "" or with " masked"."""

    text: str
    css: str
    share: str


class Line(NamedTuple):
    number: int
    pieces: list[Piece]


def visible(text: str) -> str:
    """Control characters, bidi marks, lone surrogates and odd spaces as [U+001B]; newline and tab stay."""
    return "".join(_visible(c) for c in text)


def _visible(c: str) -> str:
    return c if c in "\n\t" or c.isprintable() else f"[U+{ord(c):04X}]"


def masks(text: str, sensitive: Sequence[str]) -> list[bool]:
    """For each character: does it belong to something that must not be shown?"""
    hidden = [False] * len(text)
    for secret in sensitive:
        at = text.find(secret) if secret else -1
        while at >= 0:
            hidden[at : at + len(secret)] = [True] * len(secret)
            at = text.find(secret, at + 1)
    return hidden


def masked(text: str, sensitive: Sequence[str]) -> str:
    """The text with every sensitive stretch as dots, control characters visible."""
    hidden = masks(text, sensitive)
    first = [h and not before for h, before in zip(hidden, [False, *hidden[:-1]], strict=True)]
    shown = zip(text, hidden, first, strict=True)
    return "".join((MASK if start else "") if h else _visible(c) for c, h, start in shown)


def file_name(path: str, sensitive: Sequence[str]) -> str:
    """A path on one line, masked, control characters visible, its middle left out where it is long."""
    shown = masked(path, sensitive).replace("\n", "[U+000A]").replace("\t", "[U+0009]")
    return shown if len(shown) <= PATH else f"{shown[: PATH // 2]}[...]{shown[-PATH // 2 :]}"


def highlight(text: str, first: int, tokens: Sequence[Sequence[Any]], sensitive: Sequence[str]) -> list[Line]:
    """The lines of a document, each token's share of the score as a level; `tokens` are `[start, stop, share]`."""
    shares: list[float] = [0.0] * len(text)
    for start, stop, share in tokens:
        for k in range(max(start, 0), min(stop, len(text))):
            shares[k] = share if abs(share) > abs(shares[k]) else shares[k]
    top = max((abs(s) for s in shares), default=0.0) or 1.0
    hidden = masks(text, sensitive)
    lines, at = [], 0
    for number, line in enumerate(text[:LONGEST].split("\n"), start=first):
        span = range(at, at + len(line))
        lines.append(Line(number, _pieces(text, span, shares, hidden, top)))
        at += len(line) + 1
    if lines and not lines[-1].pieces:
        lines.pop()
    if len(text) > LONGEST:
        lines.append(Line(lines[-1].number, [Piece(f"[{len(text) - LONGEST:,} more characters]", "", "")]))
    return lines


def _pieces(text: str, span: range, shares: list[float], hidden: list[bool], top: float) -> list[Piece]:
    pieces: list[Piece] = []
    start = span.start
    for k in span:
        last = k + 1 == span.stop
        if last or hidden[k + 1] != hidden[k] or (shares[k + 1] != shares[k] and not hidden[k]):
            share = max(shares[start : k + 1], key=abs)
            css = level(share / top)
            if hidden[k]:  # one piece without a number: those of its tokens would tell how it is spelled
                pieces.append(Piece(MASK, f"{css} masked".strip(), ""))
            else:
                pieces.append(Piece(visible(text[start : k + 1]), css, f"{share:+.2g}" if css else ""))
            start = k + 1
    return pieces


def level(part: float) -> str:
    """-1..1 to a class: "" for the smallest tenth, then five steps of either sign."""
    if abs(part) < 0.1:
        return ""
    return ("p" if part > 0 else "n") + str(min(LEVELS, 1 + int(abs(part) * LEVELS)))


def png(picture: Sequence[Any]) -> str:
    """A `data:` address of a PNG of `[H][W][C]` bytes, C 1 (grey) or 3 (colour); larger ones are thinned out."""
    step = -(-max(len(picture), len(picture[0])) // SIDE)
    picture = [row[::step] for row in picture[::step]]
    height, width, channels = len(picture), len(picture[0]), len(picture[0][0])
    kind = {1: 0, 3: 2}.get(channels, 0)
    keep = 3 if kind else 1
    raw = b"".join(b"\x00" + bytes(v for pixel in row for v in pixel[:keep]) for row in picture)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    found = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(found).decode()
