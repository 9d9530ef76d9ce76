"""Tuning on features or logits alone, each method on a plant of its own, as `uimjax mitigate FILE` runs it.

Set-up, on the handwritten digits (an MLP of 128 and 64 units, whose last layer is the features): *noise*, pretrained on
labels of which 40% are wrong, heads on the right ones, tested as they are and shifted with noise on the pixels (OOD);
*tail*, classes from 120 rows down to 2; *shortcut*, below 5 or not, with a bright corner in 95% of one class; *sure*,
its logits; *labels*, 30% of the head's own labels wrong; *harm*, below 5 or not, with a bright corner in a third, whose
labels say nothing. And *groups*: income by `tab_adult`'s columns (UIMJAX_DATA), the group the sex that is
written there.

Claims: adjusted, dfr, relabel, temperature, cmaes, thresholds and erase are better at what they are for than their
control, by more than the interval over test rows. Of the others it says what these rows show: on features of so small
a network NMTune and SKD do as a plain MLP does, and group DRO, JTT and D3M move the worst group by less than its
interval.

Run: UIMJAX_DATA=... python -m benchmarks.frozen_tuning --json
"""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from uimjax import corpora, models, training
from uimjax.config import TuneConfig
from uimjax.steps import Recipe
from uimjax.workflow.tuning import tune

