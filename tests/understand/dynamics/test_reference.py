"""The digits run with flipped labels: every score of every example, and how well each finds the flips."""

import csv
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, roc_auc_score

import uimjax as uj
from uimjax.understand.dynamics.scoring import suspicion

pytestmark = pytest.mark.usefixtures("x64")
AT = (1, 2, 5, 10, 20, 40)


def outputs(params, x):
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


TASK = uj.Task(
    lambda p, e: -jax.nn.log_softmax(outputs(p, e["x"]))[e["y"]],
    outputs=lambda p, e: outputs(p, e["x"]), label=lambda e: e["y"],
)  # fmt: skip


def parameters(flat):
    cut = np.cumsum([64 * 64, 64, 64 * 10])
    w1, b1, w2, b2 = np.split(np.asarray(flat, np.float64), cut)
    return {"w1": jnp.asarray(w1.reshape(64, 64)), "b1": jnp.asarray(b1), "w2": jnp.asarray(w2.reshape(64, 10)),
            "b2": jnp.asarray(b2)}  # fmt: skip


@pytest.fixture
def folder(reference_data):
    return reference_data / "digits_dynamics"


@pytest.fixture
def run(folder):
    return dict(np.load(folder / "digits_mlp_dynamics.npz"))


@pytest.fixture
def rows(run):
    return {"x": jnp.asarray(load_digits().data / 16), "y": jnp.asarray(run["labels"])}


@pytest.fixture
def golden(folder):
    with gzip.open(folder / "golden_scores.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


@pytest.fixture
def statistics(run, rows):
    """Epochs 1 to 40 as meetings 0 to 39, in batches of 100; gradient norms where the parameters are stored."""
    collector = uj.dynamics.Collector(1797, (*uj.dynamics.Collector(1).what, "grand"), at=tuple(e - 1 for e in AT))
    at = dict(zip(run["param_epochs"].tolist(), run["params"], strict=True))
    norms = {e: uj.gradient_norms(TASK, parameters(at[e]), rows) for e in AT}
    update, state = jax.jit(collector.update), collector.init(jnp.float64)
    for epoch in range(1, 41):
        order = np.random.default_rng(epoch).permutation(1797)
        for ids in np.array_split(order, 18):
            state = update(
                state, jnp.asarray(ids), logits=jnp.asarray(run["logits"][epoch, ids], jnp.float64),
                labels=jnp.asarray(run["labels"][ids]), epoch=epoch,
                norms=norms[epoch][ids] if epoch in norms else jnp.full(len(ids), jnp.nan),
            )  # fmt: skip
    return collector.finish(state)


def near(mine, theirs, name, tolerance=1e-6, floor=1e-8):
    np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=floor, err_msg=name)


def test_every_score_of_every_example(statistics, golden):
    found = {name: score.values for name, score in uj.dynamics.scores(statistics).items()}
    for name in ("aum", "confidence", "variability", "aleatoric", "loss_mean", "loss_final"):
        near(found[name], golden[name], name)
    for name in ("correctness", "forgetting", "first_learned", "presentations_to_learn"):
        wanted = np.where(np.isnan(golden[name]), np.inf, golden[name])
        assert (found[name] == wanted).all(), name
    for epoch in AT:
        near(found[f"el2n_{epoch - 1}"], golden[f"el2n_e{epoch}"], "el2n")
        near(found[f"grand_{epoch - 1}"], golden[f"grand_e{epoch}"], "grand", 2e-5, 4e-6)  # float32 is stored
    cartography = uj.dynamics.Definitions(never_learned="cartography")
    found = uj.dynamics.scores(statistics, cartography)["forgetting"].values
    assert (found == golden["cartography_forgetfulness"]).all()


def test_how_well_each_score_finds_the_flips(statistics, golden, run, folder, rows):
    wanted = json.loads((folder / "golden_summary.json").read_text())["auc_ap"]
    flipped = run["flipped"]
    found = uj.dynamics.scores(statistics)
    named = {f"el2n_e{e}": f"el2n_{e - 1}" for e in AT} | {f"grand_e{e}": f"grand_{e - 1}" for e in AT}
    plain = ("aum", "confidence", "variability", "correctness", "aleatoric", "forgetting", "first_learned",
             "presentations_to_learn", "loss_mean", "loss_final")  # fmt: skip
    for name, mine in (named | {name: name for name in plain}).items():
        values = suspicion(found[mine])
        values = np.where(np.isinf(values), 1e6, values)
        assert roc_auc_score(flipped, values) == pytest.approx(wanted[name][0], abs=1e-4), name
        assert average_precision_score(flipped, values) == pytest.approx(wanted[name][1], abs=1e-4), name
    start = uj.gradient_norms(TASK, parameters(run["params"][0]), rows)
    near(start, golden["grand_e0"], "grand_e0")
    assert roc_auc_score(flipped, start) == pytest.approx(0.469, abs=1e-3)


def test_variance_of_input_gradients(run, rows, golden):
    """Against NumPy on the stored parameters. The stored scores are of more checkpoints than the stored parameters (no
    subset of these gives them), so they agree in rank alone; neither finds flipped labels."""
    state, each = uj.dynamics.vog_init(1797, 64, jnp.float64), []
    x, y = np.asarray(rows["x"]), run["labels"]
    for flat in run["params"]:
        p = parameters(flat)
        state = uj.dynamics.vog_update(
            state, jnp.arange(1797), uj.dynamics.input_gradients(outputs, p, rows["x"], rows["y"])
        )
        alive = x @ np.asarray(p["w1"]) + np.asarray(p["b1"]) > 0
        each.append((alive * np.asarray(p["w2"])[:, y].T) @ np.asarray(p["w1"]).T)
    found = uj.dynamics.vog_finish(state)
    near(found, np.std(np.stack(each), axis=0).mean(1), "vog", 1e-9)
    assert np.corrcoef(found, golden["vog"])[0, 1] > 0.75
    assert roc_auc_score(run["flipped"], found) < 0.5


def test_the_gradient_noise_scale(run, rows, folder):
    """All rows as one batch: b = 1 and B = N give the unbiased estimates."""
    wanted = json.loads((folder / "golden_diagnostics.json").read_text())["gradient_noise"]
    at = dict(zip(run["param_epochs"].tolist(), run["params"], strict=True))
    for name, golden in wanted.items():
        made = jax.jit(lambda p: uj.dynamics.graded(TASK, p, rows))(parameters(at[int(name[1:])]))
        small = jnp.square(made.norms).mean()
        big = sum(jnp.square(g).sum() for g in jax.tree.leaves(made.gradient))
        assert float(small) == pytest.approx(golden["mean_sq_per_example_norm"], rel=1e-6)
        assert float(big) == pytest.approx(golden["grad_sq_norm_full"], rel=1e-6)
        noise = uj.dynamics.noise_update(uj.dynamics.noise_init(), small, big, (1, 1797))
        found = uj.dynamics.noise_scale(noise)
        assert found["trace"] == pytest.approx(golden["tr_cov_unbiased"], rel=1e-6)
        assert found["simple"] == pytest.approx(golden["B_simple_unbiased_G"], rel=1e-6)
        assert found["trace"] / float(big) == pytest.approx(golden["B_simple_plugin"], rel=1e-6)
