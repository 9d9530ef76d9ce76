"""Indexes that grow, are joined, damaged and repaired; what a coding costs, measured and by choice."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from tests import programs
from tests.interpret.test_index import digest, made
from uimjax import store
from uimjax.errors import CorruptError, MismatchError, MissingFileError, OutputError, UsageError
from uimjax.interpret import base, indexing, price
from uimjax.interpret.index import task_digest

KW = {"sketch": uj.Sketch(4), "batch_size": 4, "shard_rows": 8, "coding": "int8"}


@pytest.fixture
def case(rng):
    return made(rng, 30)


def rows_of(data, ids):
    return jax.tree.map(lambda x: x[ids], data)


# ---------------------------------------------------------------- append and merge


def test_rows_appended_answer_as_if_they_had_been_there(case, tmp_path):
    task, params, data, measurement, queries = case
    uj.build_index(task, params, rows_of(data, slice(0, 18)), tmp_path / "grown", **KW)
    index = uj.append_index(task, params, rows_of(data, slice(18, 30)), tmp_path / "grown")
    assert [p["rows"] for p in index.manifest["parts"]] == [18, 12]
    assert [(e.start, e.stop) for e in index.entries] == [(0, 8), (8, 16), (16, 18), (18, 26), (26, 30)]
    assert uj.verify_index(tmp_path / "grown") == []
    assert len(index.price["parts"]) == 2
    uj.build_index(task, params, data, tmp_path / "whole", **KW)
    for folder in ("grown", "whole"):
        found = uj.trace(tmp_path / folder, task, params, data, measurement, queries, k=30)
        if folder == "grown":
            want = found
    np.testing.assert_array_equal(found.proponents, want.proponents)
    np.testing.assert_allclose(found.proponent_scores, want.proponent_scores, rtol=1e-5, atol=1e-6)
    before = digest(tmp_path / "grown")
    again = uj.append_index(task, params, rows_of(data, slice(18, 30)), tmp_path / "grown")
    assert again.rows == 30, "the last part already"
    uj.build_index(task, params, data, tmp_path / "grown", **KW)  # all rows of both parts: nothing to do
    assert digest(tmp_path / "grown") == before


def test_an_append_that_was_stopped_goes_on_to_the_same_bytes(case, tmp_path):
    task, params, data, *_ = case
    uj.build_index(task, params, rows_of(data, slice(0, 10)), tmp_path / "a", **KW)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    more = rows_of(data, slice(10, 30))
    uj.append_index(task, params, more, tmp_path / "a")

    def stopping(items, *_, **__):
        for k, item in enumerate(items):
            if k == 3:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        uj.append_index(task, params, more, tmp_path / "b", progress=stopping)
    with pytest.raises(MissingFileError, match="of 30 rows: its build was stopped"):
        uj.open_index(tmp_path / "b")
    with pytest.raises(MissingFileError, match="of 30 rows: its build was stopped"):
        uj.append_index(task, params, rows_of(data, slice(0, 5)), tmp_path / "b")  # other rows, at no moment for them
    uj.append_index(task, params, more, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_two_that_add_the_same_rows_agree_whoever_comes_first(case, tmp_path, monkeypatch):
    """The other process writes the manifest after this one has read it."""
    task, params, data, *_ = case
    first, more = rows_of(data, slice(0, 10)), rows_of(data, slice(10, 30))
    uj.build_index(task, params, first, tmp_path / "a", **KW)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    uj.append_index(task, params, more, tmp_path / "a")
    whole = indexing.part

    def meanwhile(rows):
        shutil.copy(tmp_path / "a" / "manifest.json", tmp_path / "b" / "manifest.json")
        return whole(rows)

    monkeypatch.setattr(indexing, "part", meanwhile)
    uj.append_index(task, params, more, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_other_models_cannot_add_rows(case, tmp_path):
    task, params, data, *_ = case
    uj.build_index(task, params, data, tmp_path, **KW)
    before = digest(tmp_path)
    with pytest.raises(MismatchError, match="an index of other parameters"):
        uj.append_index(task, jax.tree.map(lambda x: x + 1, params), rows_of(data, slice(0, 5)), tmp_path)
    assert digest(tmp_path) == before
    with pytest.raises(MissingFileError, match="holds no index"):
        uj.append_index(task, params, data, tmp_path / "none")


def test_indexes_of_other_rows_are_joined(case, tmp_path):
    task, params, data, measurement, queries = case
    for name, part in (("a", slice(0, 10)), ("b", slice(10, 30))):
        uj.build_index(task, params, rows_of(data, part), tmp_path / name, **KW)
    joined = uj.merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert uj.verify_index(tmp_path / "c") == []
    assert joined.rows == 30
    shutil.copytree(tmp_path / "a", tmp_path / "d")
    uj.append_index(task, params, rows_of(data, slice(10, 30)), tmp_path / "d")
    assert digest(tmp_path / "c") == digest(tmp_path / "d"), "as if appended"
    lines = (tmp_path / "c" / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "c" / "journal.jsonl").write_text("".join(lines[:2]))  # stopped after two shards
    (tmp_path / "c" / "price.json").unlink()
    uj.merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert digest(tmp_path / "c") == digest(tmp_path / "d")
    with pytest.raises(MismatchError, match="hold the same rows"):
        uj.merge_indexes([tmp_path / "a", tmp_path / "a"], tmp_path / "e")
    with pytest.raises(UsageError, match="at least two"):
        uj.merge_indexes([tmp_path / "a"], tmp_path / "e")
    uj.build_index(task, params, data, tmp_path / "f", **(KW | {"coding": "int4"}))
    with pytest.raises(MismatchError, match="coding int4"):
        uj.merge_indexes([tmp_path / "a", tmp_path / "f"], tmp_path / "e")
    assert not (tmp_path / "e").exists()


# ---------------------------------------------------------------- damage and repair

TRIALS = 500 if os.environ.get("UIMJAX_NIGHTLY") else 120


def test_every_flip_and_truncation_of_every_file_is_found_and_repaired(case, tmp_path):
    task, params, data, *_ = case
    uj.build_index(task, params, data, tmp_path / "whole", **KW)
    want = digest(tmp_path / "whole")
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert len({f.name if f.suffix != ".parquet" else "" for f in files}) == 4, "manifest, journal, price and shards"
    rng, repaired = np.random.default_rng(1), 0
    broken = tmp_path / "broken"
    for trial in range(TRIALS):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", broken)
        file = files[trial % len(files)]
        good = (broken / file).read_bytes()
        at = int(rng.integers(len(good)))
        flipped = good[:at] + bytes([good[at] ^ (1 << int(rng.integers(8)))]) + good[at + 1 :]
        (broken / file).write_bytes(flipped if trial % 3 else good[:at])
        problems = uj.verify_index(broken)
        assert problems, f"{file}: byte {at} of {len(good)}, trial {trial}"
        named = " ".join(problems)
        assert file.name in named or "its build was stopped" in named, "a journal that lost whole lines"
        if file.suffix == ".parquet":
            assert f"shard {int(file.stem)}" in named
        if trial % 12 < len(files):  # each kind, many times
            done = uj.repair_index(task, params, data, broken, **KW)
            assert any(file.name in line for line in done)
            assert digest(broken) == want
            repaired += 1
    assert repaired >= 40


def test_repairing_a_sound_index_does_nothing(case, tmp_path):
    task, params, data, *_ = case
    uj.build_index(task, params, data, tmp_path, **KW)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert uj.repair_index(task, params, data, tmp_path) == []
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_other_rows_repair_nothing(case, tmp_path):
    task, params, data, *_ = case
    uj.build_index(task, params, data, tmp_path, **KW)
    (tmp_path / "shards" / "000001.parquet").unlink()
    with pytest.raises(MismatchError, match="other training rows"):
        uj.repair_index(task, params, rows_of(data, slice(None, None, -1)), tmp_path)
    entry = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[1].split(" ", 1)[1])
    entry["xxh3"] = "0" * 32  # as if other bytes had been vouched for
    entries = store.Journal.salvage(tmp_path / "journal.jsonl")
    entries[1] = store.Entry(**entry)
    store.Journal.rewrite(tmp_path / "journal.jsonl", entries)
    with pytest.raises(CorruptError, match="gave other bytes"):
        uj.repair_index(task, params, data, tmp_path)


def test_a_lost_manifest_is_not_written_again_for_another_model(case, tmp_path):
    """Shards that are intact would pass for those of whatever is given."""
    task, params, data, *_ = case
    uj.build_index(task, params, data, tmp_path, **KW)
    want = digest(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:-9])
    damaged = digest(tmp_path)
    other, turned = jax.tree.map(lambda x: x + 1, params), rows_of(data, slice(None, None, -1))
    wrong = [(other, data, KW), (params, turned, KW), (params, data, {}), (params, data, KW | {"coding": "int4"})]
    for its, rows, choices in [*wrong, (params, data, KW | {"shard_rows": 9})]:
        with pytest.raises(MismatchError, match="000000.parquet was not made of these"):
            uj.repair_index(task, its, rows, tmp_path, **choices)
        assert digest(tmp_path) == damaged
    uj.repair_index(task, params, data, tmp_path, **KW)
    assert digest(tmp_path) == want


def test_an_index_that_is_being_written_is_not_repaired(case, tmp_path):
    task, params, data, *_ = case
    uj.build_index(task, params, data, tmp_path, **KW)
    (tmp_path / "shards" / "000001.parquet").unlink()
    with store.Journal(tmp_path / "journal.jsonl"), pytest.raises(OutputError, match="written by another process"):
        uj.repair_index(task, params, data, tmp_path)


# ---------------------------------------------------------------- what a coding costs


def test_the_price_is_that_of_scores_by_hand(rng, tmp_path):
    task, params, data, *_ = made(rng, 60)
    kw = {"sketch": uj.Sketch(4), "batch_size": 8}
    exact = uj.build_index(task, params, data, tmp_path / "exact", **kw)
    index = uj.build_index(task, params, data, tmp_path / "few", coding="int4", **kw)
    one, other = (np.asarray(i.vectors(next(i.shards())), np.float64) for i in (exact, index))
    (found,) = index.price["parts"]
    true, got = one @ one.T, one @ other.T
    off = ~np.eye(60, dtype=bool)
    np.testing.assert_allclose(found["correlation"], np.corrcoef(true[off], got[off])[0, 1], atol=1e-5)
    error = np.sqrt(np.mean((true - got)[off] ** 2) / np.mean(true[off] ** 2))
    np.testing.assert_allclose(found["error"], error, rtol=1e-3)
    shared = []
    for k in range(60):
        tops = [set(np.argsort(np.where(np.arange(60) == k, -9, s[k]))[-20:]) for s in (true, got)]
        shared.append(len(tops[0] & tops[1]) / 20)
    np.testing.assert_allclose(found["recall"], np.mean(shared), atol=0.01)
    assert found["row_bytes"] == index.row_bytes
    assert exact.price["parts"][0]["recall"] == 1.0
    size = (tmp_path / "few" / "shards" / "000000.parquet").stat().st_size
    assert size < 60 * (index.row_bytes + 16) + 4096


def test_the_smallest_coding_that_keeps_the_lists_is_chosen(rng, tmp_path):
    task, params, data, measurement, queries = made(rng, 80, programs.mlp)
    kw = {"sketch": uj.Sketch(6), "batch_size": 8}
    sizes = []
    for target in (0.5, 0.9, 1.0):
        index = uj.build_index(task, params, data, tmp_path / str(target), target_recall=target, **kw)
        (found,) = index.price["parts"]
        assert found["recall"] >= target
        cheaper = [c for c in price.candidates(index.shapes) if store.row_bytes(c, index.shapes) < index.row_bytes]
        unit = np.concatenate([np.asarray(i) for i in [_exact(task, params, data, tmp_path, kw)]])
        assert all(price.measure(c, index.shapes, unit).recall < target for c in cheaper)
        sizes.append(index.row_bytes)
        uj.build_index(task, params, data, tmp_path / str(target), target_recall=target, **kw)  # as it was chosen
        assert uj.trace(index, task, params, data, measurement, queries, k=3).proponents.shape == (1, 3)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    with pytest.raises(UsageError, match="a recall of 2"):
        uj.build_index(task, params, data, tmp_path / "x", target_recall=2, **kw)
    with pytest.raises(MismatchError, match="target_recall 0.5 \\(asked for: 0.9\\)"):
        uj.build_index(task, params, data, tmp_path / "0.5", target_recall=0.9, **kw)


def _exact(task, params, data, folder, kw):
    index = uj.build_index(task, params, data, folder / "exact", **kw)
    return index.vectors(next(index.shards()))


def test_scores_multiplied_as_stored_are_those_of_the_rows_unpacked(rng):
    """int8 with a scale a block goes to the kernel as it is; others are unpacked first."""
    shapes, vectors = ((16, 16),), rng.normal(size=(40, 256)).astype(np.float32)
    coding = store.Coding("int8")
    packed = store.pack(coding, shapes, vectors)
    queries = rng.normal(size=(3, 256)).astype(np.float32)
    whole = np.asarray(store.unpack(coding, shapes, packed), np.float64)
    got = uj_topk(queries, packed)
    order = np.argsort(-(queries.astype(np.float64) @ whole.T), axis=1)[:, :5]
    np.testing.assert_array_equal(got.largest_index, order)


def uj_topk(queries, packed):
    from uimjax_kernels import topk_dot

    return topk_dot(jnp.asarray(queries), packed.numbers, jnp.ones(len(packed.numbers)), 5, packed.scales)


def test_a_terminal_asks_the_same_loss_as_a_pipe(case, monkeypatch):
    """JAX writes a program in colours where stdout is a terminal: its digest must not know."""
    task, params, data, *_ = case
    found = base.training_sites(task, params, data)
    here = task_digest(found)
    monkeypatch.setattr("jax._src.pretty_printer.CAN_USE_COLOR", True)
    assert "\x1b[" in str(found.program)
    assert task_digest(found) == here
