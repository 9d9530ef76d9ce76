"""Audit a classifier on labelled examples: its worst class and group, and what an adversary's small change does; every
mistake as a question for a trace.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uimjax import rows as row
from uimjax import store
from uimjax.answers import classifiers
from uimjax.audit import base, robustness
from uimjax.config import ExaminedConfig
from uimjax.corpora.labelled import Labelled, prepare_examples
from uimjax.corpora.texts import Columns
from uimjax.errors import UsageError
from uimjax.report import audits
from uimjax.store.base import atomic, make_folder
from uimjax.task import Task
from uimjax.workflow import decisions
from uimjax.workflow.auditing import going_on

BYTES = 255.0
CANNOT = (
    "a stronger search may find more; how large a change is small is for the reader to say, so nothing is an alarm here"
)


def audit(config: ExaminedConfig, out: Path) -> dict[str, Any]:
    """The scorecard, which is in `audit.json` and on a page; mistakes in `failures.jsonl`.

    Raises: as `open_classifier` and `prepare_examples`; UsageError: a head that would be fitted to the same examples,
    or small changes of what is no picture.
    """
    if config.model == classifiers.HEAD:
        raise UsageError("a head is fitted to the examples themselves; judge it with `uimjax mitigate FEATURES "
                         "--method linear`, which holds rows out")  # fmt: skip
    model = classifiers.open_classifier(config)
    columns = Columns(config.column or model.kind, config.id_column, config.group_column, config.label_column)
    held = prepare_examples(config.examples, model.encoder, out / "examples", columns=columns, classes=model.classes)
    task, params, classes = model.opened(held)
    rows, table = held.rows, held.table()
    logits = _logits(task, params, rows, config.batch_size)
    said, label = logits.argmax(1), np.asarray(rows["label"])
    names = np.array([str(name) for name in classes])
    cards = {"accuracy": _accuracy(said == label)}
    for name, group in (("class", names[label]), ("group", np.array(table["source"].to_pylist()).astype(str))):
        if np.sum(np.unique(group, return_counts=True)[1] >= config.least) > 1:  # else there is nothing to compare
            here, few = decisions.kept(group, config.least, f"the examples by {name}")
            cards[f"worst {name}"] = decisions.worst(names[label][here], names[said][here], group[here], few, config)
    if model.kind == "image":
        for epsilon in config.epsilon:
            cards[f"adversary, {epsilon:g} of 255"] = _attacked(task, params, rows, said == label, epsilon, config)
    wrong = np.flatnonzero(said != label)
    document = {"model": config.model, "rows": len(label), "weaknesses": cards, "failures": len(wrong)}
    make_folder(out)
    with atomic(out / "failures.jsonl") as temporary:
        temporary.write_text(
            "".join(json.dumps(its) + "\n" for its in _mistakes(held, model.kind, wrong, said, names, out))
        )
    store.write_json(out / "audit.json", document | {"config": config.model_dump(mode="json")})
    audits.write_page(document, out / "report.html", going_on(config.model, out) if len(wrong) else "")
    return document


def _logits(task: Task, params: Any, rows: Any, batch_size: int) -> np.ndarray:
    assert task.outputs is not None  # a classifier's
    program = jax.jit(jax.vmap(task.outputs, (None, 0)))
    return np.concatenate(
        [np.asarray(program(params, b.rows))[: int(b.mask.sum())] for b in row.batches(rows, batch_size)]
    )


def _accuracy(right: np.ndarray) -> dict[str, Any]:
    return _told(
        base.over_items(right), "share of the examples that are right", float("nan"), "examples of another kind"
    )


def _told(its: base.Probed, unit: str, reference: float, cannot: str) -> dict[str, Any]:
    """A figure that nothing is said of."""
    reference = its.value if np.isnan(reference) else reference
    return {**its._asdict(), "unit": unit, "reference": reference, "competent": None, "says": "told, not judged",
            "cannot": cannot, "cut_prompts": 0, "left_out": []}  # fmt: skip


def _attacked(
    task: Task, params: Any, rows: Any, right: np.ndarray, epsilon: float, config: ExaminedConfig
) -> dict[str, Any]:  # fmt: skip
    """Accuracy under a change of each pixel by at most so many of 255, beside that without."""
    changed = robustness.attacked(
        task, params, rows, epsilon, config.attack_steps, 0.0, BYTES, config.seed, config.batch_size
    )
    said = _logits(task, params, {**rows, "image": changed}, config.batch_size).argmax(1)
    its = base.over_items(said == np.asarray(rows["label"]))
    return _told(its, f"accuracy where each pixel may change by {epsilon:g} of 255", float(right.mean()), CANNOT)


def _mistakes(held: Labelled, kind: str, wrong: np.ndarray, said: np.ndarray, names: np.ndarray, out: Path) -> Any:
    """Lines as `uimjax trace` of a classifier takes them; pictures are written beside, as the model was shown them."""
    rows, values = held.rows, held.table()["value"].to_pylist()
    for k in wrong:
        shown: Any = (
            values[k] if kind == "text" else np.asarray(rows["features"][k]).tolist() if kind == "features" else ""
        )
        if kind == "image":
            shown = f"failures/{k}.png"
            _save(out / shown, np.asarray(rows["image"][k]))
        yield {kind: shown, "label": names[rows["label"][k]], "predicted": names[said[k]]}


def _save(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image  # the pictures came in by it

    make_folder(path.parent)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
