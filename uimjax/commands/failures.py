"""From a model, files of what it was trained on and a file of failures to answers: `uimjax trace --model ...`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from uimjax.commands.base import override
from uimjax.errors import OutputError, ShapeError, UsageError

GIVEN = ("model", "corpus", "queries")  # without them there is nothing to ask
RETAINED = 200  # rows to retain, evenly spaced over those that are given


def values_of(args: argparse.Namespace) -> dict[str, Any]:
    """Of a config file, or of the folder of a trace, if there is one, with the flags of `GIVEN` over it."""
    from uimjax.config import LOCK, read_yaml

    values: dict[str, Any] = {}
    if args.target:
        target = Path(args.target)
        values = read_yaml(target / LOCK).get("config", {}) if target.is_dir() else read_yaml(target)
    values |= {name: getattr(args, name) for name in GIVEN if getattr(args, name) is not None}
    if lacking := [name for name in GIVEN if name not in values]:
        raise UsageError(
            f"--{lacking[0]} is missing: `uimjax trace --model FOLDER --corpus FILES --queries FAILURES.jsonl`, or a "
            "config (`uimjax new failures`), or the folder of a run"
        )
    if "kind" not in values:
        from uimjax.answers.classifiers import is_classifier

        values = {"kind": "classified" if is_classifier(values["model"]) else "failures"} | values
    return values


def failures(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax.allocator import keep_buffers

    keep_buffers()  # before anything computes
    import yaml

    from uimjax.config import KINDS, LOCK, read_yaml
    from uimjax.progress import quiet, shown
    from uimjax.report import answers, mistakes
    from uimjax.store import write_json
    from uimjax.store.base import atomic, make_folder
    from uimjax.workflow.base import made_with

    values = values_of(args)
    kind = values["kind"]
    config = override(KINDS[kind], values, rest)
    out, report = _folder(args), answers if kind == "failures" else mistakes
    if (out / LOCK).exists() and read_yaml(out / LOCK).get("config", {}).get("kind") != kind:
        raise OutputError(f"{out} holds a run of another kind; choose another folder with --out")
    made = answered if kind == "failures" else classified
    answer = made(config, make_folder(out), quiet if args.json else shown)
    with atomic(out / LOCK) as temporary:  # last: what is refused leaves the config of the answer that is there
        locked = {"config": config.model_dump(mode="json"), "made_with": made_with()}
        temporary.write_text(yaml.safe_dump(locked, sort_keys=False))
    write_json(out / "answers.json", answer)
    page = report.write_page(answer, out / "report.html")
    if args.json:
        print(json.dumps(answer | {"out": str(out)}))
        return 0
    from rich.console import Console

    report.show(answer, Console(width=None if sys.stdout.isatty() else 160))
    print(f"{answer['method']}: {answer['why']}. {answer['unit']}.")
    if answer.get("proxy"):
        print(
            "A proxy corpus was traced: these documents are like a cause, and not the cause. "
            f"{_share(answer['coverage'])} of the failures' runs of five words stand in it."
        )
    print(f"Everything is in {out}; look at {page}.")
    return 0


def _folder(args: argparse.Namespace) -> Path:
    """Where the answer goes: back into the folder of a trace that is asked again."""
    if args.out:
        return Path(args.out)
    if not args.target:
        return Path("runs/trace")
    target = Path(args.target)
    return target if target.is_dir() else target.with_suffix(".trace")


def _share(value: float | None) -> str:
    return "An unknown share" if value is None else f"{value:.0%}"


def classified(config: Any, out: Path, progress: Any) -> dict[str, Any]:
    """The answer to a config of mistakes of a classifier, with what it was asked of."""
    from uimjax.answers import classifiers, examples, story
    from uimjax.answers.engines import HEAD, check_method
    from uimjax.answers.mistakes import Model, read_mistakes
    from uimjax.corpora.examples import ARRAYS, examples_of
    from uimjax.corpora.labelled import prepare_examples
    from uimjax.corpora.texts import Columns
    from uimjax.mesh import make_mesh
    from uimjax.sketch import Sketch
    from uimjax.workflow.base import made_with

    if config.method == "retain_cos":
        raise UsageError(
            "retain_cos keeps what a model does right on documents; it is not for mistakes of a classifier"
        )
    check_method(config.method, False, (HEAD,) if config.model == classifiers.HEAD else ())
    mesh = None if config.devices * config.model_devices == 1 else make_mesh(config.devices, model=config.model_devices)
    model = classifiers.open_classifier(config, mesh)
    found = examples_of(config.corpus, model.kind, config.labels)
    if all(path.is_dir() or path.suffix in ARRAYS for path in found):
        names = ("column", "label_column", "id_column", "source_column")
        classifiers.refuse(config, "there is no table that has columns", names)
    columns = Columns(config.column or model.kind, config.id_column, config.source_column, config.label_column)
    held = prepare_examples(
        config.corpus, model.encoder, out / "examples", columns=columns, classes=model.classes, labels=config.labels,
        progress=progress,
    )  # fmt: skip
    its = Model(*model.opened(held), model.encoder, config.model == classifiers.HEAD)
    asked = read_mistakes(config.queries, its, held.rows, config.measure, config.batch_size)
    choices = story.Choices(
        **config.model_dump(include={"method", "k", "shown", "coding", "batch_size", "shard_rows"}),
        null=0, sketch=Sketch(config.sketch_rank, seed=config.seed), mesh=mesh,
    )  # fmt: skip
    answer = examples.answer(its, held, asked, out, choices, config.model == classifiers.HEAD, progress)
    return answer | {
        "name": Path(config.model).name, "config": config.model_dump(mode="json"), "made_with": made_with(),
    }  # fmt: skip


def answered(config: Any, out: Path, progress: Any) -> dict[str, Any]:
    """The answer to a config, with what it was asked of."""
    from uimjax import rows as row
    from uimjax.answers import story
    from uimjax.answers.engines import check_method
    from uimjax.answers.failures import read_failures
    from uimjax.answers.subject import open_subject
    from uimjax.corpora import duplicates
    from uimjax.corpora.preparing import corpus_files, prepare
    from uimjax.corpora.pretokenised import Raw
    from uimjax.corpora.texts import Columns
    from uimjax.mesh import make_mesh
    from uimjax.sketch import Sketch
    from uimjax.workflow.base import made_with

    corpus_files(config.corpus)  # what is not there is said before a model is read
    check_method(config.method, bool(config.retain))
    if config.near:
        duplicates.check_installed()
    mesh = None if config.devices * config.model_devices == 1 else make_mesh(config.devices, model=config.model_devices)
    subject = open_subject(config, mesh)
    if subject.most and config.length > subject.most:
        raise ShapeError(
            f"rows of {config.length} tokens; this model has {subject.most} positions: --length {subject.most}"
        )
    columns = Columns(config.text_column, config.id_column, config.source_column)
    asked = read_failures(config.queries, subject.task, subject.tokenizer, config.length, config.measure)
    raw = Raw(config.token_dtype, subject.end if config.end_token is None else config.end_token)
    how = {"length": config.length, "columns": columns, "raw": raw, "progress": progress}
    corpus = prepare(config.corpus, subject.tokenizer, out / "corpus", **how)
    retain = None
    if config.retain:
        retain = row.spread(prepare(config.retain, subject.tokenizer, out / "retain", **how).rows, RETAINED)
    choices = story.Choices(
        **config.model_dump(include={f.name for f in dataclasses.fields(story.Choices)}),
        sketch=Sketch(config.sketch_rank, seed=config.seed), mesh=mesh,
    )  # fmt: skip
    answer = story.answer(subject, corpus, asked, out, choices, retain, progress)
    covered = [one["coverage"] for one in answer["failures"] if "coverage" in one]
    return answer | {
        "name": Path(config.model).name, "config": config.model_dump(mode="json"), "proxy": config.proxy,
        "coverage": sum(covered) / len(covered) if covered else None,
        "made_with": made_with(),
    }  # fmt: skip
