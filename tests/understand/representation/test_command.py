"""`uimjax representation` in this process: files of every kind, streams, models over a corpus, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import uimjax as uj
from tests.pretrained import folders
from uimjax.cli import parser
from uimjax.commands import representation as command
from uimjax.errors import UimError

N, D = 60, 5


def called(folder, monkeypatch, *args):
    monkeypatch.chdir(folder)
    words = ["representation", *args]
    return command.representation(parser(words).parse_args(words), [])


def answer(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at, rng = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    first, turn = rng.normal(size=(N, D)), rng.normal(size=(D, D))
    (at / "steps").mkdir()
    for step in (2, 10):
        np.save(at / "steps" / f"step-{step}.npy", first + step * 0.1 * (first @ turn))
    x = np.load(at / "steps" / "step-2.npy")
    np.savez(at / "x.npz", x)
    names = {f"f{k}": x[:, k] for k in range(D)}
    parquet.write_table(pa.table({"id": np.arange(N), **names}), at / "columns.parquet")
    parquet.write_table(pa.table({"label": np.arange(N), "h": x.tolist()}), at / "list.parquet")
    (at / "x.jsonl").write_text("".join(json.dumps({"id": k, "h": row}) + "\n" for k, row in enumerate(x.tolist())))
    np.save(at / "few.npy", x[:3])
    np.save(at / "wide.npy", rng.normal(size=(N, 2 * D)))
    np.save(at / "other.npy", rng.normal(size=(7, 2 * D)))
    np.save(at / "flat.npy", np.ones((N, D)))
    np.save(at / "cube.npy", np.ones((2, 2, 2)))
    np.savez(at / "two.npz", a=x, b=x)
    (at / "words.jsonl").write_text('{"text": "a"}\n')
    (at / "lists.jsonl").write_text('{"h": ["a", "b"]}\n')
    (at / "more.jsonl").write_text('{"a": 1, "b": 2}\n{"a": 2, "b": 3, "c": 9}\n')
    np.save(at / "zero.npy", np.zeros((N, D)))
    np.save(at / "nan.npy", np.where(np.arange(N * D).reshape(N, D) == 5, np.nan, x))
    return at


def test_checkpoints_of_a_folder_are_taken_in_order_with_all_numbers(folder, monkeypatch, capsys):
    called(folder, monkeypatch, "steps", "--out", "out", "--json")
    found = answer(capsys)
    assert [line["name"] for line in found["files"]] == ["step-2", "step-10"]
    x, y = (np.load(folder / "steps" / f"step-{k}.npy") for k in (2, 10))
    made = uj.representation.spectrum_of(x)
    for name in (
        "sve",
        "lsvr",
        "effective_rank",
        "rankme",
        "participation_ratio",
        "stable_rank",
        "skewness",
        "kurtosis",
    ):
        assert found["files"][0][name] == pytest.approx(getattr(made, name), rel=1e-9)
    assert found["files"][0]["two_nn"] == pytest.approx(uj.representation.two_nn(x).regression)
    assert found["cka"]["kind"] == "unbiased"
    assert found["cka"]["matrix"][0][1] == pytest.approx(uj.representation.cka(x, y))
    assert found["angles"]["radians"] == pytest.approx(uj.representation.principal_angles(x, y, D // 2).radians)
    for name in ("spectrum", "cka", "series"):
        assert {(folder / "out" / f"{name}.{e}").exists() for e in ("svg", "csv", "txt")} == {True}
    assert "number in the file's name" in (folder / "out" / "series.txt").read_text()
    held = json.loads((folder / "out" / "representation.json").read_text())
    assert held["singular_values"]["step-2"] == pytest.approx(made.singular_values)


def test_every_kind_of_file_gives_the_same_numbers(folder, monkeypatch, capsys):
    files = ("steps/step-2.npy", "x.npz", "columns.parquet", "list.parquet", "x.jsonl")
    called(folder, monkeypatch, *files, "--names", "a", "b", "c", "d", "e", "--out", "kinds", "--centred", "--json")
    found = answer(capsys)
    assert [line["name"] for line in found["files"]] == list("abcde")
    assert len({round(line["sve"], 12) for line in found["files"]}) == 1
    assert found["files"][2]["columns"] == [f"f{k}" for k in range(D)]
    np.testing.assert_allclose(found["cka"]["matrix"], np.ones((5, 5)), atol=1e-12)
    x = np.load(folder / "steps" / "step-2.npy")
    assert found["files"][0]["sve"] == pytest.approx(uj.representation.spectrum_of(x, centred=True).sve)


def test_large_files_are_streamed_to_the_same_numbers(folder, monkeypatch, capsys):
    called(folder, monkeypatch, "steps", "--out", "loaded", "--json")
    loaded = answer(capsys)
    monkeypatch.setattr(command, "WHOLE", 100)
    monkeypatch.setattr(command, "SIDE", 100)  # and CKA a pair at a time
    called(folder, monkeypatch, "steps", "--out", "streamed", "--json")
    found = answer(capsys)
    assert [line["streamed"] for line in found["files"]] == [True, True]
    for one, other in zip(loaded["files"], found["files"], strict=True):
        for name in ("sve", "participation_ratio", "kurtosis", "two_nn"):
            assert one[name] == pytest.approx(other[name], rel=1e-6)
    np.testing.assert_allclose(found["cka"]["matrix"], loaded["cka"]["matrix"], atol=1e-12)
    assert "streamed" in found["angles"]["left_out"]


def test_what_cannot_be_said_is_left_out_with_its_reason(folder, monkeypatch, capsys):
    called(folder, monkeypatch, "few.npy", "wide.npy", "--out", "odd")
    text = capsys.readouterr().out
    assert "few: no TwoNN: 3 distinct rows" in text
    assert "no CKA: files hold [3, 60] rows" in text
    called(folder, monkeypatch, "few.npy", "few.npy", "--out", "few", "--json")
    found = answer(capsys)
    assert found["cka"]["kind"] == "biased"
    assert found["files"][0]["two_nn"] is None
    called(folder, monkeypatch, "flat.npy", "x.npz", "--out", "flat", "--json")
    assert "look for a dead layer" in answer(capsys)["cka"]["left_out"]
    called(folder, monkeypatch, "steps/step-2.npy", "wide.npy", "--out", "rows", "--json")
    assert answer(capsys)["angles"]["space"] == "rows"
    called(folder, monkeypatch, "few.npy", "other.npy", "--out", "neither", "--json")
    assert "share neither" in answer(capsys)["angles"]["left_out"]


def test_models_over_a_corpus_are_their_tasks_features(tmp_path, monkeypatch, capsys):
    import jax

    for name in ("one", "two"):
        folders.write(tmp_path / name, "llama", words=40)
    texts = [" ".join(f"w{(7 * k + j) % 40}" for j in range(20)) for k in range(30)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    args = ("--corpus", "corpus.jsonl", "--limit", "20", "--out", "out", "--json")
    called(tmp_path, monkeypatch, "--model", "one", "two", *args)
    found = answer(capsys)
    assert [(line["name"], line["rows"]) for line in found["files"]] == [("one", 20), ("two", 20)]
    assert found["cka"]["matrix"][0][1] == pytest.approx(1)
    its = uj.load(tmp_path / "one")
    from uimjax import rows as row
    from uimjax.corpora.prepared import open_prepared

    rows = row.spread(open_prepared(tmp_path / "out" / "corpus").rows, 20)
    mine = jax.vmap(its.task.features, (None, 0))(its.params, row.take(rows, np.arange(20)))
    np.testing.assert_allclose(np.load(tmp_path / "out" / "features" / "one.npy"), mine, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        ((), 2, "no features arrived"),
        (("x.npz", "--model", "m", "--corpus", "c"), 2, "one of the three fits"),
        (("--model", "m"), 2, "go together"),
        (("--model", "m", "--corpus", "none.jsonl"), 3, "none.jsonl"),
        (("none.npy",), 3, "is not a file"),
        (("x.csv",), 3, "is not a file"),
        (("cube.npy",), 3, "numbers \\[N, d\\] were wanted"),
        (("two.npz",), 3, "one array was wanted"),
        (("words.jsonl",), 3, "holds no numbers"),
        (("x.npz", "--names", "a", "b"), 2, "one each was wanted"),
        (("x.npz", "--limit", "3"), 2, "--limit is of the rows that a model is given, and files of features arrived"),
        (("more.jsonl",), 3, "more.jsonl, line 2: c is in this row or in the first, and not in both"),
        (("lists.jsonl",), 3, "lists.jsonl: h holds lists of string"),
        (("x.npz", "nan.npy"), 3, "nan.npy: features: the array holds 1 value"),
        (("x.npz", "zero.npy"), 3, "zero.npy: all singular values are zero"),
    ],
)
def test_wrong_input_ends_with_its_code_and_its_cure(folder, monkeypatch, args, code, match):
    with pytest.raises(UimError, match=match) as caught:
        called(folder, monkeypatch, *args, "--out", "wrong")
    assert caught.value.exit_code == code


def test_a_number_that_only_tells_names_apart_is_no_axis():
    assert command._axis(["a", "a (2)"]) == ([1, 2], "place of the file")
    assert command._axis(["step-2", "step-10"]) == ([2, 10], "number in the file's name")
