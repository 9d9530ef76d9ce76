"""The corpus card finds what was planted, and streams a gigabyte at flat memory.

Set-up, on 2,522 documents of seven sources (`lm_srcmix`, UIMJAX_DATA): 2% of the documents get an e-mail address or a
payment card whose digits sum up, or both; copies of 3% stand at the end, one word in a hundred changed; ten professions
stand in 60 sentences each, 95% of one gender, ten others as the corpus is. The card knows nothing of it.
Claims: of each finding precision and recall against the truth (personal data by place; copies by pair; the twenty
professions, the others being what the corpus makes them); of real personal data (`priv_synth_pii`) likewise; and the
most memory of all its processes at 1 GB is at most 15% above that at 100 MB (100 and 10 MB with --quick).
Run: UIMJAX_DATA=... python -m benchmarks.corpus_card --json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import timing
from uimjax.census import personal
from uimjax.config import CensusConfig, parse
from uimjax.workflow.surveying import survey

SKEWED = {"female": ["plumber", "surgeon", "pilot", "economist", "mechanic"],
          "male": ["librarian", "dancer", "receptionist", "therapist", "designer"]}  # fmt: skip
USUAL = [
    "baker",
    "cashier",
    "dentist",
    "editor",
    "journalist",
    "musician",
    "photographer",
    "psychologist",
    "chef",
    "coach",
]
EACH = 60  # sentences of a profession
WORD = {"female": "she", "male": "he"}
REAL = {"CREDIT_CARD": "card", "PHONE_NUMBER": "phone", "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "US_SSN": "ssn",
        "IP_ADDRESS": "ip"}  # fmt: skip


def documents(data: Path) -> list[dict[str, Any]]:
    table = pq.read_table(data / "lm_srcmix" / "docs.parquet").to_pylist()
    return [{"id": line["doc_id"], "source": line["source"], "text": line["text"]} for line in table]


def number(rng: np.random.Generator) -> str:
    """Of a card: 15 digits and the one that makes Luhn's sum, by trying all ten."""
    digits = "4" + "".join(map(str, rng.integers(10, size=14)))
    whole = next(digits + str(k) for k in range(10) if personal.luhn(digits + str(k)))
    return " ".join(whole[k : k + 4] for k in range(0, 16, 4)) if rng.random() < 0.5 else whole


def planted(
    lines: list[dict[str, Any]], usual: float, rng: np.random.Generator
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the corpus with all plants, the truth)"""
    lines = [dict(line) for line in lines]
    spans = []
    for k in rng.permutation(len(lines))[: round(0.02 * len(lines))]:
        for kind in rng.permutation(["email", "card"])[: rng.integers(1, 3)]:
            name = "".join(chr(97 + c) for c in rng.integers(26, size=7))
            value = f"{name}.{rng.integers(99)}@mail{rng.integers(999)}.example.net" if kind == "email" else number(rng)
            at = lines[k]["text"].find(" ", rng.integers(len(lines[k]["text"]))) + 1
            lines[k]["text"] = lines[k]["text"][:at] + value + " " + lines[k]["text"][at:]
            later = [len(value) + 1 if s[0] == lines[k]["id"] and s[2] >= at else 0 for s in spans]  # these move
            spans = [(i, its, a + n, b + n) for (i, its, a, b), n in zip(spans, later, strict=True)]
            spans.append((lines[k]["id"], str(kind), at, at + len(value)))
    jobs = [(word, gender, 0.95) for gender, words in SKEWED.items() for word in words]
    jobs += [(word, "female", usual) for word in USUAL]
    held = {s[0] for s in spans}
    clean = [k for k, line in enumerate(lines) if line["id"] not in held]
    places = rng.permutation(clean)[: EACH * len(jobs)].reshape(len(jobs), EACH)
    for (word, gender, share), mine in zip(jobs, places, strict=True):
        other = "male" if gender == "female" else "female"
        for n, k in enumerate(mine):
            who = WORD[gender if n < share * EACH else other]
            lines[k]["text"] += f"\n\nThe {word} arrived early, and {who} stayed until the work was done."
    copies = []
    for k in rng.permutation(len(lines))[: round(0.03 * len(lines))]:
        words = lines[k]["text"].split(" ")
        for at in rng.permutation(len(words))[: len(words) // 100]:
            words[at] = "altered"
        lines.append({"id": f"copy-{k}", "source": lines[k]["source"], "text": " ".join(words)})
        copies.append((f"copy-{k}", lines[k]["id"]))
    return lines, {"spans": spans, "copies": copies}


def card(lines: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    path = out.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return survey(parse(CensusConfig, {"data": [str(path)], "id_column": "id"}, "benchmark"), out)


def rates(found: set[Any], true: set[Any]) -> dict[str, float]:
    both = len(found & true)
    return {"precision": round(both / max(len(found), 1), 4), "recall": round(both / max(len(true), 1), 4),
            "found": len(found), "true": len(true)}  # fmt: skip


def skewed(card: dict[str, Any]) -> set[tuple[str, str]]:
    return {(r["attribute"], r["group"]) for r in near(card) if r["skewed"] and r["share"] > r["others"]}


def near(card: dict[str, Any]) -> list[dict[str, Any]]:
    return [r for r in card["people"]["findings"] if r["set"] == "professions" and r["axis"] == "gender"]


def findings(data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Precision and recall of one draw of the plants."""
    before = card(documents(data), folder / f"card-plain-{seed}")
    women, all_ = (sum(r["documents"] for r in near(before) if r["group"] in its) for its in (("female",), WORD))
    lines, truth = planted(documents(data), women / all_, np.random.default_rng(seed))
    after = card(lines, folder / f"card-planted-{seed}")
    spans = pq.read_table(folder / f"card-planted-{seed}" / "spans.parquet").to_pylist()
    old = {i for i, _ in truth["copies"]}  # a copy holds its original's data as well
    found = {(s["id"], s["kind"], s["start"], s["stop"]) for s in spans if s["kind"] in ("email", "card")}
    old_pairs, new_pairs = (pairs(folder / f"card-{name}-{seed}") for name in ("plain", "planted"))
    words = {(word, gender) for gender, its in SKEWED.items() for word in its}
    known = {*USUAL, *(word for word, _ in words)}
    return {
        "email and card": rates({s for s in found if s[0] not in old}, set(truth["spans"])),
        "copies": rates(new_pairs - old_pairs, set(truth["copies"])),
        "professions": rates({pair for pair in skewed(after) if pair[0] in known}, words),
        "other professions that stand out": sorted(word for word, _ in skewed(after) if word not in known),
    }  # fmt: skip


