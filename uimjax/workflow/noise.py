"""A study of label noise: what finds wrong labels, what noise does to representations, and what it costs in data.

Three questions to one set of examples whose true labels are known: how well each score of the dynamics finds the wrong
labels (several seeds of training), how the spectrum of the representation changes with the rate of noise, and, by a
sweep of small trainings, how much data a unit of noise is worth.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import uimjax.understand.scaling as law
from uimjax import training
from uimjax.corpora.handwritten import digits
from uimjax.errors import DataError, MissingFileError, ShapeError
from uimjax.models import classifiers
from uimjax.progress import Progress, quiet
from uimjax.report import figures, figures_dynamics, figures_representation, figures_scaling
from uimjax.steps import Recipe
from uimjax.understand.dynamics import Collector, detection, read
from uimjax.understand.dynamics.collector import CLASSES
from uimjax.understand.representation import spectrum_of
from uimjax.understand.scaling import sweeps
from uimjax.workflow import recording

LEVEL = 0.95
VALUES = {"loss": "held-out loss, nats", "error_rate": "held-out error rate"}
PARTS = ("image", "given", "true", "test_image", "test_label")


class Noisy(NamedTuple):
    """`image` `[N, H, W, C]` in 0..1, the `given` and the `true` labels `[N]`, and held-out pictures with theirs."""

    image: np.ndarray
    given: np.ndarray
    true: np.ndarray
    test_image: np.ndarray
    test_label: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        return self.given != self.true


def flipped(true: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """The labels with that share of them changed to another class, each other one as likely."""
    rng, classes = np.random.default_rng(seed), int(true.max()) + 1
    chosen = rng.permutation(len(true))[: round(rate * len(true))]
    found = true.copy()
    found[chosen] = (true[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return found


def examples(data: str, rate: float) -> Noisy:
    """The built-in digits with flipped labels, or an `.npz` of one's own with `PARTS`.

    Raises:
        MissingFileError, ShapeError. DataError: the file is no .npz of numbers, or no label is wrong, so that nothing
            could be found.
    """
    if data == "digits":
        corpus = digits()
        true = corpus.train["label"]
        found = Noisy(corpus.train["image"], flipped(true, rate, 0), true, corpus.test["image"], corpus.test["label"])
    else:
        path = Path(data)
        if not path.is_file():
            raise MissingFileError(f"{path} is not a file; 'digits' or an .npz of {', '.join(PARTS)} was wanted")
        found = _opened(path)
    _check(data, found)
    return found


def _opened(path: Path) -> Noisy:
    try:
        with path.open("rb") as file:
            held = np.load(file)
            names = list(getattr(held, "files", ()))  # of an .npy: none
            parts = {name: held[name] for name in PARTS if name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # objects are pickled: ValueError
        raise DataError(f"{path}: {error}. An .npz of {', '.join(PARTS)}, arrays of numbers, was wanted") from error
    if lacking := [name for name in PARTS if name not in parts]:
        raise ShapeError(f"{path} holds {', '.join(names) or 'no named arrays'}; {', '.join(lacking)} are missing")
    return Noisy(**parts)


def _check(data: str, found: Noisy) -> None:
    for name in ("image", "test_image"):
        pictures = getattr(found, name)
        if not pictures.size or pictures.dtype.kind not in "fiub":
            raise ShapeError(f"{data}: {name} {pictures.dtype}{pictures.shape}; numbers [N, H, W, C], N > 0, wanted")
    if found.image.ndim != 4 or found.test_image.shape[1:] != found.image.shape[1:]:
        raise ShapeError(f"{data}: pictures {found.image.shape} and {found.test_image.shape}; [N, H, W, C] were wanted")
    for name, labels, count in (("given", found.given, len(found.image)), ("true", found.true, len(found.image)),
                                ("test_label", found.test_label, len(found.test_image))):  # fmt: skip
        if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ShapeError(f"{data}: {name} {labels.dtype}{labels.shape} for {count} pictures; classes from 0 wanted")
    if not found.wrong.any():
        raise DataError(f"{data}: every given label is the true one; nothing is there to be found")


def study(config: Any, folder: Path, progress: Progress = quiet) -> dict[str, Any]:
    """All three answers, their pictures written into the folder; continues where it stopped. With `tensorboard`, what
    `workflow.recording` says is there too.

    Raises:
        As `examples`, `sweeps.plan`, before anything trains; as `training.fit`, `scaling.sweep` and `scaling.fit`.
    """
    held = examples(config.data, config.rate)
    sweeps.plan(_axes(config), None, "mlp", sweeps.problem_of("mlp", _rows(held)))  # refused now, not hours later
    records = recording.Records(folder) if config.tensorboard else None
    tables, features = [], []
    for seed in progress(range(config.seeds), "training with a collector", "seeds"):
        name = f"seed-{seed}"
        features.append(_trained(held, held.given, config, seed, folder / name, records))
        tables.append(read(folder / name))
    if records is not None:
        recording.scores(records, tables[0], held.given, held.true)
    found = detection(tables, np.flatnonzero(held.wrong))
    spectra = _spectra(held, config, folder, progress)
    spectra["given"] = {"rate": float(held.wrong.mean())} | _spread([spectrum_of(x) for x in features], 1)
    swept, fitted, draws = _law(held, config, folder, records, progress)
    pictures = _pictures(held, tables[0], found, spectra, _curve(fitted, draws, VALUES[config.fitted]))
    for name, figure in pictures.items():
        figures.write(figure, folder, name)
    return {
        "data": config.data, "examples": len(held.given), "wrong": int(held.wrong.sum()), "seeds": config.seeds,
        "scores": _scores(found), "representation": spectra, "runs": len(swept.rows),
        "law": _told(fitted, draws), "readings": {name: figure.reading for name, figure in pictures.items()},
    }  # fmt: skip


def _trained(
    held: Noisy, labels: np.ndarray, config: Any, seed: int, folder: Path, records: recording.Records | None = None
) -> np.ndarray:
    """Features `[N, D]` of the training pictures at the end; the folder has the table of the run.

    Each training collects, though of those by rate of noise nobody reads the table: with `grand` the gradient is taken
    at the sites, and XLA's own of a convolution takes four times as long on a CPU (33 s of an epoch against 9).
    """
    classes = int(max(held.true.max(), held.test_label.max(), labels.max())) + 1
    task, params = classifiers.build(config.model, held.image.shape[1:], classes, seed)
    rows = {"image": held.image.astype(np.float32), "label": labels.astype(np.int32)}
    recipe = Recipe(config.epochs, config.batch_size, config.learning_rate, seed=seed)
    early = tuple(k for k in (0, 4, 9, 19) if k < config.epochs)
    collector = Collector(len(labels), (*CLASSES, "grand"), at=early, ring=config.epochs)
    before = training.resumes_at(folder) == config.epochs
    sink = None if records is None or (before and records.has(folder.name)) else records.open(folder.name)
    made = training.fit(task, params, rows, recipe, folder=folder, save_every=config.epochs, dynamics=collector,
                        sinks=() if sink is None else (sink,))  # fmt: skip
    if sink is not None:
        if before:
            recording.curves(sink, made, recipe)
        sink.close()
    features = jax.jit(jax.vmap(lambda image: task.features(made.params, {"image": image})))  # type: ignore[misc]
    return np.concatenate([np.asarray(features(jnp.asarray(part))) for part in np.array_split(rows["image"], 8)])


def _spectra(held: Noisy, config: Any, folder: Path, progress: Progress) -> dict[str, Any]:
    """SVE and LSVR of the representation by rate of noise: means and their intervals over seeds."""
    jobs = [(rate, seed) for rate in config.rates for seed in range(config.seeds)]
    each = []
    for rate, seed in progress(jobs, "representations by noise", "trainings"):
        labels = flipped(held.true, rate, 1000 + seed)
        each.append(spectrum_of(_trained(held, labels, config, seed, folder / f"rate-{rate:g}-seed-{seed}")))
    return {"rates": list(config.rates)} | _spread(each, len(config.rates))


def _spread(each: Sequence[Any], rates: int) -> dict[str, dict[str, Any]]:
    """Of the spectra of every seed at one rate, then at the next. `change` [mean, low, high] from the first rate to the
    last, if there are two, is taken seed by seed: seeds differ among themselves, and not by noise."""
    found = {}
    for name in ("sve", "lsvr"):
        values = np.array([getattr(s, name) for s in each]).reshape(rates, -1)
        found[name.upper()] = _over_seeds(values)
        if rates > 1:
            change = _over_seeds((values[-1] - values[0])[None])
            found[name.upper()]["change"] = [change[key][0] for key in ("mean", "low", "high")]
    return found


def _over_seeds(values: np.ndarray) -> dict[str, list[float]]:
    """Of `[R, S]`: mean and Student's interval over seeds."""
    mean, count = values.mean(1), values.shape[1]
    spread = values.std(1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(len(values))
    half = spread * float(stats.t.ppf((1 + LEVEL) / 2, max(count - 1, 1)))
    return {"mean": mean.tolist(), "low": (mean - half).tolist(), "high": (mean + half).tolist()}


def _rows(held: Noisy) -> Any:
    flat = lambda x: x.reshape(len(x), -1).astype(np.float32)  # noqa: E731  # one line, used twice
    return law.Labelled(flat(held.image), held.true, flat(held.test_image), held.test_label)


def _axes(config: Any) -> dict[str, list[Any]]:
    return {
        "width": list(config.widths), "data": list(config.amounts), "corruption": list(config.corruptions),
        "seed": list(range(config.law_seeds)), "epochs": [config.law_epochs],
        "learning_rate": [config.law_learning_rate],
    }  # fmt: skip


def _law(
    held: Noisy, config: Any, folder: Path, records: recording.Records | None, progress: Progress
) -> tuple[Any, Any, Any]:
    where = folder / "sweep"
    swept = law.sweep(where, _axes(config), data=_rows(held), recorder=recording.recorder(records), progress=progress)
    if records is not None:
        recording.swept_before(records, where, swept)
    fitted = law.fit(swept.rows, "corrupted", loss=config.fitted, columns={"D": "U"})
    return swept, fitted, law.bootstrap(fitted)


def _told(fitted: Any, draws: Any) -> dict[str, Any]:
    from uimjax.understand.scaling.saved import told

    return told(fitted, draws, {"D": "U"}, "corrupted")


def _scores(found: Any) -> list[dict[str, Any]]:
    columns = (found.names, found.auroc, found.auroc_low, found.auroc_high, found.precision, found.precision_low,
               found.precision_high)  # fmt: skip
    made = [
        {"score": n, "auroc": [float(a), float(low), float(high)], "average_precision": [float(p), float(q), float(r)]}
        for n, a, low, high, p, q, r in zip(*columns, strict=True)
    ]
    return sorted(made, key=lambda row: -row["auroc"][0])


def _pictures(held: Noisy, table: Any, found: Any, spectra: Any, curve: figures.Figure) -> dict[str, figures.Figure]:
    s = table.scores
    names = np.where(held.wrong, "wrong label", "right label").tolist()
    share = table.statistics.correct / np.maximum(table.statistics.met, 1)
    series = {name: tuple(spectra[name][key] for key in ("mean", "low", "high")) for name in ("SVE", "LSVR")}
    return {
        "data_map": figures_dynamics.data_map(s["confidence"].values, s["variability"].values, share, names),
        "detection": figures_dynamics.detection(
            found.names, found.auroc, found.auroc_low, found.auroc_high, "the wrong labels", found.band
        ),
        "representation": figures_representation.against(spectra["rates"], series, band="95% over seeds"),
        "law": curve,
    }


def _curve(fitted: Any, draws: Any, value: str) -> figures.Figure:
    """Losses against the amount of clean data that they are worth: all runs fall on one curve if the law holds."""
    x, kappa = fitted.rows.x, fitted.natural["kappa"]
    worth = x["D"] * np.exp(-kappa * x["noise"])
    at = np.geomspace(worth.min(), worth.max(), 60)
    inputs: dict[str, Sequence[float]] = {"D": at.tolist(), "noise": np.zeros(60).tolist()}
    said = law.predict(fitted, inputs, draws)
    points = [(float(w), float(y), f"noise {q:g}") for w, y, q in zip(worth, fitted.rows.y, x["noise"], strict=True)]
    return figures_scaling.scaling(
        points, (at, said.value, said.low, said.high), x_title=f"clean examples it is worth, D exp(-{kappa:.3g} noise)",
        y_title=value, band="95% of refits",
    )  # fmt: skip
