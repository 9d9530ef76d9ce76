"""Logs of other tools: the same scores as their own definitions give, and every row that is off named."""

import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from scipy.special import log_softmax, softmax

import uimjax as uj
from uimjax.errors import (
    DataError,
    MalformedRowError,
    MissingFileError,
    NonFiniteError,
    ShapeError,
    UnknownNameError,
    UsageError,
)
from uimjax.understand.dynamics import elsewhere, logs

T, N, C = 4, 6, 3


@pytest.fixture
def logits(rng):
    return rng.normal(size=(T, N, C)) * 2


@pytest.fixture
def labels():
    return np.arange(N) % C


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def slow(logits, labels):
    """Each score of each example by its definition, one epoch after the other."""
    found = {
        name: [] for name in ("aum", "confidence", "variability", "correctness", "forgetting", "loss_mean", "el2n")
    }
    for k, label in enumerate(labels):
        z = np.asarray(logits)[:, k].astype(np.float64)
        p = softmax(z, -1)
        right = z.argmax(-1) == label
        found["aum"].append(np.mean(z[:, label] - np.delete(z, label, 1).max(1)))
        found["confidence"].append(p[:, label].mean())
        found["variability"].append(np.std(p[:, label]))
        found["correctness"].append(right.sum())
        lost = sum(a and not b for a, b in zip(right[:-1], right[1:], strict=True))
        found["forgetting"].append(lost if right.any() else 1000)
        found["loss_mean"].append(-log_softmax(z, -1)[:, label].mean())
        found["el2n"].append(np.linalg.norm(p - np.eye(z.shape[1])[label], axis=1).mean())
    return found


def check(table, logits, labels, names=None):
    for name, wanted in slow(logits, labels).items():
        if names is None or name in names:
            np.testing.assert_allclose(table.scores[name].values, wanted, rtol=1e-10, atol=1e-12, err_msg=name)


