"""Plans: what is refused before it is begun, and what a job is said to take."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from tests.interpret.test_index import made
from uimjax import machine, programs, room, training
from uimjax.errors import NoRoomError, UnknownNameError, UsageError
from uimjax.interpret import bank, plan_index, plan_training
from uimjax.steps import Recipe


@pytest.fixture(scope="module")
def case():
    return made(np.random.default_rng(0), 200)


def disk(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- what does not fit is not begun


def test_a_program_that_does_not_fit_is_refused_with_the_largest_that_does(monkeypatch):
    @jax.jit
    def program(x):
        return jnp.tanh(x @ x.T)

    def of(size):
        return program, jnp.ones((size, 8))

    free = room.need(*of(700)).bytes
    assert free >= 700 * 8 * 4 + 700 * 700 * 4
    given = 4 * 8  # bytes a row, which are there already
    monkeypatch.setattr(machine, "device_memory", lambda: free - 700 * given)
    assert room.check(of, 700, "a batch").bytes == free
    with pytest.raises(NoRoomError, match="a batch of 2000 needs .* are free. At most") as error:
        room.check(of, 2000, "a batch")
    most = int(re.search(r"At most (\d+) fit", str(error.value))[1])
    more = most + most // 8 + 1
    assert room.need(*of(most)).bytes - most * given <= free < room.need(*of(more)).bytes
    with pytest.raises(NoRoomError, match=r"At most (\d+) fit") as error:
        room.check(of, 2000, "a batch", step=50)
    assert int(re.search(r"At most (\d+) fit", str(error.value))[1]) % 50 == 0
    monkeypatch.setattr(machine, "device_memory", lambda: -(2000 * given))
    with pytest.raises(NoRoomError, match="Not even 1 fit"):
        room.check(of, 2000, "a batch")


def test_what_a_program_is_given_is_not_counted_twice(monkeypatch):
    """The device's memory falls as arrays are put there; they are in the program's need as well."""
    data = jnp.ones((500, 500))
    program = jax.jit(lambda x: x.sum())
    wanted = room.need(program, data).bytes
    monkeypatch.setattr(machine, "device_memory", lambda: int(1.5 * wanted) - data.nbytes)
    assert room.check(lambda _: (program, data), 1, "a batch").bytes == wanted
    monkeypatch.setattr(machine, "device_memory", lambda: int(0.5 * wanted) - data.nbytes)
    with pytest.raises(NoRoomError):
        room.check(lambda _: (program, data), 1, "a batch")


def test_an_index_without_room_is_not_begun(case, tmp_path, monkeypatch):
    task, params, data, *_ = case
    monkeypatch.setattr(machine, "device_memory", lambda: 60_000)
    with pytest.raises(NoRoomError, match="a batch of 200 needs .* At most"):
        uj.build_index(task, params, data, tmp_path / "i", batch_size=200)
    monkeypatch.undo()
    whole = uj.build_index(task, params, data, tmp_path / "whole", batch_size=8, shard_rows=50)
    wanted = 200 * (whole.row_bytes + 16)
    assert disk(tmp_path / "whole" / "shards") > wanted > 0.8 * disk(tmp_path / "whole" / "shards")
    monkeypatch.setattr(machine, "disk", lambda _: wanted // 3)
    with pytest.raises(NoRoomError, match=r"200 rows as float32 .* are free there: coding='int8' fits, or (\d+) rows"):
        uj.build_index(task, params, data, tmp_path / "i", batch_size=8)
    uj.build_index(task, params, data, tmp_path / "i8", batch_size=8, coding="int8")
    monkeypatch.setattr(machine, "disk", lambda _: 100)
    with pytest.raises(NoRoomError, match="a smaller sketch is wanted"):
        uj.build_index(task, params, data, tmp_path / "i", batch_size=8)
    monkeypatch.setattr(machine, "disk", lambda _: 0)  # what is there already is not written again
    assert uj.build_index(task, params, data, tmp_path / "whole", batch_size=8, shard_rows=50).rows == 200
    with pytest.raises(NoRoomError):
        uj.append_index(task, params, jax.tree.map(lambda x: x[:20], data), tmp_path / "whole")
    assert uj.open_index(tmp_path / "whole").rows == 200
    monkeypatch.undo()
    monkeypatch.setattr(machine, "host_memory", lambda: 3 * 4 * whole.manifest["width"] * 70)
    with pytest.raises(NoRoomError, match="shard_rows=70 fit"):
        uj.build_index(task, params, data, tmp_path / "i", batch_size=8, shard_rows=10**9)
    few = jax.tree.map(lambda x: x[:60], data)  # no shard is larger than all rows
    uj.build_index(task, params, few, tmp_path / "few", batch_size=8, shard_rows=10**9)
    assert not (tmp_path / "i").exists()


def test_trainings_without_room_are_not_begun(case, monkeypatch):
    task, params, data, measurement, queries = case
    recipe, kept = Recipe(epochs=1, batch_size=64), bank.subsets(200, 2)
    placed = jax.tree.map(jnp.asarray, data)
    least = training.check_room(task, params, placed, Recipe(epochs=1, batch_size=8))[0].bytes
    monkeypatch.setattr(machine, "device_memory", lambda: least - room.there((params, placed)))
    with pytest.raises(NoRoomError, match="a batch of 64 needs .* At most"):
        training.fit(task, params, data, recipe)
    monkeypatch.undo()
    few = bank.check_room(task, recipe, "rebatched", measurement, params, data, queries, kept[0], 2, None).bytes
    there = room.there(jax.tree.map(jnp.asarray, (data, queries)))  # put there before it is asked
    monkeypatch.setattr(machine, "device_memory", lambda: few - there)
    with pytest.raises(NoRoomError, match=r"models together of 8 needs .* At most 2 fit"):
        bank.train_bank(task, lambda _: params, data, recipe, kept, measurement, queries, together=8)


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize("coding", ["float32", "int8"])
def test_an_index_takes_the_disk_and_leaves_the_bytes_that_were_said(case, tmp_path, coding):
    task, params, data, *_ = case
    choices = {"coding": coding, "batch_size": 16, "shard_rows": 32}
    some = jax.tree.map(lambda x: x[:48], data)
    plan = plan_index.plan_index(task, params, some, tmp_path, count=200, **choices)
    assert not list(tmp_path.iterdir())  # nothing is left behind
    uj.build_index(task, params, data, tmp_path / "i", **choices)
    assert plan.disk_bytes == pytest.approx(disk(tmp_path / "i"), rel=0.15)
    assert plan.host_bytes > plan.device_bytes > machine.nbytes(params)
    assert all(s >= 0 for s in plan.seconds.values())
    assert plan.seconds["gradients"] > 0
    assert plan.check() is plan
    with pytest.raises(NoRoomError, match="an index of 200 rows needs .* on the disk"):
        plan._replace(room=plan.room._replace(disk=10)).check()
    vast = plan_index.plan_index(task, params, some, tmp_path, count=10**12, **choices)
    with pytest.raises(NoRoomError, match=r"1000000000000 rows as .* or \d+ rows"):
        vast.check()


def test_more_devices_share_the_gradients_and_a_chip_has_its_own_ceiling(case, tmp_path, monkeypatch):
    task, params, data, *_ = case
    monkeypatch.setattr(plan_index, "steady", lambda call, *_: (call(), (0.5, 3))[1])
    one = plan_index.plan_index(task, params, data, tmp_path, batch_size=16)
    four = plan_index.plan_index(task, params, data, tmp_path, batch_size=16, devices=4, count=800)
    assert one.seconds["gradients"] == 0.5 * 13
    assert four.seconds["gradients"] == 0.5 * 50 / 4
    chip = plan_index.plan_index(task, params, data, tmp_path, batch_size=16, chip="h100", count=10**6)
    assert chip.room.device == 80e9
    assert chip.seconds["gradients"] < one.seconds["gradients"]
    assert "at 20% of its ceiling" in chip.how["gradients"]
    monkeypatch.setattr(machine, "device_memory", lambda: 1000)  # a chip is not held to what this machine has
    large = plan_index.plan_index(task, params, data, tmp_path, batch_size=128, chip="h100", devices=64, count=10**6)
    assert large.check().device_bytes > 1000
    with pytest.raises(UsageError, match="h100 is not at hand"):
        plan_index.plan_index(task, params, data, tmp_path, chip="h100", target_recall=0.9)
    monkeypatch.undo()
    with pytest.raises(UnknownNameError, match="h100"):
        plan_index.plan_index(task, params, data, tmp_path, chip="h10")
    with pytest.raises(UsageError, match="0 devices"):
        plan_index.plan_index(task, params, data, tmp_path, devices=0)


def test_operations_of_loops_count_as_often_as_they_run():
    w = jnp.ones((6, 6))

    def step(x, _):
        return jnp.tanh(x @ w), None

    def program(x, image, kernel):
        y = jax.lax.scan(step, x, None, length=5)[0]
        z = jax.lax.cond(y.sum() > 0, lambda a: a @ w @ w, lambda a: a @ w, y)
        return (
            z,
            jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME"),
            jnp.einsum("bij,bjk->bik", y[None], w[None]),
        )

    found = programs.operations(
        jax.make_jaxpr(program)(jnp.ones((3, 6)), jnp.ones((2, 3, 8, 8)), jnp.ones((4, 3, 3, 3)))
    )
    product = 2 * 3 * 6 * 6
    assert found == 5 * product + 2 * product + 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3) + product


def test_a_trace_a_bank_and_a_training_have_plans(case, tmp_path):
    task, params, data, measurement, queries = case
    folder = tmp_path / "i"
    uj.build_index(task, params, data, folder, batch_size=16, shard_rows=20)
    plan = plan_index.plan_trace(
        folder, task, params, data, measurement, queries, "logra", each=True, rerank=40, count=2000
    )
    assert set(plan.seconds) == {"the question", "curvature of rows", "compiling", "reading and ranking", "re-ranking"}
    assert plan.how["timed"] == "10 of 100 shards"
    assert plan.seconds["curvature of rows"] > 0
    its = (folder, task, params, data, measurement, queries)
    more = plan_index.plan_trace(*its, each=True, null=30, groups=True).seconds
    assert more["shuffled questions"] > 0
    assert more["adding up"] > 0
    recipe, kept = Recipe(epochs=4, batch_size=16), bank.subsets(200, 6)
    its = (task, lambda _: params, data, recipe, kept, measurement, queries)
    for protocol in bank.PROTOCOLS:
        plan = plan_training.plan_bank(*its, protocol=protocol, folder=tmp_path / "bank")
        bank.train_bank(*its, protocol=protocol, folder=tmp_path / protocol)
        assert plan.disk_bytes == pytest.approx(disk(tmp_path / protocol), rel=0.15)
    assert not (tmp_path / "bank").exists()
    together = plan_training.plan_bank(*its, together=4)
    assert together.device_bytes > plan.device_bytes
    assert together.disk_bytes == 0
    plan = plan_training.plan_fit(task, params, data, recipe, folder=tmp_path / "none", save_every=2, snapshots=(1, 3))
    assert not (tmp_path / "none").exists()
    training.fit(task, params, data, recipe, folder=tmp_path / "fit", save_every=2, snapshots=(1, 3))
    assert plan.disk_bytes == pytest.approx(disk(tmp_path / "fit"), rel=0.15)
    assert "keeping" not in plan_training.plan_fit(task, params, data, recipe).seconds


def test_a_plan_is_said_to_people_and_machines(case, tmp_path):
    task, params, data, *_ = case
    plan = plan_index.plan_index(task, params, data, tmp_path, count=3 * 10**9)
    text = "\n".join(plan.lines())
    assert re.search(r"an index of 3000000000 rows: \d+\.\d (h|d)", text)
    assert re.search(r"gradients +\d+", text)
    assert "GiB of" in text
    found = plan.document()
    assert found["total"] == pytest.approx(sum(found["seconds"].values()))
    assert found["room"]["disk"] == plan.room.disk
