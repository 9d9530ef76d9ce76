"""`uimjax representation --curvature`: every number against dense matrices in float64, series, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests import programs
from tests.pretrained import folders
from uimjax import rows as row
from uimjax.cli import parser
from uimjax.commands import curvature
from uimjax.commands import representation as command
from uimjax.errors import UimError
from uimjax.taps import sites
from uimjax.task import Task
from uimjax.understand.representation import hessian

ME = "tests.understand.representation.test_curvature"
ROWS, P, PROBES, SEED = 20, 28, 4, 3


def outputs(params, example):
    return jnp.tanh(example["x"] @ params["a"] + params["b"]) @ params["c"]


def loss(params, example):
    return programs.cross_entropy(outputs(params, example), example["y"])


def label(example):
    return example["y"]


TASK = Task(loss, outputs=outputs, label=label)


def own(scale=1.0, count=ROWS, task=TASK):
    """A task of the reader's own: `(task, params, rows)`, 28 parameters."""
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=4), "c": rng.normal(size=(4, 3))}
    data = {"x": rng.normal(size=(count, 3)), "y": rng.integers(0, 3, count)}
    return task, jax.tree.map(lambda x: jnp.asarray(scale * x), params), data


def step_1():
    return own(0.5)


def step_10():
    return own()


def half():
    """Parameters of two digits."""
    task, params, data = own()
    return task, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), data


def flat():
    return Task(lambda p, x: 0 * (p @ x)), jnp.ones(3), np.ones((4, 3))


def seen():
    return own(task=Task(loss, outputs=outputs, features=lambda p, e: jnp.tanh(e["x"] @ p["a"] + p["b"])))


def nothing():
    return 3


def called(folder, monkeypatch, *args):
    monkeypatch.chdir(folder)
    words = ["representation", *args]
    return command.representation(parser(words).parse_args(words), [])


def curved(folder, monkeypatch, capsys, *args):
    called(folder, monkeypatch, *args, "--json")
    found = json.loads(capsys.readouterr().out)
    return found["curvature"], found


def dense(kind):
    """The matrix by the book, over the parameters in the order of the tree."""
    _, params, data = own()
    start, back = ravel_pytree(params)

    def mean(at):
        return jax.vmap(lambda example: loss(back(at), example))(data).mean()

    def every(at):
        return jax.vmap(lambda example: outputs(back(at), example))(data)

    if kind == "hessian":
        return np.asarray(jax.hessian(mean)(start)), mean, start
    j, p = jax.jacrev(every)(start), jax.nn.softmax(every(start))
    inner = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(p)
    return np.asarray(jnp.einsum("nap,nab,nbq->pq", j, inner, j) / ROWS), mean, start


