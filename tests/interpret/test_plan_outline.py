"""Plans by shapes: the need of the program that really runs, the operations of the plan that has the numbers."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from tests.pretrained.folders import write
from uimjax import cli, config, machine, programs, room
from uimjax import sketch as sketching
from uimjax.errors import NoRoomError, UnknownNameError, UsageError
from uimjax.interpret import base, positions
from uimjax.interpret.plan_index import plan_index
from uimjax.interpret.plan_outline import plan_outline

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "trace"
SIZES = {"pythia-160m": 162_322_944, "pythia-1b": 1_011_781_632, "olmo-2-1b": 1_484_916_736, "llama-3-8b": 8_030_261_248}  # fmt: skip  # noqa: E501


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "model", "llama")


def spec(length=16):
    return {"tokens": jax.ShapeDtypeStruct((length,), jnp.int32), "counted": jax.ShapeDtypeStruct((length,), jnp.uint8)}


def test_it_is_the_plan_of_the_model_itself(small, tmp_path):
    its, model = uj.outline(small), uj.load(small)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), its.params) == shapes
    rows = {"tokens": np.ones((8, 16), np.int32), "counted": np.ones((8, 16), np.uint8)}
    planned = plan_outline(its.task, its.params, spec(), count=64, chip="h100", batch_size=4, coding="int8")
    real = plan_index(model.task, model.params, rows, tmp_path, count=64, chip="h100", batch_size=4, coding="int8")
    assert planned.seconds["gradients"] == pytest.approx(real.seconds["gradients"], rel=1e-6)
    assert planned.disk_bytes == pytest.approx(real.disk_bytes, rel=0.2), "but for journal, manifest and price"
    again = plan_outline(its.task, its.params, spec(), count=64, chip="h100", batch_size=4, coding="int8")
    assert again.device_bytes == planned.device_bytes, "nothing of a trace is kept"
    found = base.training_sites(model.task, model.params, rows)
    program, drawn = base.row_program(found, found, uj.Sketch()), sketching.drawn(found, uj.Sketch())
    few = jax.tree.map(lambda x: x[:4], rows)
    sketching_takes = room.need(program, model.params, few, drawn).bytes
    assert real.device_bytes == pytest.approx(sketching_takes, rel=0.02)
    width = sum(high * wide for high, wide in sketching.shapes(found, uj.Sketch()))
    shares = positions.tokens_program(model.task, found, uj.Sketch())
    asking_takes = room.need(shares, model.params, few, drawn, np.zeros((1, width), np.float32)).bytes
    assert asking_takes > sketching_takes, "a direction as large as the parameters"
    assert planned.device_bytes == pytest.approx(asking_takes, rel=0.02)
    whole = uj.Task(lambda params, example: its.task.loss(params, example).sum())
    plain = plan_outline(whole, its.params, spec(), count=64, chip="h100", batch_size=4)
    assert plain.device_bytes == pytest.approx(sketching_takes, rel=0.05)
    assert plain.how["asking"] == "no shares of tokens"
    less = plan_outline(its.task, its.params, spec(), count=64, chip="h100", batch_size=4, shares=False)
    assert less.device_bytes == pytest.approx(sketching_takes, rel=0.02)

    times = programs.operations(jax.make_jaxpr(program)(model.params, few, drawn)) * 16
    assert planned.seconds["gradients"] == pytest.approx(times / 494e12 / 0.2, rel=1e-6)


def test_what_does_not_fit_says_what_does(small, monkeypatch):
    its = uj.outline(small)
    how = {"count": 64, "chip": "h100", "batch_size": 4}
    asking = plan_outline(its.task, its.params, spec(), **how)
    alone = plan_outline(its.task, its.params, spec(), **how, shares=False)
    between = (asking.device_bytes + alone.device_bytes) // 2
    monkeypatch.setattr(machine, "chip", lambda name, chip=machine.chip: chip(name)._replace(memory=between))
    assert plan_outline(its.task, its.params, spec(), **how, shares=False).check()
    with pytest.raises(NoRoomError, match=r"are there; without them \(--shown 0\) it is"):
        plan_outline(its.task, its.params, spec(), **how).check()


def test_devices_that_share_the_parameters_need_less_each(small):
    its = uj.outline(small, scanned=True, dtype=jnp.bfloat16)
    one = plan_outline(its.task, its.params, spec(), count=64, chip="h100", batch_size=8)
    mesh = uj.make_mesh(data=2, model=4)
    eight = plan_outline(its.task, its.params, spec(), count=64, chip="h100", devices=8, mesh=mesh, batch_size=8)
    assert eight.device_bytes < one.device_bytes
    assert eight.seconds["gradients"] == pytest.approx(one.seconds["gradients"] / 8)
    with pytest.raises(UsageError, match="do not divide over a mesh of 8 devices"):
        plan_outline(its.task, its.params, spec(), count=64, chip="h100", devices=4, mesh=mesh)
    with pytest.raises(UnknownNameError, match="h100"):
        plan_outline(its.task, its.params, spec(), count=64, chip="h1000")


@pytest.mark.parametrize("name", SIZES)
def test_the_shipped_configs_are_of_the_models_they_name(name):
    values = config.read_yaml(CONFIGS / f"{name}.yaml")
    made = config.parse(config.kind_of(values, config.OWN), values, name)
    its = uj.outline(CONFIGS / "shapes" / name, dtype=made.dtype, scanned=made.scanned, remat=made.remat)
    assert sum(x.size for x in jax.tree.leaves(its.params)) == SIZES[name]
    assert {x.dtype.name for x in jax.tree.leaves(its.params)} == {made.dtype}


def test_their_comments_are_what_plan_says(capsys):
    told = re.search(r"device ([\d.]+) GiB, disk ([\d.]+) GiB", (CONFIGS / "pythia-160m.yaml").read_text())
    assert told is not None
    shapes = ["--model", str(CONFIGS / "shapes" / "pythia-160m"), "--count", "100000", "--chip", "h100"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", str(CONFIGS / "pythia-160m.yaml"), *shapes])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    found = [float(re.search(rf"  {what} +([\d.]+) GiB", said)[1]) for what in ("device", "disk")]
    np.testing.assert_allclose(found, [float(x) for x in told.groups()], rtol=0.25)
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", str(CONFIGS / "pythia-160m.yaml"), *shapes[:2]])
    assert ended.value.code == 2
    assert "--count ROWS (tokens over --length) and --chip NAME" in capsys.readouterr().err