def columns(logits, labels, kind="logits"):
    """A log, its rows shuffled."""
    order = np.random.default_rng(1).permutation(T * N)
    found = {"id": [f"e{k % N}" for k in order], "epoch": [int(k // N) for k in order]}
    found["label"] = [int(labels[k % N]) for k in order]
    flat = logits.reshape(T * N, C)[order]
    if kind == "list":
        return found | {"logits": flat.tolist()}
    if kind == "p":
        flat = softmax(flat, -1)
    if kind == "loss":
        return found | {"loss": (-log_softmax(flat, -1)[np.arange(T * N), found["label"]]).tolist()}
    return found | {f"{kind}_{c}": flat[:, c].tolist() for c in range(C)}


def write(path, held):
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(held), path)
    elif path.suffix == ".jsonl":
        rows = [dict(zip(held, row, strict=True)) for row in zip(*held.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        rows = [",".join(held), *(",".join(map(str, row)) for row in zip(*held.values(), strict=True))]
        path.write_text("\n".join(rows) + "\n")
    return path


def epochs(folder, logits, labels, **changes):
    for epoch, z in enumerate(logits):
        rows = [
            {"guid": 100 + k, f"logits_epoch_{epoch}": z[k].tolist(), "gold": int(labels[k])} for k in range(len(z))
        ]
        (folder / f"dynamics_epoch_{epoch}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, change in changes.items():
        path = folder / f"dynamics_{name}.jsonl"
        path.write_text(change(path.read_text()))
    return folder


def how(**options):
    return uj.dynamics.Definitions(never_learned="cartography", **options)


def test_cartographys_samples_give_its_coordinates(reference_data):
    folder = reference_data / "cartography_samples"
    table = elsewhere.cartography(folder)
    seen = {}  # the samples hold ten lines of each epoch, of whatever examples
    for epoch in range(5):
        for row in lines(folder / f"dynamics_epoch_{epoch}.jsonl"):
            seen.setdefault(row["guid"], (row["gold"], []))[1].append(row[f"logits_epoch_{epoch}"])
    assert table.ids.tolist() == list(seen)
    for k, (gold, logits) in enumerate(seen.values()):
        assert table.statistics.met[k] == len(logits)
        for name, wanted in slow(np.array(logits)[:, None], [gold]).items():
            assert table.scores[name].values[k] == pytest.approx(wanted[0], rel=1e-10, abs=1e-12), name
    assert all(np.isfinite(table.scores[name].values).all() for name in ("confidence", "variability", "correctness"))
    assert table.statistics.met.sum() == 50


def test_a_finished_map_is_read_and_written_as_it_was(reference_data, tmp_path):
    path = reference_data / "cartography_samples" / "winogrande_roberta_0_6_data_map_coordinates.jsonl.gz"
    table = elsewhere.coordinates(path)
    assert len(table.ids) == 40398
    assert table.statistics is None
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    made = elsewhere.write_cartography(table, tmp_path / "map.jsonl")
    for theirs, mine in zip(rows, lines(made), strict=True):
        assert {name: mine[name] for name in theirs} == theirs


def test_cartography_is_what_it_was_made_from(tmp_path, logits, labels):
    (tmp_path / "training_dynamics").mkdir()
    epochs(tmp_path / "training_dynamics", logits, labels)
    table = elsewhere.cartography(tmp_path, ring=2)
    check(table, logits, labels)
    assert table.losses.shape == (N, 2)
    made = elsewhere.write_cartography(table, tmp_path / "td_metrics.jsonl")
    rows = lines(made)
    m = softmax(logits, -1)[:, np.arange(N), labels].mean(0)
    np.testing.assert_allclose([row["threshold_closeness"] for row in rows], m * (1 - m))
    assert [row["forgetfulness"] for row in rows] == slow(logits, labels)["forgetting"]
    assert list(rows[0]) == [
        "guid", "index", "threshold_closeness", "confidence", "variability", "correctness", "forgetfulness",
    ]  # fmt: skip
    back = elsewhere.coordinates(made)
    np.testing.assert_array_equal(back.scores["confidence"].values, table.scores["confidence"].values)


def test_examples_that_were_never_met_are_on_no_map(tmp_path, logits, labels):
    table = elsewhere.logits_log(logits, labels)
    blank = table.statistics.probability.copy()
    blank[2] = np.nan
    table = table._replace(statistics=table.statistics._replace(probability=blank))
    rows = lines(elsewhere.write_cartography(table, tmp_path / "map.jsonl"))
    assert [row["index"] for row in rows] == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("kind", ["logits", "list", "p"])
def test_rows_in_any_order_give_every_score(tmp_path, logits, labels, ending, kind):
    if (ending, kind) == ("csv", "list"):
        pytest.skip("CSV holds no lists")
    path = write(tmp_path / f"log.{ending}", columns(logits, labels, kind))
    table = elsewhere.steps_log(path, definitions=how())
    order = [int(name[1:]) for name in table.ids]
    check(table, logits[:, order], labels[order])
    assert table.labels.tolist() == labels[order].tolist()


def test_losses_alone_give_losses_alone(logits, labels):
    table = elsewhere.steps_log(columns(logits, labels, "loss"), ring=T)
    assert set(table.scores) == {"loss_mean", "loss_final"}
    order = [int(name[1:]) for name in table.ids]
    check(table, logits[:, order], labels[order], ("loss_mean",))
    wanted = -log_softmax(logits, -1)[:, np.arange(N), labels].T[order]
    np.testing.assert_allclose(table.losses, wanted, rtol=1e-3)


def test_many_rows_are_fed_in_parts(monkeypatch, logits, labels):
    monkeypatch.setattr(elsewhere, "BATCH", 4)
    check(elsewhere.logits_log(logits, labels, definitions=how()), logits, labels)


def test_examples_that_an_epoch_lacks_are_means_over_the_others(logits, labels):
    held = {name: x[:-5] for name, x in columns(logits, labels).items()}
    table = elsewhere.steps_log(held)
    for k, name in enumerate(table.ids):
        z = np.array([[held[f"logits_{c}"][row] for c in range(C)] for row, i in enumerate(held["id"]) if i == name])
        label = labels[int(name[1:])]
        assert table.statistics.met[k] == len(z)
        assert table.scores["aum"].values[k] == pytest.approx(np.mean(z[:, label] - np.delete(z, label, 1).max(1)))


def test_numpy_files(tmp_path, logits, labels):
    np.savez(tmp_path / "run.npz", logits=logits, labels=labels, ids=[f"a{k}" for k in range(N)])
    table = elsewhere.logits_log(tmp_path / "run.npz", definitions=how())
    check(table, logits, labels)
    assert table.ids.tolist() == [f"a{k}" for k in range(N)]
    np.save(tmp_path / "run.npy", logits)
    check(elsewhere.logits_log(tmp_path / "run.npy", labels, definitions=how()), logits, labels)
    with pytest.raises(UsageError, match="no labels arrived; give labels="):
        elsewhere.logits_log(tmp_path / "run.npy")
    with pytest.raises(DataError, match=r"of shape \[4, 6, 3\] with labels \[2\]; \[T, N, C\] and \[N\] fit"):
        elsewhere.logits_log(logits, labels[:2])
    with pytest.raises(DataError, match="epoch 0, example 1: label 5 arrived; 0..2, as there are 3 logits, was wanted"):
        elsewhere.logits_log(logits, [0, 5, 0, 0, 0, 0])
    logits[2, 3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="epoch 2, example 3: logits is NaN"):
        elsewhere.logits_log(logits, labels)
    np.savez(tmp_path / "odd.npz", logit=logits, labels=labels)
    with pytest.raises(UnknownNameError, match="unknown array 'logits'. Did you mean 'logit'"):
        elsewhere.logits_log(tmp_path / "odd.npz")
    (tmp_path / "text.npy").write_text("no")
    with pytest.raises(DataError, match="is no NumPy file of plain numbers"):
        elsewhere.logits_log(tmp_path / "text.npy")
    with pytest.raises(MissingFileError, match="a .npy or .npz of logits"):
        elsewhere.logits_log(tmp_path / "nowhere.npy")


def test_the_digits_run_as_an_array(reference_data):
    run = np.load(reference_data / "digits_dynamics" / "digits_mlp_dynamics.npz")
    table = elsewhere.logits_log(run["logits"][1:], run["labels"])
    with gzip.open(reference_data / "digits_dynamics" / "golden_scores.csv.gz", "rt") as file:
        names = file.readline().strip().split(",")
        golden = np.genfromtxt(file, delimiter=",", names=names)
    for name in ("aum", "confidence", "variability", "aleatoric", "loss_mean"):
        np.testing.assert_allclose(table.scores[name].values, golden[name], rtol=1e-6, atol=1e-8, err_msg=name)
    for name in ("correctness", "forgetting", "presentations_to_learn"):
        assert (table.scores[name].values == golden[name]).all(), name


def replaced(old, new):
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda text: text[:-5], MalformedRowError, r"dynamics_epoch_1.jsonl, line 6: not JSON"),
        (lambda text: text + "[1]\n", MalformedRowError, "line 7: a JSON object was wanted, list arrived"),
        (replaced('"gold"', '"golden"'), MalformedRowError, "line 1: unknown field 'gold'. Did you mean 'golden'"),
        (replaced("epoch_1", "epoch_2"), MalformedRowError, "unknown field 'logits_epoch_1'. Did you mean"),
        (replaced('"gold": 0', '"gold": 7'), DataError, "line 1: the label of 100 is 7, before it was 0"),
        (replaced('"gold": 0', '"gold": 0.5'), DataError, "line 1: gold is 0.5; a whole number was wanted"),
        (replaced('"guid": 101', '"guid": 100'), DataError, r"line 2: 100 stands twice in epoch 1 \(before: .*line 1"),
        (replaced("[", "[1.5, "), DataError, "line 1: 4 numbers as logits; row 1 has 3, and every row should"),
        (lambda text: re.sub(r"\[[^,]*", "[NaN", text, count=1), NonFiniteError, "line 1: logits is NaN"),
    ],
)
def test_cartography_files_that_are_off(tmp_path, logits, labels, change, error, match):
    with pytest.raises(error, match=match):
        elsewhere.cartography(epochs(tmp_path, logits, labels, epoch_1=change))


def test_cartography_folders_that_are_off(tmp_path, logits, labels):
    with pytest.raises(MissingFileError, match="holds no dynamics_epoch_0.jsonl"):
        elsewhere.cartography(tmp_path)
    epochs(tmp_path, logits, labels)
    (tmp_path / "dynamics_epoch_2.jsonl").unlink()
    with pytest.raises(DataError, match="lacks dynamics_epoch_2.jsonl between others; scores need every epoch"):
        elsewhere.cartography(tmp_path)
    for path in tmp_path.iterdir():
        path.write_text("")
    (tmp_path / "dynamics_epoch_2.jsonl").write_text("")
    with pytest.raises(DataError, match="has no rows"):
        elsewhere.cartography(tmp_path)


@pytest.mark.parametrize(
    ("name", "place", "value", "error", "match"),
    [
        ("label", 3, 9, DataError, "row 4: the label of .* is 9, before it was|label 9 arrived; 0..2"),
        ("epoch", 3, 1.5, DataError, "row 4: epoch is 1.5; a whole number was wanted"),
        ("logits_1", 2, float("nan"), NonFiniteError, "row 3: logits_1 is NaN, infinite or missing"),
        ("logits_1", 2, "high", DataError, "row 3: logits_1 is 'high'; a number was wanted"),
        ("label", 1, None, NonFiniteError, "row 2: label is NaN, infinite or missing"),
    ],
)
def test_values_that_are_off(logits, labels, name, place, value, error, match):
    held = columns(logits, labels)
    held[name][place] = value
    with pytest.raises(error, match=match):
        elsewhere.steps_log(held)


def test_rows_that_are_off(logits, labels):
    held = columns(logits, labels)
    again = {name: [*x, x[3]] for name, x in held.items()}
    with pytest.raises(DataError, match=rf"row 25: {held['id'][3]} stands twice in epoch .* \(before: row 4\)"):
        elsewhere.steps_log(again)
    with pytest.raises(DataError, match="label -1 arrived; 0..2, as there are 3 logits, was wanted"):
        elsewhere.steps_log(held | {"label": [-1] * len(held["id"])})
    losses = columns(logits, labels, "loss")
    losses["loss"][4] = -0.5
    with pytest.raises(DataError, match="row 5: a loss of -0.5; -log p is 0 or more"):
        elsewhere.steps_log(losses)
    listed = columns(logits, labels, "list")
    listed["logits"][6] = [1.0, 2.0]
    with pytest.raises(DataError, match="row 7: 2 numbers as logits; row 1 has 3"):
        elsewhere.steps_log(listed)
    p = columns(logits, labels, "p")
    p["p_0"][2] += 0.1
    with pytest.raises(DataError, match="row 3: .* are no probabilities: in 0..1, with sum 1"):
        elsewhere.steps_log(p)


def test_probabilities_of_zero_are_not_made_up():
    held = {"id": [0, 1], "step": [0, 0], "label": [0, 1], "p_0": [0.25, 0.0], "p_1": [0.75, 1.0]}
    with pytest.raises(DataError, match="row 2: p_0 is 0, which has no logarithm; .* floor=1e-7"):
        elsewhere.steps_log(held)
    table = elsewhere.steps_log(held, floor=1e-6)
    np.testing.assert_allclose(table.scores["aum"].values, [np.log(1 / 3), np.log(1e6)], rtol=1e-6)


def test_columns_that_are_missing(logits, labels):
    held = columns(logits, labels)
    without = lambda *names: {name: x for name, x in held.items() if name not in names}  # noqa: E731  # used five times
    with pytest.raises(UnknownNameError, match="unknown column 'id'"):
        elsewhere.steps_log(without("id") | {"guid": held["id"]})
    elsewhere.steps_log(without("id") | {"guid": held["id"]}, columns={"id": "guid"})
    with pytest.raises(UnknownNameError, match="unknown column 'guide'. Did you mean 'guid'"):
        elsewhere.steps_log(without("id") | {"guid": held["id"]}, columns={"id": "guide"})
    with pytest.raises(UnknownNameError, match="unknown column 'step'. Did you mean 'steps'"):
        elsewhere.steps_log(without("epoch") | {"steps": held["epoch"]})
    with pytest.raises(UnknownNameError, match="unknown column 'label'. Did you mean 'labels'"):
        elsewhere.steps_log(without("label") | {"labels": held["label"]})
    with pytest.raises(UnknownNameError, match="unknown column 'logits_1'"):
        elsewhere.steps_log(without("logits_1"))
    with pytest.raises(UnknownNameError, match="unknown column 'loss'"):
        elsewhere.steps_log(without("logits_0", "logits_1", "logits_2"))
    with pytest.raises(DataError, match="columns of several lengths arrived"):
        elsewhere.steps_log(held | {"id": ["a"]})


def test_files_that_are_off(tmp_path):
    with pytest.raises(MissingFileError, match="is not a file; a log of training"):
        elsewhere.steps_log(tmp_path / "nowhere.csv")
    (tmp_path / "log.txt").write_text("")
    with pytest.raises(UsageError, match="a log of training ends in .csv, .tsv, .parquet or .jsonl, not in '.txt'"):
        elsewhere.steps_log(tmp_path / "log.txt")
    (tmp_path / "log.csv").write_text("id,step,loss\n1,2,3\n1,2\n")
    with pytest.raises(MalformedRowError, match="line 3: 2 fields for 3 columns"):
        elsewhere.steps_log(tmp_path / "log.csv")
    (tmp_path / "log.parquet").write_text("id")
    with pytest.raises(DataError, match="cannot be read as a table"):
        elsewhere.steps_log(tmp_path / "log.parquet")
    (tmp_path / "map.jsonl").write_text("")
    with pytest.raises(DataError, match="has no rows; one an example was wanted"):
        elsewhere.coordinates(tmp_path / "map.jsonl")


def test_a_map_takes_confidence(tmp_path, logits, labels):
    table = elsewhere.steps_log(columns(logits, labels, "loss"))
    with pytest.raises(UnknownNameError, match="unknown score 'confidence'"):
        elsewhere.write_cartography(table, tmp_path / "map.jsonl")


def test_the_row_that_is_named_is_the_wrong_one_and_ids_are_of_one_kind():
    where = lambda k: f"row {k + 1}"  # noqa: E731  # as readers give it
    with pytest.raises(DataError, match="row 4: loss is 'abc'"):
        logs.numbers("loss", ["0.1", None, "0.2", "abc"], where)
    with pytest.raises(DataError, match="row 1: the id is the number 1, and row 2 has '1'"):
        logs.named([1, "1"], where)


def test_no_labels_at_all_are_refused():
    for labels in ([], np.zeros(0, int)):
        with pytest.raises((DataError, ShapeError), match="labels"):
            uj.dynamics.label_issues(labels, np.zeros((0, 3)))
