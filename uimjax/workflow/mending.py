"""Mend the model of a trace: what a method does, the same for controls of equal size, what each did, and the new
checkpoint.

Nothing was planted here, so the verdict rests on the method's own arm and on what it is held against: for an edit the
documents that words alone name (BM25), and random ones. The model that came in is not written to.
"""

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import checkpoint, pretrained, store
from uimjax import rows as row
from uimjax.answers.story import measured
from uimjax.config import MendConfig
from uimjax.corpora.preparing import corpus_files, prepare
from uimjax.corpora.texts import Columns
from uimjax.errors import OutputError, UnknownNameError, UsageError
from uimjax.mitigate import forgetting
from uimjax.mitigate.edit import Edit
from uimjax.mitigate.relearning import Relearning, relearn
from uimjax.progress import Progress, quiet
from uimjax.report.phrases import PHRASES
from uimjax.store.base import make_folder
from uimjax.study.outputs import AFTER, BEFORE, write_outputs
from uimjax.study.outputs import FILE as OUTPUTS
from uimjax.task import Task
from uimjax.workflow import acting, augmenting, base, curating, saying
from uimjax.workflow.acting import Arm, Plan
from uimjax.workflow.edits import EDIT, Case, open_case, read_edit

DONE, PLANS = "mended.json", "plans"
CLEARED = ("model", "steps")  # what a mitigation of other choices makes anew
LOOKED = 200  # clean rows whose loss is the cost
BACK = 0.5  # of what a mitigation moved, beyond which it is told that it comes back
METHODS = (*acting.TUNED, *forgetting.LOSSES, *curating.CURATIONS, *augmenting.NAMES)
READ_BY: dict[str, tuple[str, ...]] = {  # settings that some methods alone look at
    "swap": acting.WITH_OTHERS, "instead": ("dpo",), "weight": ("downweight",), "epsilon": ("private",),
    "clip": ("private",), "share": ("newton",), "curate.target": ("dsir", "less"), "curate.keep": ("dsir", "less"),
    "curate.near": ("dedup", "semdedup"), "curate.warmup": ("less",), "curate.rounds": ("doremi",),
    "curate.eta": ("doremi",), "curate.isolate": ("abl",), "curate.early": ("abl",), "curate.rate": ("abl",),
    "curate.level": ("abl",), "curate.quantile": ("if_guide",), "curate.window": ("if_guide",),
    "curate.most": ("if_guide",), "curate.penalty": ("if_guide",), "synthetic.templates": ("balanced",),
    "synthetic.ratio": augmenting.NAMES, "synthetic.sweep": augmenting.NAMES, "synthetic.rows": ("self_distill",),
    "synthetic.temperature": ("self_distill",), "synthetic.prompt": ("self_distill",),
    "synthetic.loss": ("self_distill",), "edit": (*acting.TUNED, *forgetting.LOSSES, *augmenting.NAMES),
    "gamma": (*forgetting.LOSSES, "self_distill", "abl"),
}  # fmt: skip


def check(config: MendConfig, out: Path) -> None:
    """Raises UnknownNameError, UsageError, MissingFileError: before anything is opened."""
    if config.method not in METHODS:
        raise UnknownNameError("method", config.method, METHODS)
    for name, methods in READ_BY.items():
        part, _, field = name.rpartition(".")
        its = getattr(config, part) if part else config
        if config.method not in methods and getattr(its, field) != type(its).model_fields[field].default:
            raise UsageError(f"{name} is for {', '.join(methods)}; {config.method} does not look at it: leave it out")
    for path in (*config.curate.target, *config.retain, config.synthetic.templates, config.edit, config.reworded):
        inside = [name for name in (*CLEARED, PLANS) if path and (out / name).resolve() in Path(path).resolve().parents]
        if inside:
            raise OutputError(f"{path} lies in {out / inside[0]}, which a run clears; keep it elsewhere")
    for files in (config.curate.target, config.retain):
        if files:
            corpus_files(files)
    if config.method in curating.CURATIONS:
        curating.check(config)
    elif config.method in augmenting.NAMES:
        augmenting.check(config)
    else:
        acting.choice(config)


