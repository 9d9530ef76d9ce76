"""Fixed shapes, ids, masks; bad rows refused; meshes."""

import gc

import jax
import numpy as np
import pytest

from uimjax import mesh, rows
from uimjax.errors import NonFiniteError, ShapeError, UsageError


def test_batches_have_one_shape_and_cover_every_row_once():
    data = {"x": np.arange(10.0).reshape(10, 1), "y": np.arange(10)}
    got = list(rows.batches(data, 4))
    assert [b.rows["x"].shape for b in got] == [(4, 1)] * 3
    assert np.concatenate([b.ids[b.mask] for b in got]).tolist() == list(range(10))
    assert got[-1].ids.tolist() == [8, 9, -1, -1]
    assert got[-1].rows["y"].tolist() == [8, 9, 9, 9]
    assert [b.ids.tolist() for b in rows.batches(data, 4, 3, 6)] == [[3, 4, 5, -1]]


def test_unequal_lengths_and_scalars_are_refused():
    with pytest.raises(ShapeError, match="differ in length: .*'a'.*3.*'b'.*4"):
        rows.count({"a": np.zeros(3), "b": np.zeros(4)})
    with pytest.raises(ShapeError, match="a scalar stands"):
        rows.count({"a": np.float32(1)})
    with pytest.raises(ShapeError, match="hold no arrays"):
        rows.count({})


def test_what_was_found_finite_is_not_looked_at_again(monkeypatch):
    """Arrays of JAX cannot change; those of NumPy can, and one that takes the place of another is another."""
    looked = []
    parts = rows._parts
    monkeypatch.setattr(rows, "_parts", lambda leaf: looked.append(1) or parts(leaf))
    fixed, open_to_change = jax.numpy.ones(5), np.ones(5, np.float32)
    for _ in range(3):
        rows.check_finite({"a": fixed, "b": open_to_change}, "rows")
    assert len(looked) == 1 + 3
    open_to_change[2] = np.nan
    with pytest.raises(NonFiniteError, match="b holds 1"):
        rows.check_finite({"a": fixed, "b": open_to_change}, "rows")
    key = id(fixed)
    assert key in rows._KNOWN
    del fixed
    gc.collect()
    assert key not in rows._KNOWN
    bad = jax.numpy.array([1, np.inf])
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="first at index"):
            rows.check_finite({"a": bad}, "rows")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_on_an_accelerator_are_looked_at_there(monkeypatch, dtype):
    monkeypatch.setattr(rows, "_elsewhere", lambda leaf: isinstance(leaf, jax.Array))
    rows.check_finite({"a": jax.numpy.ones((3, 4), dtype)}, "parameters")
    with pytest.raises(NonFiniteError, match=r"parameters: a holds 1 .* first at index \(1, 2\)"):
        rows.check_finite({"a": jax.numpy.ones((3, 4), dtype).at[1, 2].set(np.nan)}, "parameters")


def test_non_finite_rows_are_named():
    with pytest.raises(NonFiniteError, match=r"rows: x holds 1 value.*\(2,\)"):
        rows.check_finite({"x": np.array([0, 1, np.nan], np.float32)}, "rows")
    rows.check_finite({"x": np.array([1, 2])}, "rows")
    rows.check_finite({"key": jax.random.split(jax.random.key(0), 3)}, "rows")


def test_meshes_are_auto_and_bounded():
    made = mesh.make_mesh(4)
    assert made.shape == {"data": 4, "model": 1}
    assert all(kind == jax.sharding.AxisType.Auto for kind in made.axis_types)
    with pytest.raises(UsageError, match="a data axis of 99"):
        mesh.make_mesh(99)
    with pytest.raises(ShapeError, match="a batch of 6 examples does not divide over 4 devices"):
        mesh.shard_batch(made, {"x": np.zeros((6, 2))})