def pairs(folder: Path) -> set[tuple[str, str]]:
    table = pq.read_table(folder / "documents.parquet", columns=["id", "copy_of"]).to_pylist()
    return {(row["id"], row["copy_of"]) for row in table if row["copy_of"] is not None}


def real(data: Path) -> dict[str, Any]:
    """Of 1,500 made-up sentences with their spans, by kind."""
    counts = {kind: [0, 0, 0] for kind in REAL.values()}  # found and true, missed, false
    for line in pq.read_table(data / "priv_synth_pii" / "synth_dataset_v2.parquet").to_pylist():
        true = [(REAL[s["entity_type"]], s["start_position"], s["end_position"]) for s in json.loads(line["spans"])
                if s["entity_type"] in REAL]  # fmt: skip
        found = [s for s in personal.spans(line["full_text"]) if s.kind in counts]
        meet = lambda s, t: s.kind == t[0] and s.start < t[2] and s.stop > t[1]  # noqa: E731  # one line, used twice
        for t in true:
            counts[t[0]][0 if any(meet(s, t) for s in found) else 1] += 1
        for s in found:
            counts[s.kind][2] += not any(meet(s, t) for t in true)
    return {kind: {"precision": round(y / max(y + f, 1), 3), "recall": round(y / max(y + m, 1), 3), "true": y + m}
            for kind, (y, m, f) in counts.items()}  # fmt: skip


def streamed(lines: list[dict[str, Any]], size: int, folder: Path) -> dict[str, float]:
    """Seconds and the most memory of the whole tree of processes, for `size` bytes of sentences in new orders."""
    rng = np.random.default_rng(size)
    sentences = [s for line in lines for s in line["text"].split(". ") if 20 < len(s) < 400]
    path, written = folder / f"{size}.jsonl", 0
    with path.open("w") as out:
        while written < size:
            text = ". ".join(sentences[k] for k in rng.integers(len(sentences), size=20))
            written += out.write(json.dumps({"text": text}) + "\n")
    command = [
        sys.executable,
        "-m",
        "uimjax.cli",
        "audit",
        "--data",
        str(path),
        "--out",
        str(folder / str(size)),
        "--json",
    ]
    start, most = time.perf_counter(), 0
    with (folder / f"{size}.json").open("w") as told, subprocess.Popen(command, stdout=told) as run:
        while run.poll() is None:
            most = max(most, resident(run.pid))
            time.sleep(0.2)
    assert run.returncode == 0
    documents = json.loads((folder / f"{size}.json").read_text())["documents"]
    took = time.perf_counter() - start
    path.unlink()
    return {
        "megabytes": written / 1e6,
        "seconds": took,
        "mib": most / 2**20,
        "documents": documents,
    }


def resident(pid: int) -> int:
    """Bytes of a process and of all below it."""
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except (OSError, IndexError, ValueError):
            continue
    return total


def main() -> None:
    args = timing.arguments(__doc__ or "")
    if not os.environ.get("UIMJAX_DATA"):
        raise SystemExit("UIMJAX_DATA is not set: this benchmark reads the large reference data")
    data = Path(os.environ["UIMJAX_DATA"])
    result: dict[str, Any] = {"real": real(data)}
    with tempfile.TemporaryDirectory() as at:
        draws = [findings(data, Path(at), seed) for seed in range(1 if args.quick else 3)]
        for name in draws[0]:
            result[name] = [draw[name] for draw in draws]
        few, many = (10**7, 10**8) if args.quick else (10**8, 10**9)
        small, large = (streamed(documents(data), size, Path(at)) for size in (few, many))
    result["streamed"] = [{k: round(v, 1) for k, v in its.items()} for its in (small, large)]
    result["megabytes_a_second"] = round(large["megabytes"] / large["seconds"], 2)
    result["memory_ratio"] = round(large["mib"] / small["mib"], 3)
    timing.report(result | timing.machine(), args.json)


if __name__ == "__main__":
    main()
