"""From raw files to a finished index: tokens a second, and how much of that time is spent on data.

Set-up: documents of `lm_srcmix` (without UIMJAX_DATA: random words) as gzipped JSON lines, a byte-level BPE, a
Llama-like decoder with random weights in a checkpoint folder. What is timed is what `uimjax trace` does before it asks:
reading, tokenising and cutting (`prepare`), then the index (`build_index`, rank 16, int8). Programs are compiled by a
build of a few rows before; compile time is told apart.

Claims: loading data, which is preparing the corpus and taking every batch from its mapped arrays, is less than 5% of
the whole; the memory does not grow with the documents (ten times as many take at most 1.15 times as much over what was
held before); the rows are those of the documents (every token counted once).

Run: python -m benchmarks.end_to_end --json
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

import uimjax as uj
from benchmarks import timing
from benchmarks.srcmix import bpe, config, sources
from uimjax import rows as row
from uimjax.corpora.prepared import Prepared
from uimjax.corpora.preparing import prepare

LENGTH, BATCH = 128, 32
CHOICES: dict[str, Any] = {"batch_size": BATCH, "coding": "int8", "shard_rows": 512}


def texts(count: int, length: int = 2441) -> list[str]:
    """So many documents, of about `length` characters."""
    if os.environ.get("UIMJAX_DATA"):
        made = sources(Path(os.environ["UIMJAX_DATA"]), count, length)
        found = [text for each in zip_longest(*made.values()) for text in (line["text"] for line in each if line)]
    else:
        rng = np.random.default_rng(0)
        words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 9))) for _ in range(3000)]
        found = [" ".join(rng.choice(words, length // 6)) for _ in range(count)]
    return found[:count]


def files(folder: Path, documents: list[str]) -> tuple[Path, Path]:
    """(a checkpoint folder without weights, a file of the documents)."""
    model, path = folder / "model", folder / "documents.jsonl.gz"
    model.mkdir()
    bpe(documents).save(str(model / "tokenizer.json"))
    (model / "config.json").write_text(json.dumps(config(4, 128)))
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    return model, path


def fetched(corpus: Prepared) -> float:
    """Seconds of taking every batch from the mapped arrays, and nothing else."""
    start, data = time.perf_counter(), corpus.rows
    for batch in row.batches(data, BATCH):
        assert batch.rows["tokens"].shape == (BATCH, LENGTH)
    return time.perf_counter() - start


def run(folder: Path, documents: list[str]) -> dict[str, Any]:
    model, path = files(folder, documents)
    its = uj.initial(model)
    assert its.tokenizer is not None
    few = prepare([_some(folder, documents[:40])], its.tokenizer, folder / "few", length=LENGTH)
    start = time.perf_counter()
    uj.build_index(its.task, its.params, few.rows, folder / "few-index", **CHOICES)
    compile_s, peak = time.perf_counter() - start, timing.Peak()
    start = time.perf_counter()
    corpus = prepare([path], its.tokenizer, folder / "corpus", length=LENGTH)
    prepare_s = time.perf_counter() - start
    start = time.perf_counter()
    index = uj.build_index(its.task, its.params, corpus.rows, folder / "index", **CHOICES)
    build_s = time.perf_counter() - start
    tokens, fetch_s = corpus.manifest["tokens"], fetched(corpus)
    counted = sum(len(its.tokenizer.encode(text).ids) for text in documents)
    assert index.rows == corpus.manifest["rows"]
    assert tokens == counted == int(np.asarray(corpus.rows["counted"], np.int64).sum()), "every token once"
    return {
        "documents": len(documents), "tokens": tokens, "first_build_s": round(compile_s, 2),
        "prepare_s": round(prepare_s, 3), "fetch_s": round(fetch_s, 3), "build_s": round(build_s, 2),
        "tokens_per_s": round(tokens / (prepare_s + build_s)),
        "data_tokens_per_s": round(tokens / (prepare_s + fetch_s)),
        "data_share": (prepare_s + fetch_s) / (prepare_s + build_s), "rise_mib": round(peak.mib()),
    }  # fmt: skip


def _some(folder: Path, documents: list[str]) -> Path:
    path = folder / "few.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def child(count: int) -> None:
    """One size in this process: one JSON object."""
    with tempfile.TemporaryDirectory() as at:
        print(json.dumps(run(Path(at), texts(count))))


def main() -> None:
    if "--child" in sys.argv:
        return child(int(sys.argv[-1]))
    args = timing.arguments(__doc__ or "")
    result: dict[str, Any] = {}
    for count in (60, 120) if args.quick else (200, 2000):
        command = [sys.executable, "-m", "benchmarks.end_to_end", "--child", str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result[f"{count} documents"] = json.loads(done.stdout.splitlines()[-1])
    small, large = result.values()
    result = result | {
        "data_share": large["data_share"], "memory_tenfold": large["rise_mib"] / small["rise_mib"],
        "met": large["data_share"] < 0.05 and large["rise_mib"] < 1.15 * small["rise_mib"], **timing.machine(),
    }  # fmt: skip
    return timing.report(result, args.json)


if __name__ == "__main__":
    main()