RECIPE = Recipe(epochs=20, batch_size=32, learning_rate=3e-3)
METHODS = {
    "noise": ("nmtune", "nmtune_paper", "skd"), "tail": ("adjusted",), "shortcut": ("group_dro", "jtt", "dfr"),
    "labels": ("relabel",), "harm": ("d3m",), "sure": ("temperature", "cmaes"), "groups": ("thresholds", "erase"),
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {"group_dro": {"eta": 0.1}}


def network(rows: dict[str, np.ndarray], classes: int, seed: int = 0) -> Any:
    """`of(rows, what)`: features or logits of an MLP that was trained on these rows."""
    task, params = models.build("mlp", rows["image"].shape[1:], classes, seed)
    params = training.fit(task, params, rows, dataclasses.replace(RECIPE, seed=seed)).params

    def of(its: dict[str, np.ndarray], what: str = "features") -> np.ndarray:
        fun = task.features if what == "features" else task.outputs
        return np.asarray(jax.vmap(fun, (None, 0))(params, its))  # type: ignore[arg-type]  # a classifier has both

    return of


def saved(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # names to arrays
    return str(path)


def shifted(rows: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A pixel to the right, noise on all."""
    image = np.roll(rows["image"], 1, axis=2) + rng.normal(0, 0.2, rows["image"].shape)
    return rows | {"image": np.clip(image, 0, 1).astype(np.float32)}


def noise(at: Path, rng: np.random.Generator) -> tuple[str, list[str]]:
    its = corpora.digits()
    wrong = rng.random(len(its.train["label"])) < 0.4
    noisy = np.where(wrong, rng.integers(0, 10, len(wrong)), its.train["label"]).astype(np.int32)
    of = network(its.train | {"label": noisy}, 10)
    parts = {"train": its.train, "in": its.test, "out": shifted(its.test, rng)}
    found = [saved(at / f"{name}.npz", features=of(rows), labels=rows["label"]) for name, rows in parts.items()]
    return found[0], found[1:]


def tail(at: Path, rng: np.random.Generator) -> tuple[str, list[str]]:
    its = corpora.digits()
    of = network(its.train, 10)
    sizes = np.round(120 * 60.0 ** (-np.arange(10) / 9)).astype(int)
    kept = np.concatenate([rng.permutation(np.flatnonzero(its.train["label"] == c))[:n] for c, n in enumerate(sizes)])
    few = {name: x[kept] for name, x in its.train.items()}
    parts = {"train": few, "test": its.test}
    found = [saved(at / f"{name}.npz", features=of(rows), labels=rows["label"]) for name, rows in parts.items()]
    return found[0], found[1:]


def shortcut(at: Path, rng: np.random.Generator) -> tuple[str, list[str]]:
    its = corpora.digits()

    def marked(rows: dict[str, np.ndarray], share: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
        low = (rows["label"] < 5).astype(np.int32)
        mark = np.where(rng.random(len(low)) < share, low, 1 - low)
        image = rows["image"].copy()
        image[:, :2, :2] = np.where(mark[:, None, None, None] == 1, 1.0, image[:, :2, :2])
        return {"image": image, "label": low}, 2 * low + mark

    half = np.array_split(rng.permutation(len(its.train["label"])), 2)  # a network errs nowhere where it was trained
    seen, others = ({name: x[ids] for name, x in its.train.items()} for ids in half)
    train, groups = marked(others, 0.95)
    test, test_groups = marked(its.test, 0.5)
    of = network(marked(seen, 0.95)[0], 2)
    one = saved(at / "train.npz", features=of(train), labels=train["label"], groups=groups)
    return one, [saved(at / "test.npz", features=of(test), labels=test["label"], groups=test_groups)]


def labels(at: Path, rng: np.random.Generator) -> tuple[str, list[str]]:
    its = corpora.digits()
    half = np.array_split(rng.permutation(len(its.train["label"])), 2)
    seen, others = ({name: x[ids] for name, x in its.train.items()} for ids in half)
    of, given = network(seen, 10), others["label"].copy()
    wrong = rng.random(len(given)) < 0.3
    given[wrong] = (given[wrong] + rng.integers(1, 10, int(wrong.sum()))) % 10
    one = saved(at / "train.npz", features=of(others), labels=given)
    return one, [saved(at / "test.npz", features=of(its.test), labels=its.test["label"])]


def harm(at: Path, rng: np.random.Generator) -> tuple[str, list[str]]:
    its = corpora.digits()

    def parts(rows: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        mark = (rng.random(len(rows["label"])) < 1 / 3).astype(np.int32)
        image = rows["image"].copy()
        image[mark == 1, :2, :2] = 1.0
        return {"image": image, "label": (rows["label"] < 5).astype(np.int32)}, mark

    rows, mark = parts(its.train)
    order = np.array_split(rng.permutation(len(mark)), 3)  # the network's rows, the head's, those that are held out
    of = network({name: x[order[0]] for name, x in rows.items()}, 2)
    rows["label"] ^= np.isin(np.arange(len(mark)), order[1]) & (mark == 1) & (rng.random(len(mark)) < 0.5)
    found = []
    for name, ids in (("train", order[1]), ("held", order[2])):
        some = {key: x[ids] for key, x in rows.items()}
        found.append(saved(at / f"{name}.npz", features=of(some), labels=some["label"], groups=mark[ids]))
    test, groups = parts(its.test)
    return found[0], [saved(at / "test.npz", features=of(test), labels=test["label"], groups=groups)]


def sure(at: Path, rng: np.random.Generator) -> tuple[str, list[str]]:
    its = corpora.digits()
    wrong = rng.random(len(its.train["label"])) < 0.3
    noisy = np.where(wrong, rng.integers(0, 10, len(wrong)), its.train["label"]).astype(np.int32)
    of, order = network(its.train | {"label": noisy}, 10), rng.permutation(len(its.test["label"]))
    halves = [{name: x[ids] for name, x in its.test.items()} for ids in np.array_split(order, 2)]
    made = [saved(at / f"{k}.npz", logits=of(rows, "outputs"), labels=rows["label"]) for k, rows in enumerate(halves)]
    return made[0], made[1:]


def groups(at: Path, rng: np.random.Generator) -> tuple[str, list[str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(Path(os.environ["UIMJAX_DATA"]) / "tab_adult" / "adult.parquet").to_pydict()
    columns = []
    for name, values in table.items():
        column = np.asarray(values)
        if name in ("income-per-year", "sex", "fnlwgt"):
            continue
        if column.dtype.kind in "if":
            x = np.log1p(column) if name.startswith("capital") else column.astype(float)
            columns.append(((x - x.mean()) / x.std())[:, None])
        else:
            columns.append((column[:, None] == np.unique(column)[None]).astype(float))
    x, order = np.concatenate(columns, 1).astype(np.float32), rng.permutation(len(table["sex"]))
    rich = np.array([value.strip(" .") == ">50K" for value in table["income-per-year"]]).astype(int)
    sex = np.asarray(table["sex"])
    parts = np.split(order, [12_000])
    made = [saved(at / f"{k}.npz", features=x[ids], labels=rich[ids], groups=sex[ids]) for k, ids in enumerate(parts)]
    return made[0], made[1:]


CASES = {
    "noise": noise, "tail": tail, "shortcut": shortcut, "labels": labels, "harm": harm, "sure": sure,
    "groups": groups,
}  # fmt: skip


def run(quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, make in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            at = Path(folder)
            train, tests = make(at, np.random.default_rng(0))
            for method in METHODS[name]:
                epochs = 5 if quick else 30
                held = str(at / "held.npz") if (at / "held.npz").exists() else ""
                config = TuneConfig(
                    train=train, held_out=held, test=tuple(tests), method=method, epochs=epochs,
                    **SETTINGS.get(method, {}),
                )  # fmt: skip
                made = tune(config, at / method)
                for test, its in made["tests"].items():
                    figures = {key: its["figures"][key] for key in (method, its["against"])}
                    key = f"{name}/{method}/{Path(test).stem}"
                    found[key] = {"says": its["says"], "rows": its["rows"], "figures": figures}
    better = [key for key, its in found.items() if its["says"].startswith("better")]
    return {"cases": found, "better": len(better), "of": len(found)}


def main() -> None:
    args = timing.arguments(__doc__ or "")
    if not os.environ.get("UIMJAX_DATA"):
        raise SystemExit("UIMJAX_DATA names the folder of tab_adult; it is not set")
    timing.report(run(args.quick) | timing.machine(), args.json)


if __name__ == "__main__":
    main()