@pytest.mark.parametrize("kind", curvature.MATRICES)
@pytest.mark.usefixtures("x64")
def test_all_numbers_are_those_of_the_dense_matrix(kind, tmp_path, monkeypatch, capsys):
    asked = ("--probes", str(PROBES), "--order", str(P), "--seed", str(SEED))
    found, _ = curved(tmp_path, monkeypatch, capsys, "--task", f"{ME}:step_10", "--curvature", kind, *asked)
    (its,) = found["checkpoints"]
    matrix, mean, start = dense(kind)
    values, vectors = np.linalg.eigh(matrix)
    rng = np.random.default_rng(SEED)
    starts = np.stack([rng.choice([-1.0, 1.0], P) for _ in range(PROBES)])
    weights = np.square(starts @ vectors) / P  # [m, P]: what each start has of each eigenvector
    mean_of = lambda x: (x.mean(0), x.std(0, ddof=1) / np.sqrt(PROBES))  # noqa: E731  # thrice
    near = {"rtol": 1e-8, "atol": 1e-11}
    np.testing.assert_allclose(its["top"], values[::-1][:5], **near)
    apart = values[np.abs(values) > 1e-9]  # of zeros one is found
    np.testing.assert_allclose(its["bottom"][0], min(values[0], 0), **near)
    if kind == "hessian":
        np.testing.assert_allclose(its["bottom"], apart[:5], **near)
    quadratic = np.einsum("mi,ij,mj->m", starts, matrix, starts)
    np.testing.assert_allclose([its["trace"], its["trace_error"]], mean_of(quadratic), **near)
    below = values < -1e-5 * np.abs(values).max()
    wanted = mean_of((weights * below).sum(1))
    np.testing.assert_allclose([its["negative_share"], its["negative_share_error"]], wanted, **near)
    sizes = weights * np.abs(values)
    np.testing.assert_allclose(its["negative_mass"], (sizes * below).sum() / sizes.sum(), **near)
    drawn = its["density"]
    grid, sigma = np.array(drawn["grid"]), drawn["sigma"]
    bumps = np.exp(-0.5 * ((grid[:, None] - values) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    density, error = mean_of(weights @ bumps.T)
    np.testing.assert_allclose(drawn["density"], density, **near)
    np.testing.assert_allclose(drawn["error"], error, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(np.trapezoid(drawn["density"], grid), 1, rtol=1e-3)
    gradient = np.asarray(jax.grad(mean)(start))
    rise = mean(start + 0.05 * gradient / np.linalg.norm(gradient)) - mean(start)
    for name, value in (("loss", mean(start)), ("gradient_norm", np.linalg.norm(gradient)), ("rise", rise)):
        np.testing.assert_allclose(its[name], float(value), rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_few_steps_are_near_by_what_they_say(tmp_path, monkeypatch, capsys):
    args = ("--task", f"{ME}:step_10", "--curvature", "hessian", "--order", "6", "--probes", "3")
    its = curved(tmp_path, monkeypatch, capsys, *args)[0]["checkpoints"][0]
    values = np.linalg.eigvalsh(dense("hessian")[0])
    for end in ("top", "bottom"):
        apart = np.abs(np.array(its[end])[:, None] - values).min(1)
        assert (apart <= np.array(its[f"{end}_error"])).all()
    assert max(its["top"]) <= values[-1] + 1e-12
    assert its["steps"] == [6, 6, 6]


@pytest.mark.usefixtures("x64")
def test_batches_change_nothing(tmp_path, monkeypatch, capsys):
    args = ("--task", f"{ME}:step_10", "--curvature", "ggn", "--order", "8", "--probes", "2", "--rows", "17")
    wanted = curved(tmp_path, monkeypatch, capsys, *args)[0]["checkpoints"][0]
    assert wanted["rows"] == 17
    for size in (1, 5, 100):
        monkeypatch.setattr(curvature, "BATCH", size)
        found = curved(tmp_path, monkeypatch, capsys, *args)[0]["checkpoints"][0]
        for name in ("top", "bottom", "trace", "negative_mass", "loss", "rise"):
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9, atol=1e-13, err_msg=name)


def test_working_memory_is_that_of_one_batch():
    """Beside the rows, which are what a program is given. A sum of the mask takes 4 bytes a row."""

    def working(count, batch=curvature.BATCH):
        task, params, data = own(count=count)
        found = sites(task, params, row.example_spec(data))
        h = hessian.products.matrix("hessian", found, task, params, data, row.Pass(batch))
        program = hessian._lanczos(*h.program, 5)
        made = program.lower(h.params, h.batches, hessian.products.start(h)).compile().memory_analysis()
        return made.temp_size_in_bytes

    assert 0 < working(4096) - 4 * 4096 <= working(64)
    assert working(4096, 4096) > 50 * working(64)


def test_a_series_of_the_readers_own_in_a_process(tmp_path):
    """Text, pictures and sentences; tasks without features have no spectra of them."""
    words = ["--task", f"{ME}:step_1", f"{ME}:step_10", "--curvature", "hessian", "--probes", "3", "--order", "10"]
    done = subprocess.run(
        [sys.executable, "-m", "uimjax.cli", "representation", *words, "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in ("the Hessian of the loss (mean over 20 rows; a row's: as the task says", "3 starts of 10 products",
                 "step_1: 28 parameters; largest ", "step_10: From ", "of the eigenvalues lie below 0",
                 "As number in the checkpoint's name goes from 1 to 10, loss ", "largest eigenvalue "):  # fmt: skip
        assert said in done.stdout, said
    assert "sve" not in done.stdout
    for name in ("density-1-step_1", "density-2-step_10", "curvature"):
        assert {(tmp_path / "out" / f"{name}.{end}").exists() for end in ("svg", "csv", "txt")} == {True}
    held = json.loads((tmp_path / "out" / "representation.json").read_text())
    assert (held["files"], sorted(held["pictures"])) == ([], ["curvature", "density-1-step_1", "density-2-step_10"])
    found = held["curvature"]
    assert {n: found[n] for n in ("matrix", "probes", "order", "rows", "seed")} == {
        "matrix": "hessian", "probes": 3, "order": 10, "rows": 256, "seed": 0}  # fmt: skip
    assert [its["name"] for its in found["checkpoints"]] == ["step_1", "step_10"]
    assert set(found["checkpoints"][0]) == {
        "name", "parameters", "rows", "loss_of_a_row", "top", "bottom", "top_error", "bottom_error", "trace",
        "trace_error", "negative_share", "negative_share_error", "negative_mass", "negative_mass_error", "steps", "rho",
        "density", "loss", "gradient_norm", "rise",
    }  # fmt: skip
    assert {len(found["checkpoints"][0]["density"][n]) for n in ("grid", "density", "error")} == {curvature.GRID}


def test_models_over_a_corpus_have_both(tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        folders.write(tmp_path / name, "llama", words=40)
    texts = [" ".join(f"w{(7 * k + j) % 40}" for j in range(3 + k % 9)) for k in range(30)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    args = ("--corpus", "corpus.jsonl", "--limit", "20", "--curvature", "ggn", "--probes", "2", "--order", "3")
    called(tmp_path, monkeypatch, "--model", "one", "two", *args, "--rows", "12", "--names", "a/b", "c", "--out", "out")
    text = capsys.readouterr().out
    assert "the sum over its tokens, nats" in text
    held = json.loads((tmp_path / "out" / "representation.json").read_text())
    assert [line["name"] for line in held["files"]] == ["a/b", "c"]
    assert {"spectrum", "cka", "series", "curvature", "density-1-a_b", "density-2-c"} <= set(held["pictures"])
    one, two = held["curvature"]["checkpoints"]
    assert one["trace"] == pytest.approx(two["trace"])  # the same starts at the same parameters
    assert one["negative_mass"] == 0

    import uimjax as uj
    from uimjax.corpora.prepared import open_prepared

    its, rows = uj.load(tmp_path / "one"), row.spread(open_prepared(tmp_path / "out" / "corpus").rows, 12)
    losses = jax.vmap(its.task.loss, (None, 0))(its.params, rows)
    assert one["loss"] == pytest.approx(float(losses.sum(1).mean()), rel=1e-5)
    assert one["tokens_a_row"] == np.asarray(rows["counted"])[:, 1:].sum() / 12
    assert f"c: {one['tokens_a_row']:.4g} tokens a row have a loss; divided by that" in text


def test_what_is_odd_is_told(tmp_path, monkeypatch, capsys):
    args = ("--curvature", "hessian", "--probes", "2", "--order", "3")
    called(tmp_path, monkeypatch, "--task", f"{ME}:flat", *args)
    text = capsys.readouterr().out
    assert "flat: no density: all eigenvalues that were found are 0" in text
    assert "flat: no sharpness: the mean loss is 0.0, its gradient's norm 0.0" in text
    found, whole = curved(tmp_path, monkeypatch, capsys, "--task", f"{ME}:flat", *args)
    assert (found["checkpoints"][0]["loss"], whole["pictures"]) == (None, {})
    called(tmp_path, monkeypatch, "--task", f"{ME}:flat", f"{ME}:flat", *args)
    assert "largest eigenvalue stays from 0 to 0" in capsys.readouterr().out
    narrow = curved(tmp_path, monkeypatch, capsys, "--task", f"{ME}:half", *args)[0]["checkpoints"][0]
    _, params, data = half()
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    made = hessian.hessian_spectrum(TASK, wide, data, probes=2, steps=3)
    assert narrow["trace"] == pytest.approx(made.trace, rel=1e-5)


def test_a_task_with_features_has_their_spectra(tmp_path, monkeypatch, capsys):
    called(tmp_path, monkeypatch, "--task", f"{ME}:seen", "--limit", "15", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [(its["name"], its["rows"], its["width"]) for its in found["files"]] == [("seen", 15, 4)]
    assert "curvature" not in found


HESSIAN = ("--task", f"{ME}:step_10", "--curvature", "hessian")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((*HESSIAN, "--rows", "0"), "--rows 0 arrived; 1 or more was wanted"),
        ((*HESSIAN, "--probes", "1"), "--probes 1 arrived; 2 or more was wanted: the standard error"),
        ((*HESSIAN, "--order", "0"), "--order 0 arrived; 1 or more"),
        ((*HESSIAN, "--seed", "-1"), "--seed -1 arrived; 0 or more"),
        ((*HESSIAN, "--order", "29"), "--order 29 arrived, and step_10 has 28 parameters; at most so many"),
        ((*HESSIAN[:3], "hesian"), "unknown curvature 'hesian'. Did you mean 'hessian'"),
        (("x.npy", "--curvature", "ggn"), "that of a loss, not of features"),
        (("x.npy", "--probes", "3", "--rows", "4"), "--probes, --rows arrived without --curvature"),
        (("x.npy", "--task", "a:b"), "one of the three fits"),
        (("--model", "m", "--corpus", "c", "--task", "a:b"), "one of the three fits"),
        ((*HESSIAN, "--limit", "0"), "--limit 0 arrived"),
        (HESSIAN[:2], "without features"),
        (("--task", f"{ME}:nothing", *HESSIAN[2:]), "nothing returned int; \\(uimjax.Task, params, rows\\) was wanted"),
        (("--task", f"{ME}:seen", *HESSIAN[1:], "--order", "2", "--probes", "2"), "all or none fit in one series"),
    ],
)
def test_wrong_input_is_refused_with_its_cure(tmp_path, monkeypatch, args, match):
    with pytest.raises(UimError, match=match) as caught:
        called(tmp_path, monkeypatch, *args)
    assert caught.value.exit_code == 2


def test_without_matfree_its_extra_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matfree", None)
    with pytest.raises(UimError, match=r"needs matfree, which is not installed: pip install 'uimjax\[solve\]'"):
        called(tmp_path, monkeypatch, "--model", "none", "--corpus", "none", "--curvature", "ggn")
