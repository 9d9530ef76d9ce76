"""An approximate index of the stored rows (extra `ann`: usearch), for cosine methods: a graph of near neighbours.

Kept beside the shards as `ann.usearch`, with its recall against the exact answer, measured when it is made: rows of the
index stand for questions, and the share of their exact top 20 (themselves left out) that the graph finds.
"""

from pathlib import Path
from typing import Any

import numpy as np

from uimjax import store
from uimjax.errors import CorruptError, MismatchError, MissingFileError, UsageError
from uimjax.interpret import base
from uimjax.interpret.hits import Trace
from uimjax.interpret.index import JOURNAL, Index, open_index
from uimjax.interpret.strongest import Stored, strongest
from uimjax.progress import Progress, quiet
from uimjax.store.base import atomic

GRAPH, RECORD = "ann.usearch", "ann.json"
ASKED, TOP = 256, 20


def build_ann(
    folder: str | Path, *, connectivity: int = 32, expansion: int = 256, progress: Progress = quiet
) -> dict[str, Any]:
    """Make the graph of a finished index; what it is and what it finds (`recall`). Rows without a gradient are not in
    it. `connectivity`: neighbours of a node; `expansion`: nodes looked at, when it is built and asked.

    Raises:
        UsageError: usearch is not installed, or the folder is a URL. As `open_index`.
    """
    root = store.on_disk(folder)
    held, library = open_index(root), _library()
    width = held.manifest["width"]
    graph = library.Index(
        ndim=width, metric="ip", dtype="f16", connectivity=connectivity, expansion_add=expansion,
        expansion_search=expansion,
    )  # fmt: skip
    for entry, shard in zip(held.entries, progress(_shards(held), "joining neighbours", unit="shards"), strict=True):
        real = shard.norm > 0
        graph.add(np.arange(entry.start, entry.stop)[real], np.asarray(held.vectors(shard))[real])
    with atomic(root / GRAPH) as temporary:
        graph.save(str(temporary))
    found = {
        "of": _of(held), "rows": len(graph), "width": width, "connectivity": connectivity, "expansion": expansion,
        "digest": store.digest_file(root / GRAPH), "top": TOP, **_recall(held, graph),
    }  # fmt: skip
    store.write_manifest(root / RECORD, found)
    return found


class _shards:  # noqa: N801  # a sequence for the progress bar, read once
    def __init__(self, held: Index):
        self.held = held

    def __len__(self) -> int:
        return len(self.held.entries)

    def __iter__(self):
        return self.held.shards()


def _library() -> Any:
    try:
        from usearch import index
    except ImportError as error:
        raise UsageError(
            "an approximate index takes usearch: pip install 'uimjax[ann]', or trace without ann"
        ) from error
    return index


def _of(held: Index) -> str:
    return store.digest_bytes((held.folder / JOURNAL).read_bytes())


def _recall(held: Index, graph: Any) -> dict[str, Any]:
    """Of rows that stand for questions, evenly spaced: of their nearest, and of the farthest (`recall_opponents`)."""
    ids = np.unique(np.linspace(0, held.rows - 1, min(held.rows, ASKED)).astype(np.int64))
    rows, norms = [], []
    for entry, shard in zip(held.entries, held.shards(), strict=True):
        mine = ids[(ids >= entry.start) & (ids < entry.stop)] - entry.start
        rows.append(np.asarray(held.vectors(shard))[mine])
        norms.append(shard.norm[mine])
    asked, real = np.concatenate(rows), np.concatenate(norms) > 0
    asked, ids = asked[real], ids[real]
    k = min(TOP, held.rows - 1)
    stream = (
        Stored(entry.start, np.asarray(held.vectors(shard)), np.asarray(shard.norm > 0, np.float32))
        for entry, shard in zip(held.entries, held.shards(), strict=True)
    )
    if not len(ids) or k < 1:
        return {"recall": 1.0, "recall_opponents": 1.0, "asked": 0}
    exact = strongest(stream, asked, k + 1)
    found = {}
    for name, ends, sign in (("recall", exact.largest_index, 1), ("recall_opponents", exact.smallest_index, -1)):
        near = _searched(graph, sign * asked, k + 1)[0]
        pairs = ((a[a != own][:k], b[b != own][:k]) for a, b, own in zip(ends, near, ids, strict=True))
        found[name] = round(float(np.mean([len(np.intersect1d(*pair)) / k for pair in pairs])), 4)
    return found | {"asked": len(ids)}


def _searched(graph: Any, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(row ids, inner products) `[Q, k]`, the largest first; -1 where the graph has fewer."""
    ids, scores = np.full((len(vectors), k), -1, np.int64), np.full((len(vectors), k), -np.inf, np.float32)
    for q, vector in enumerate(np.asarray(vectors, np.float32)):
        found = graph.search(vector, min(k, len(graph)))
        ids[q, : len(found.keys)], scores[q, : len(found.keys)] = found.keys.astype(np.int64), 1 - found.distances
    return ids, scores


def said(record: dict[str, Any]) -> str:
    """What a graph finds of its own rows' lists."""
    both = f"{record['recall']:.3f}, of opponents {record['recall_opponents']:.3f}"
    return f"recall@{record['top']} {both} where rows of the index were asked"


def top(asked: Any, k: int) -> Trace:
    """The k strongest proponents and opponents of a question made ready, by the graph alone.

    Raises:
        UsageError: the scores are no cosines with stored rows. MissingFileError: there is no graph. MismatchError: the
        index has changed since. CorruptError: its bytes have.
    """
    held: Index = asked.held
    if asked.method.of_rows is not None or asked.method.normalize != "unit":
        raise UsageError(
            f"{asked.method.name} is no cosine with the stored rows, and an approximate index holds nothing else: "
            "leave ann out, or take grad_cos or retain_cos"
        )
    folder = store.on_disk(str(held.folder))
    if not (folder / RECORD).exists() or not (folder / GRAPH).exists():
        raise MissingFileError(f"{folder} has no approximate index. Make it with `uimjax index ann {folder}`.")
    record = store.read_manifest(folder / RECORD)
    if record["of"] != _of(held):
        raise MismatchError(f"{folder / GRAPH} is of other rows: `uimjax index ann {folder}` makes it again")
    if store.digest_file(folder / GRAPH) != record["digest"]:
        raise CorruptError(
            f"{folder / GRAPH} differs from what was written: `uimjax index ann {folder}` makes it again"
        )
    graph = _library().Index.restore(str(folder / GRAPH), view=True)
    graph.expansion_search = record["expansion"]  # no part of the file
    directions = np.asarray(asked.directions, np.float32)
    length = np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-30)  # f16 takes unit vectors best
    k = min(k, held.rows)
    (ids, high), (low_ids, low) = (_searched(graph, sign * directions / length, k) for sign in (1, -1))
    label = f"{base.said(asked.method, asked.damping)}, approximate ({said(record)})"
    return Trace(ids, high * length, low_ids, -low * length, label, asked.unit, {"ann": record})
