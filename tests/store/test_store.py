"""Shards, journal, manifest, stages: the same bytes each time, and every changed bit seen."""

import json

import numpy as np
import pytest

from uimjax import store
from uimjax.errors import CorruptError, MissingFileError, OutputError
from uimjax.store.base import TEMPORARY, atomic, make_folder


def shard(rng, n=7, d=5):
    return store.Shard(np.arange(n), *(rng.normal(size=s).astype(np.float32) for s in (n, n, (n, d))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shard_comes_back_and_has_the_same_bytes_each_time(tmp_path, rng, dtype):
    one = shard(rng)
    for name in ("a", "b"):
        store.write_shard(tmp_path / name, one, dtype)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    got = store.read_shard(tmp_path / "a", 7, 5, dtype)
    np.testing.assert_array_equal(got.ids, one.ids)
    np.testing.assert_array_equal(got.loss, one.loss)
    np.testing.assert_allclose(got.vectors.astype(np.float32), one.vectors, rtol=0 if dtype == "float32" else 2**-8)
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_every_flipped_bit_of_the_data_is_seen(tmp_path, rng):
    path = tmp_path / "s"
    store.write_shard(path, shard(rng, 64, 32), "float32")
    data, digest = path.read_bytes(), store.digest_file(path)
    caught_by_crc = 0
    for position in rng.choice(len(data), 80, replace=False):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert store.digest_file(path) != digest
        try:
            got = store.read_shard(path, 64, 32, "float32")
        except CorruptError:
            caught_by_crc += 1
        else:
            path.write_bytes(data)
            want = store.read_shard(path, 64, 32, "float32")  # a bit outside all pages: the values are untouched
            assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    assert caught_by_crc > 60


def test_truncated_and_foreign_shards_are_refused(tmp_path, rng):
    path = tmp_path / "s"
    store.write_shard(path, shard(rng), "float32")
    with pytest.raises(CorruptError, match="7 rows of"):
        store.read_shard(path, 8, 5, "float32")
    with pytest.raises(CorruptError, match="7 rows of"):
        store.read_shard(path, 7, 5, "bfloat16")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptError, match="is damaged"):
        store.read_shard(path, 7, 5, "float32")
    with pytest.raises(MissingFileError, match="is not there"):
        store.read_shard(tmp_path / "none", 7, 5, "float32")


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
