"""Shards, journal, manifest, stages: the same bytes each time, and every changed bit seen."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from uimjax import store
from uimjax.errors import CorruptError, MissingFileError, OutputError, UnknownNameError
from uimjax.store.base import TEMPORARY, atomic, make_folder

F32 = store.Coding()


def shard(rng, n=7, d=5, coding=F32, shapes=None):
    vectors = rng.normal(size=(n, d)).astype(np.float32)
    packed = store.Packed(
        *(x if x is None else np.asarray(x) for x in store.pack(coding, shapes or ((1, d),), vectors))
    )
    return store.Shard(np.arange(n), *(rng.normal(size=n).astype(np.float32) for _ in range(2)), packed), vectors


CODINGS = {
    "float32": 0,
    "bfloat16": 2**-8,
    "int8": 2**-7,
    "int4": (1 + 2**-7) / 14,
    "rank3-float32": 1e-6,
    "rank3-int8": 2**-6,
}


@pytest.mark.parametrize("name", CODINGS)
def test_a_shard_comes_back_and_has_the_same_bytes_each_time(tmp_path, rng, name):
    shapes = ((3, 7), (1, 5), (6, 20))  # the last is what three terms leave something of; the others are kept whole
    coding = store.Coding.parse(name)
    assert str(coding) == name
    one, vectors = shard(rng, 7, 146, coding, shapes)
    for file in ("a", "b"):
        store.write_shard(tmp_path / file, one, coding, shapes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    got = store.read_shard(tmp_path / "a", 7, coding, shapes)
    np.testing.assert_array_equal(got.ids, one.ids)
    np.testing.assert_array_equal(got.loss, one.loss)
    want = vectors.copy()
    if coding.rank:
        u, s, v = np.linalg.svd(want[:, 26:].reshape(7, 6, 20).astype(np.float64), full_matrices=False)
        want[:, 26:] = ((u[:, :, :3] * s[:, None, :3]) @ v[:, :3]).reshape(7, -1)
    off = np.abs(store.unpack(coding, shapes, got.vectors) - want)
    if coding.rank:  # random matrices have no gap after the third value: nearly as near as can be
        left = np.linalg.norm(vectors - want, axis=1)
        found = np.linalg.norm(store.unpack(coding, shapes, got.vectors) - vectors, axis=1)
        assert (found < 1.05 * left + CODINGS[name] * np.linalg.norm(vectors, axis=1)).all()
    else:
        assert (off <= CODINGS[name] * np.abs(want).max(1, keepdims=True)).all()
    assert store.row_bytes(coding, shapes) == sum(x[0].nbytes for x in got.vectors if x is not None)
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_factors_give_matrices_of_few_terms_back_and_keep_their_places(rng):
    """Of one shape or several, in any order; nothing stays nothing, and terms that are not there do no harm."""
    shapes = ((8, 9), (2, 2), (12, 7), (8, 9), (12, 7))
    parts = []
    for number, (p, q) in enumerate(shapes):
        left, right = rng.normal(size=(6, p, number % 3)), rng.normal(size=(6, number % 3, q))
        parts.append((left @ right * 10.0 ** -(4 * number)).reshape(6, -1))  # of 0, 1 or 2 terms, and very small
    vectors = np.concatenate(parts, 1).astype(np.float32)
    coding = store.Coding.parse("rank3-float32")
    got = np.asarray(store.unpack(coding, shapes, store.pack(coding, shapes, jnp.asarray(vectors))))
    start = 0
    for (p, q), part in zip(shapes, parts, strict=True):
        size = max(np.abs(part).max(), 1e-30)
        np.testing.assert_allclose(got[:, start : start + p * q] / size, part / size, atol=1e-5)
        start += p * q


def test_numbers_of_few_bits_are_never_clipped_and_nothing_is_nan(rng):
    for name, most in (("int8", 127), ("int4", 7)):
        coding, vectors = store.Coding.parse(name), rng.normal(size=(50, 300)).astype(np.float32) ** 9
        vectors[3] = 0
        got = np.asarray(store.unpack(coding, ((1, 300),), store.pack(coding, ((1, 300),), vectors)))
        size = {"int8": 128, "int4": 32}[name]
        for start in range(0, 300, size):
            block = slice(start, start + size)
            step = np.abs(vectors[:, block]).max(1) / most * (1 + 2**-7)  # the scale is rounded up to 8 bits
            assert (np.abs(got[:, block] - vectors[:, block]) <= step[:, None] / 2 + 1e-30).all()
        assert not got[3].any()


def test_terms_of_a_matrix_that_has_no_more_are_exact(rng):
    left, right = rng.normal(size=(5, 16, 2)).astype(np.float32), rng.normal(size=(5, 2, 12)).astype(np.float32)
    vectors = (left @ right).reshape(5, -1)
    coding, shapes = store.Coding("float32", 2), ((16, 12),)
    got = store.unpack(coding, shapes, store.pack(coding, shapes, vectors))
    np.testing.assert_allclose(got, vectors, atol=1e-5)
    assert store.row_bytes(coding, shapes) == 4 * 2 * (16 + 12)


def test_unknown_codings_are_refused_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="'in8'.*Did you mean 'int8'"):
        store.Coding.parse("in8")
    with pytest.raises(UnknownNameError, match="rank-x"):
        store.Coding.parse("rank-x-int8")


def test_reading_ahead_keeps_the_order_and_passes_errors_on():
    assert list(store.ahead(range(20), lambda x: x * x)) == [x * x for x in range(20)]

    def bad(x):
        if x == 3:
            raise CorruptError("three")
        return x

    found = store.ahead(range(9), bad)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CorruptError, match="three"):
        next(found)


def test_every_flipped_bit_of_the_data_is_seen(tmp_path, rng):
    path = tmp_path / "s"
    store.write_shard(path, shard(rng, 64, 32)[0], F32, ((1, 32),))
    data, digest = path.read_bytes(), store.digest_file(path)
    caught_by_crc = 0
    for position in rng.choice(len(data), 80, replace=False):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert store.digest_file(path) != digest
        try:
            got = store.read_shard(path, 64, F32, ((1, 32),))
        except CorruptError:
            caught_by_crc += 1
        else:
            path.write_bytes(data)
            want = store.read_shard(path, 64, F32, ((1, 32),))  # a bit outside all pages: the values are untouched
            assert all(np.array_equal(a, b) for a, b in zip(got[:3], want[:3], strict=True))
            assert np.array_equal(got.vectors.numbers, want.vectors.numbers)
    assert caught_by_crc > 60


def test_truncated_and_foreign_shards_are_refused(tmp_path, rng):
    path = tmp_path / "s"
    store.write_shard(path, shard(rng)[0], F32, ((1, 5),))
    with pytest.raises(CorruptError, match="7 rows of"):
        store.read_shard(path, 8, F32, ((1, 5),))
    with pytest.raises(CorruptError, match="7 rows of"):
        store.read_shard(path, 7, store.Coding("bfloat16"), ((1, 5),))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptError, match="is damaged"):
        store.read_shard(path, 7, F32, ((1, 5),))
    with pytest.raises(MissingFileError, match="is not there"):
        store.read_shard(tmp_path / "none", 7, F32, ((1, 5),))


def test_a_torn_journal_line_is_cut_and_a_changed_one_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    entries = [store.Entry(k, 4 * k, 4 * k + 4, f"{k}.parquet", 10, "00") for k in range(3)]
    with store.Journal(path) as journal:
        for entry in entries:
            journal.append(entry)
        with pytest.raises(OutputError, match="being written by another process"):
            store.Journal(path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert store.Journal.read(path) == entries
    with store.Journal(path) as journal:
        assert journal.entries == entries
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"start":4', b'"start":5'))
    with pytest.raises(CorruptError, match="line 2: the checksum does not match"):
        store.Journal.read(path)


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "m.json"
    store.write_manifest(path, {"rows": 3, "names": ["a"]})
    assert store.read_manifest(path) == {"rows": 3, "names": ["a"]}
    path.write_text(path.read_text().replace("3", "4"))
    with pytest.raises(CorruptError, match="its own digest"):
        store.read_manifest(path)
    path.write_text("{nonsense")
    with pytest.raises(CorruptError, match="is not JSON"):
        store.read_manifest(path)
    with pytest.raises(MissingFileError):
        store.read_manifest(tmp_path / "none")


def test_an_interrupted_write_leaves_the_old_bytes(tmp_path):
    path = tmp_path / "f.json"
    store.write_json(path, {"a": 1})

    def half_a_write():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_a_write()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_two_that_write_the_same_file_are_not_in_each_others_way(tmp_path):
    path = tmp_path / "f"
    with atomic(path) as one:
        with atomic(path) as two:
            two.write_text("two")
        assert path.read_text() == "two"
        one.write_text("one")
    assert path.read_text() == "one"
    with atomic(path, first=True) as late:
        late.write_text("late")
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_on_a_file_system_without_links_what_is_there_stays_as_well(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", refused)
    for value in (1, 2):
        store.write_json(tmp_path / "f", {"a": value}, first=True)
        assert json.loads((tmp_path / "f").read_text()) == {"a": 1}
    store.write_json(tmp_path / "f", {"a": 3})
    assert json.loads((tmp_path / "f").read_text()) == {"a": 3}


def test_a_file_in_the_way_of_a_folder_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose another folder with --out"):
        make_folder(tmp_path / "file" / "run")


def test_a_stage_runs_again_only_when_something_changed(tmp_path):
    runs = []

    def work():
        runs.append(1)
        (tmp_path / "out.txt").write_text("result")

    key = store.stage_key("a", {"b": 1})
    assert store.run_stage(tmp_path, "s", key, ("out.txt",), work)
    assert not store.run_stage(tmp_path, "s", key, ("out.txt",), work)
    assert store.run_stage(tmp_path, "s", store.stage_key("a", {"b": 2}), ("out.txt",), work)
    (tmp_path / "out.txt").write_text("tampered")
    assert store.run_stage(tmp_path, "s", store.stage_key("a", {"b": 2}), ("out.txt",), work)
    (tmp_path / "out.txt").unlink()
    assert store.run_stage(tmp_path, "s", store.stage_key("a", {"b": 2}), ("out.txt",), work)
    (tmp_path / "stage-s.json").write_text("{}")
    assert store.run_stage(tmp_path, "s", store.stage_key("a", {"b": 2}), ("out.txt",), work)
    assert len(runs) == 5


def test_digests_tell_shapes_dtypes_and_paths_apart():
    a = np.arange(4, dtype=np.float32)
    many = [a, a.reshape(2, 2), a.astype(np.int32), a[::-1]]
    assert len({store.digest_array(x) for x in many}) == 4
    assert store.digest_tree({"a": a, "b": a}) != store.digest_tree({"a": a, "c": a})
    assert store.digest_tree({"a": a}) == store.digest_tree({"a": a.copy()})