def mend(config: MendConfig, out: Path, progress: Progress = quiet) -> dict[str, Any]:
    """The whole: each arm with every seed, measured; the first arm's first parameters saved under `out/model`. What was
    there before of other choices is removed once the new ones are known to be possible.

    Raises: as `check`, `open_case`, `read_edit`, `unlearn`, `fit`, `newton.remove` and the functions of curation.
    OutputError: `out` is not ours.
    """
    check(config, out)
    case = open_case(Path(config.run), out, config.reworded)
    edited = config.method not in curating.CURATIONS
    traced = read_edit(Path(config.edit) if config.edit else Path(config.run) / EDIT, case) if edited else None
    base.check_ours(out, (*CLEARED, PLANS))
    make_folder(out)
    key = _key(config, case, traced)
    work = out / PLANS / key
    if not (out / base.MARK).exists():
        store.write_json(out / base.MARK, "begun")
    if traced is None:
        plan = curating.plan_curation(case, config, work, progress)
    elif config.method in augmenting.NAMES:
        plan = augmenting.plan_synthetic(case, config, traced)
    else:
        plan = acting.plan_edit(case, config, traced)
    clean = _clean(config, case, work, plan)
    base.keep_or_clear(out, key, CLEARED, (DONE, OUTPUTS))
    for other in (out / PLANS).glob("*"):
        if other != work:
            shutil.rmtree(other)
    document = _carried_out(config, case, plan, clean, out, progress)
    store.write_json(out / DONE, document | {"config": config.model_dump(mode="json")})
    return document


def _key(config: MendConfig, case: Case, traced: Edit | None) -> str:
    """Of everything that the outcome follows from."""
    files = [*config.curate.target, *(config.retain or case.config.retain), config.synthetic.templates]
    digests = [store.digest_file(path) for name in files if name and (path := Path(name)).is_file()]
    others = None if case.reworded is None else store.digest_tree(case.reworded.rows)
    return store.stage_key(
        store.digest_tree(case.subject.params), store.digest_tree(case.failures.rows), others, case.corpus.manifest,
        case.config.model_dump(mode="json"), config.model_dump(mode="json", exclude={"run", "edit"}),
        traced and traced.rows, digests, base.versions(),
    )  # fmt: skip


def _carried_out(
    config: MendConfig, case: Case, plan: Plan, clean: Any, out: Path, progress: Progress
) -> dict[str, Any]:  # fmt: skip
    """Every arm with every seed, and what may be said of it."""
    before = _measured(case, case.subject.params, clean)
    jobs = [(arm, number) for arm in plan.arms for number in range(config.seeds)]
    found: dict[str, list[dict[str, Any]]] = {}
    saved, again, own = "", {}, plan.arms[0].name
    voice = saying.of_failures(case.subject.task, case.failures, case.subject.tokenizer)
    said = {BEFORE: voice.says(case.subject.params)}
    for arm, number in progress(jobs, "mitigating", unit="edits"):
        params = arm.carry(config.seed + number, out / "steps" / f"{arm.name}-{number}")
        found.setdefault(arm.name, []).append(_measured(case, params, clean))
        if number == 0:
            said[AFTER if arm.name == own else arm.name] = voice.says(params)
        if arm.name == own and number == 0:
            saved, again = _save(case, params, out), _relearned(case, params, plan, config)
    write_outputs(out / OUTPUTS, voice.outputs(said))
    document = {
        "method": config.method, "edit": {"rows": len(plan.rows), "why": plan.why}, "model": saved,
        "before": before, "after": found, "relearned": again, **_verdict(before, found, plan.arms),
        "evidence": PHRASES["en"]["automatic"],
    }  # fmt: skip
    document["says"] += remarks(before, found[own], again)
    if (spent := out / "steps" / f"{own}-0.privacy.json").exists():  # of each release; whoever gives several adds up
        document["privacy"] = store.read_json(spent)
    return document


def _clean(config: MendConfig, case: Case, work: Path, plan: Plan) -> Any:
    """Rows whose loss tells the cost: held-out ones, or without any those of the corpus that the plan names."""
    files = config.retain or case.config.retain
    if files:
        columns = Columns(case.config.text_column, case.config.id_column, case.config.source_column)
        held = prepare(files, case.subject.tokenizer, work / "retain", length=case.config.length, columns=columns)
        rows = jax.tree.map(lambda x: x[1::2], held.rows) if curating.halved(config) else held.rows
        return row.spread(rows, LOOKED)
    rest = np.setdiff1d(np.arange(len(case.documents)), plan.rows) if plan.clean is None else np.asarray(plan.clean)
    rest = rest if len(rest) else np.arange(len(case.documents))
    return row.take(case.corpus.rows, rest[np.linspace(0, len(rest) - 1, min(LOOKED, len(rest))).round().astype(int)])


