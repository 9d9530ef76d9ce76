"""`uimjax trace` of a model of real size on one accelerator, from files to answers, and its plan.

Set-up: a shape of `configs/trace` (1B parameters by default) with random weights, saved as a checkpoint folder; a BPE
of the documents; failures that are what stands in some of them: a beginning, and the words that follow it there.
Documents are those of `lm_srcmix`, cut at 6,000 characters (without UIMJAX_DATA: random words).

Claims: the command goes from the folder and the files to its answer, in the memory that `uimjax plan` says of the
shapes alone (in a process of its own, on the CPU), within a quarter; each failure's own document is among its ten
proponents; tokens a second once all is compiled, and how long each stage took. `--quick`: a tiny shape that runs
anywhere, against no chip's memory.

Run: UIMJAX_DATA=... python -m benchmarks.gpu_trace --json [--only pythia-1b] > gpu_trace-<card>.json
"""

import faulthandler
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import yaml

import uimjax as uj
from benchmarks import timing
from benchmarks.end_to_end import texts
from benchmarks.srcmix import bpe, config
from uimjax.commands.failures import answered
from uimjax.config import FailuresConfig
from uimjax.machine import CHIPS

DOCUMENTS, ASKED, CHARACTERS, WORDS = 384, 8, 6000, 8192
STALLED_S = 45
SHARD = 64  # rows: the first shard has the compiling in it, the others tell the rate
CONFIGS = Path(__file__).parents[1] / "configs" / "trace"
MODELS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


class Stages:
    """A progress that notes how long each stage and its first item took, and the most device memory by then."""

    def __init__(self):
        self.noted: dict[str, dict[str, Any]] = {}

    def __call__(self, items: Iterable[Any], what: str, unit: str = "", skip: int = 0) -> Iterator[Any]:
        del unit, skip
        start, ends = time.perf_counter(), []
        for item in items:
            yield item
            ends.append(time.perf_counter())
        self.note(what, start, first=round(ends[0] - start, 2), items=len(ends))

    def note(self, what: str, start: float, **more: float) -> None:
        self.noted[what] = {"seconds": round(time.perf_counter() - start, 2), "peak_device_mib": peak_mib()} | more
        print(f"{what}: {self.noted[what]}", file=sys.stderr, flush=True)


def peak_mib() -> int:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) >> 20


def files(folder: Path, model: str, documents: list[str], quick: bool) -> tuple[dict[str, Any], Path]:
    """(the values of a config, its checkpoint folder without weights)."""
    values = yaml.safe_load((CONFIGS / f"{'pythia-160m' if quick else model}.yaml").read_text())
    start = folder / "start"
    start.mkdir()
    values["shard_rows"] = SHARD
    if quick:
        values |= {"length": 128, "batch_size": 4, "dtype": "float32"}
        (start / "config.json").write_text(json.dumps(config(2, 64, WORDS)))
    else:
        shutil.copy(CONFIGS / "shapes" / model / "config.json", start)
    bpe(documents, WORDS).save(str(start / "tokenizer.json"))
    (folder / "documents.jsonl").write_text(
        "".join(json.dumps({"id": f"d{k}", "text": text}) + "\n" for k, text in enumerate(documents))
    )
    asked = [documents[k] for k in own(len(documents))]
    lines = [{"prompt": text[:200], "bad": text[200:400]} for text in asked]
    (folder / "failures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    at = {"model": str(folder / "model"), "corpus": [str(folder / "documents.jsonl")], "id_column": "id"}
    return values | at | {"queries": str(folder / "failures.jsonl")}, start


def own(count: int) -> list[int]:
    """Numbers of the documents that failures are taken from."""
    return list(range(0, count, count // ASKED))[:ASKED]


def planned_mib(folder: Path, values: dict[str, Any], start: Path, count: int) -> int:
    """What `uimjax plan` says of the shapes, on the CPU of this machine."""
    path, kind = folder / "plan.yaml", jax.devices()[0].device_kind.lower()
    path.write_text(yaml.safe_dump(values))
    chip = next((name for name in CHIPS if name.split("-")[0] in kind), "h100")
    call = "import sys; from uimjax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", call, "plan", str(path), "--model", str(start), "--chip", chip]
    command += ["--count", str(count), "--json"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["device_bytes"] >> 20


def found(answer: dict[str, Any], count: int) -> list[int | None]:
    """Rank, from 1, of each failure's own document among its proponents."""
    named = [[one["id"] for one in failure["proponents"]] for failure in answer["failures"]]
    return [ids.index(f"d{k}") + 1 if f"d{k}" in ids else None for ids, k in zip(named, own(count), strict=True)]


def run(folder: Path, name: str, quick: bool) -> dict[str, Any]:
    stages = Stages()
    documents = texts(64 if quick else DOCUMENTS, CHARACTERS)
    values, start = files(folder, name, documents, quick)
    began = time.perf_counter()
    model = uj.initial(start, dtype=jnp.dtype(values["dtype"]), scanned=True)
    uj.save(model, folder / "model")
    parameters = sum(x.size for x in jax.tree.leaves(model.params))
    del model
    stages.note("random weights drawn and saved", began)
    began = time.perf_counter()
    answer = answered(FailuresConfig(**values), folder / "out", stages)
    stages.note("all, from files to answers", began)
    rows, ranks = answer["corpus"]["rows"], found(answer, len(documents))
    planned = planned_mib(folder, values, start, rows)
    building = stages.noted["sketching gradients"]
    rest = building["seconds"] - building["first"]
    over = planned / max(stages.noted["all, from files to answers"]["peak_device_mib"], 1)  # asking counts as well
    return {
        "parameters": parameters, "corpus": answer["corpus"], "batch_size": values["batch_size"],
        "method": answer["method"], "stages": stages.noted, "rank_of_own_document": ranks,
        "tokens_per_s": round((rows - SHARD) * values["length"] / rest),
        "planned_device_mib": planned, "planned_over_taken": round(over, 3),
        "met": all(rank is not None for rank in ranks) and (quick or 0.8 <= over <= 1.25),
    }  # fmt: skip


def main() -> None:
    args, result = timing.arguments(__doc__ or "", only=MODELS), {}
    faulthandler.dump_traceback_later(STALLED_S, repeat=True)  # where it was, should the machine's time end first
    for name in args.only or ["pythia-1b"]:
        with tempfile.TemporaryDirectory() as at:
            result["tiny" if args.quick else name] = run(Path(at), name, args.quick)
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return timing.report(result | {"commit": done.stdout.strip(), **timing.machine()}, args.json)


if __name__ == "__main__":
    main()
