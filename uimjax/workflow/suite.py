"""The suite: all eight weaknesses of text, and those of pictures, seed by seed, and one document of all."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uimjax import corpora, store
from uimjax.audit import pictures, weaknesses
from uimjax.config import SuiteConfig, VisionSuiteChoice, parse
from uimjax.errors import UsageError
from uimjax.mitigate import proof
from uimjax.progress import Progress, quiet
from uimjax.report import suite as report
from uimjax.store.base import make_folder
from uimjax.workflow import base, suite_text, suite_vision, text, vision
from uimjax.workflow.seeded import STAGES, Seeded


def run(
    config: SuiteConfig, folder: Path, say: Callable[[str], None] = lambda _: None, progress: Progress = quiet,
) -> dict[str, Any]:  # fmt: skip
    """The whole suite; returns its document, which is in `suite.json` too.

    Raises:
        UnknownNameError, UsageError, DataError: before anything is computed. OutputError: cannot write there.
    """
    began = time.perf_counter()
    for choices, known, where in ((config, weaknesses.ALL, ""), (config.vision, pictures.ALL, "vision.")):
        _check(choices, known, where)
    corpus = text.load_corpus(suite_text.text_of(config))
    images = vision.load_corpus(suite_vision.story_of(config, 0))
    make_folder(folder)
    sources = {"sources": corpora.digest_documents(corpus)} | vision.digests_of(images)
    base.write_lock(folder, config, sources)
    (folder / "suite.json").unlink(missing_ok=True)
    parts: dict[str, dict[str, Any]] = {}
    jobs = {
        "language": lambda at, seed: suite_text.prepare(config, corpus, folder / at, seed),
        "vision": lambda at, seed: suite_vision.prepare(config, images, folder / "vision" / at, seed),
    }
    for kind, prepare in jobs.items():
        loops = []
        for number in range(config.seeds):
            loops.append(prepare(f"seed-{number}", config.seed + number))
            for name, stage in STAGES.items():
                for finding in stage(loops[-1], progress):
                    say(f"{kind}, seed {number + 1} of {config.seeds}, {name}: {finding}")
        parts[kind] = _summarised(kind, loops, config)
    document = parts["language"] | {"vision": parts["vision"], "seconds": round(time.perf_counter() - began, 1)}
    store.write_json(folder / "suite.json", document)
    report.write_page(document, folder / "report.html")
    return document


def _summarised(kind: str, loops: list[Seeded], config: SuiteConfig) -> dict[str, Any]:
    first, utility = loops[0], proof.HELD_OUT_LOSS if kind == "language" else proof.ACCURACY
    found = report.summarise([loop.folder for loop in loops], first.choices, first.known, utility)
    return {"seeds": [config.seed + k for k in range(len(loops))], "rows": first.count} | found


def _check(choices: SuiteConfig | VisionSuiteChoice, known: dict[str, Any], where: str) -> None:
    """Every plan, before anything is computed."""
    words = isinstance(choices, SuiteConfig)
    for name in known:
        plan = getattr(choices, name)
        parse(type(choices.mitigate), choices.mitigate.model_dump() | plan.settings, f"{where}{name}.settings")
        base.check_methods(choices.trace.model_copy(update={"method": plan.trace}), words=words)
        swapped = suite_text.SWAPPED if words else ()
        if plan.fix == "cda" and name not in swapped:
            both = " and ".join(suite_text.SWAPPED)
            raise UsageError(f"{where}{name}.fix: cda sets words of two groups in each other's place, which the "
                             f"questions of {both} of language alone have; take another fix")  # fmt: skip
        if plan.tokens and not words:
            raise UsageError(f"{where}{name}.tokens: pictures have none; leave it at 0")
    _refuse_idle(choices, where)


def _refuse_idle(config: SuiteConfig | VisionSuiteChoice, where: str) -> None:
    """What every weakness says for itself, or the suite's seeds do, is not taken from elsewhere and then ignored."""
    idle = {"mitigate": ("method", "compare", "budget", "seeds", "compare_seeds"), "trace": ("method",)}
    for part, names in idle.items():
        chosen = getattr(config, part)
        for name in names:
            if getattr(chosen, name) != type(chosen).model_fields[name].default:
                raise UsageError(f"{where}{part}.{name} would change nothing: each weakness has its own trace, fix and "
                                 "share (bias.fix ...), and the suite its seeds")  # fmt: skip