def _measured(case: Case, params: Any, clean: Any) -> dict[str, Any]:
    values = measured(params, case.failures, case.config.batch_size)
    others = case.reworded
    more = {} if others is None else {"reworded": measured(params, others, case.config.batch_size).tolist()}
    program = _losses(case.subject.task)
    parts = [program(params, b.rows)[: int(b.mask.sum())] for b in row.batches(clean, case.config.batch_size)]
    total = float(np.concatenate([np.asarray(part, np.float64) for part in parts]).sum())
    tokens = float(np.asarray(clean["counted"])[:, 1:].sum())
    return {"failures": values.tolist(), "clean_loss": total / max(tokens, 1)} | more


def _relearned(case: Case, params: Any, plan: Plan, config: MendConfig) -> dict[str, Any]:
    """The failures once the mended model has had a few steps on half of the rows of the edit, and on as many others; {}
    where it is not by an edit of culprits that was mended: culprits are then among the others too."""
    if not config.relearn or not plan.culprits:
        return {}
    how = Relearning(config.relearn, config.batch_size, config.learning_rate)
    rows, half = jax.tree.map(np.asarray, case.corpus.rows), plan.rows[::2]
    rest = np.setdiff1d(np.arange(len(case.documents)), plan.rows)
    others = np.random.default_rng([config.seed, 13]).choice(rest, min(len(half), len(rest)), replace=False)
    found = {}
    for name, ids in (("edited", half), ("others", others)):
        after = relearn(case.subject.task, params, rows, ids, how, config.seed)
        found[name] = measured(after, case.failures, case.config.batch_size).tolist()
    return {"steps": config.relearn, "failures": found}


def remarks(before: dict[str, Any], traced: Sequence[dict[str, Any]], again: dict[str, Any]) -> str:
    """What the verdict leaves open: whether the failure comes back by training on other rows, and in other words."""
    start, end = float(np.mean(before["failures"])), float(np.mean(traced[0]["failures"]))
    told = ""
    if again and end < start:
        back = {name: (float(np.mean(values)) - end) / (start - end) for name, values in again["failures"].items()}
        if back["others"] > BACK:
            told += (f"; hidden, not removed: {back['others']:.0%} of it comes back after {again['steps']} steps on "
                     "rows that have nothing to do with it")  # fmt: skip
        elif back["edited"] > BACK:
            told += f"; {again['steps']} steps on half of the edited rows bring {back['edited']:.0%} of it back"
    if "reworded" in before:
        moved = float(np.mean([np.mean(one["reworded"]) for one in traced]) - np.mean(before["reworded"]))
        asked = float(np.mean([np.mean(one["failures"]) for one in traced])) - start
        short = asked < 0 and moved > BACK * asked
        told += f"; in other words {'only ' if short else ''}by {moved:+.2f}"
    return told


@functools.lru_cache(maxsize=4)
def _losses(task: Task):
    return jax.jit(lambda params, rows: jax.vmap(lambda r: jnp.sum(task.loss(params, r)))(rows))


def _verdict(before: dict[str, Any], found: dict[str, list[dict[str, Any]]], arms: Sequence[Arm]) -> dict[str, Any]:
    """Change of the mean measurement by each arm, per seed; what may be said of it."""
    start, own = float(np.mean(before["failures"])), arms[0].name
    change = {arm: [float(np.mean(one["failures"])) - start for one in each] for arm, each in found.items()}
    cost = float(np.mean([one["clean_loss"] for one in found[own]])) / before["clean_loss"] - 1
    against = {arm.name: change[arm.name] for arm in arms[1:] if arm.control}
    return {"change": change, "cost": cost, "says": _says(change[own], against, cost)}


def _says(own: list[float], others: dict[str, list[float]], cost: float) -> str:
    if not others or min(map(len, (own, *others.values()))) < 3:
        return f"the failures moved by {np.mean(own):+.2f}; no verdict without controls and three seeds"
    if np.mean(own) >= 0:
        return f"not fixed: the failures moved by {np.mean(own):+.2f}"
    for arm, values in others.items():
        if max(own) >= min(values):
            return f"no verdict: {acting.told(arm)} move the failures by {np.mean(values):+.2f} too"
    if cost > 0.02:
        return f"not fixed: the loss on clean text rises by {cost:.1%}"
    return f"mended: the failures moved by {np.mean(own):+.2f}, the loss on clean text by {cost:+.1%}"


def _save(case: Case, params: Any, out: Path) -> str:
    """As the model came: a checkpoint folder, or for a module of the reader's own an Orbax checkpoint."""
    at = out / "model"
    if case.subject.folder is None:
        checkpoint.save(at, 0, params)
    elif not (at / "config.json").exists():  # which is written last: a run that was stopped later has it
        shutil.rmtree(at, ignore_errors=True)
        pretrained.save(case.subject.folder, at, params)
    return str(at)
