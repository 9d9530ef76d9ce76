"""Forget losses and the loop that unlearns against slow twins in float64: NumPy alone, gradients by differences."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax.errors import MismatchError, NonFiniteError, ShapeError, UimError, UnknownNameError, UsageError
from uimjax.mitigate import forgetting, subspace
from uimjax.mitigate.forgetting import (
    CEU,
    DPO,
    LOSSES,
    NPO,
    PDU,
    RMU,
    UNDIAL,
    WGA,
    GradAscent,
    SatImp,
    Seen,
    SimNPO,
    Views,
)
from uimjax.mitigate.unlearning import Unlearning, unlearn
from uimjax.models.blocks import Shape
from uimjax.models.decoder import build_decoder
from uimjax.sinks import JsonLines
from uimjax.task import Task

T, V, D = 5, 4, 3
REFERENCE = {  # open-unlearning's reference code: weights of the forget and the retain loss, strengths
    "grad_ascent": (1, 0, {}), "grad_diff": (1, 1, {}), "npo": (1, 1, {"beta": 0.1}), "dpo": (1, 1, {"beta": 0.1}),
    "simnpo": (0.125, 1, {"beta": 4.5, "delta": 0}), "rmu": (1, 1, {"strength": 2}), "wga": (1, 1, {"beta": 1}),
    "undial": (1, 0, {"strength": 10}), "ce_u": (1, 0, {"skip": 1}), "satimp": (0.1, 1, {"beta1": 5, "beta2": 1}),
    "pdu": (1, 50, {"warmup": 0.5}), "cda": (1, 1, {"js": 0}),
}  # fmt: skip


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def nlls(z, labels):
    """Of the tokens that count, one after the other."""
    return np.array([-np.log(softmax(z[t])[y]) for t, y in enumerate(labels) if y >= 0])


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def twin(name, z, labels, now, ref, other=None, other_ref=None, h=None, u=None):
    """The loss at the logits `z`; `now`: the same logits held fixed, where weights and targets are constants."""
    mine, old, many = nlls(z, labels), nlls(ref, labels), sum(y >= 0 for y in labels)
    fixed = np.exp(-nlls(now, labels))
    places = [t for t, y in enumerate(labels) if y >= 0]
    if name in ("grad_ascent", "grad_diff"):
        return -mine.sum() / many
    if name == "npo":
        return -2 / 0.1 * log_sigmoid(0.1 * (mine.sum() - old.sum()))
    if name == "simnpo":
        return -2 / 4.5 * log_sigmoid(4.5 * (mine.sum() / many - 0))
    if name == "dpo":
        ratio = old.sum() - mine.sum()  # log p / p_ref of the answer to forget
        wanted = nlls(other_ref, labels).sum() - nlls(other, labels).sum()
        return -2 / 0.1 * log_sigmoid(0.1 * (wanted - ratio))
    if name == "cda":
        return (mine.sum() + nlls(other, labels).sum()) / 2
    if name == "rmu":
        return np.mean([np.mean((h[t] - 2 * u) ** 2) for t in places])
    if name == "undial":
        each = []
        for t in places:
            target = ref[t].copy()
            target[labels[t]] -= 10
            each.append(-(softmax(target) * np.log(softmax(z[t]))).sum())
        return np.mean(each)
    if name == "ce_u":
        each = []
        for t in places[1:]:
            target = np.exp(now[t])
            target[labels[t]] = 0
            each.append(-(target / target.sum() * np.log(softmax(z[t]))).sum())
        return np.mean(each)
    if name == "wga":
        return -(fixed * mine).mean()
    if name == "satimp":
        return -(fixed**5 * (1 - fixed) * mine).mean()
    return np.mean([(z[t].max() - z[t].mean()) ** 2 for t in places])


def differences(fun, x, step=1e-5):
    """The gradient of `fun` at `x`, number by number."""
    found = np.zeros(x.size)
    for k in range(x.size):
        move = np.zeros(x.size)
        move[k] = step
        move = move.reshape(x.shape)
        found[k] = (fun(x + move) - fun(x - move)) / (2 * step)
    return found.reshape(x.shape)


@pytest.fixture
def case(rng):
    labels = np.array([2, -1, 0, 3, -1])
    z, ref, other, other_ref = (rng.normal(size=(T, V)) * 2 for _ in range(4))
    h, u = rng.normal(size=(T, D)), np.abs(rng.normal(size=D))
    return labels, z, ref, other, other_ref, h, u / np.linalg.norm(u)


def seen(z, labels, h=None):
    at = np.maximum(labels, 0)
    each = jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, jnp.asarray(at)[:, None], -1)[:, 0]
    return Seen(each, jnp.asarray(labels >= 0), jnp.asarray(at), z, h)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_equal_the_slow_twin(name, case):
    labels, z, ref, other, other_ref, h, u = case
    loss = forgetting.get(name)

    def mine(x):
        hidden, logits = (x, z) if name == "rmu" else (None, x)
        views = Views(
            seen(jnp.asarray(logits), labels, hidden), seen(jnp.asarray(ref), labels), seen(jnp.asarray(other), labels),
            seen(jnp.asarray(other_ref), labels), jnp.asarray(u),
        )  # fmt: skip
        return loss(views)

    def slow(x):
        hidden, logits = (x, z) if name == "rmu" else (h, x)
        return twin(name, logits, labels, z, ref, other, other_ref, hidden, u)

    at = h if name == "rmu" else z
    np.testing.assert_allclose(mine(jnp.asarray(at)), slow(at), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(mine)(jnp.asarray(at)), differences(slow, at), rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_counterfactuals_are_drawn_together_by_their_divergence(case):
    labels, z, _, other, *_ = case
    views = Views(seen(jnp.asarray(z), labels), other=seen(jnp.asarray(other), labels))
    each = []
    for t in np.flatnonzero(labels >= 0):
        p, q = softmax(z[t]), softmax(other[t])
        m = (p + q) / 2
        each.append((p * np.log(p / m)).sum() / 2 + (q * np.log(q / m)).sum() / 2)
    plain, whole = forgetting.Counterfactual(), forgetting.Counterfactual(js=3.0)
    assert float(whole(views) - plain(views)) == pytest.approx(3 * np.mean(each), rel=1e-10)
    assert plain.needs == {"other"}
    assert whole.needs == {"other", "logits"}


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_no_part_of_the_answer_changes_nothing(name, case):
    """Reference code averages UNDIAL over all positions and reads the vocabulary's end at padding."""
    labels, z, ref, other, other_ref, h, u = case
    loss, found = forgetting.get(name), []
    for noise in (0.0, 50.0):
        off = np.where(labels[:, None] < 0, noise, 0)
        views = Views(
            *(seen(jnp.asarray(x + off), labels, jnp.asarray(h + off)) for x in (z, ref, other, other_ref)),
            jnp.asarray(u),
        )
        found.append(float(loss(views)))
    longer = [np.concatenate([x, np.full((2, x.shape[1]), 9.0)]) for x in (z, ref, other, other_ref, h)]
    padded = np.concatenate([labels, [-1, -1]])
    views = Views(*(seen(jnp.asarray(x), padded, jnp.asarray(longer[4])) for x in longer[:4]), jnp.asarray(u))
    found.append(float(loss(views)))
    assert np.ptp(found) <= 1e-5 * abs(found[0])


def test_strengths_are_those_of_the_reference_code():
    assert set(REFERENCE) == set(LOSSES)
    for name, (gamma, alpha, strengths) in REFERENCE.items():
        loss, choice = forgetting.get(name), Unlearning(name)
        assert (loss.gamma, loss.alpha) == (choice.gamma, choice.alpha) == (gamma, alpha)
        assert {key: getattr(loss, key) for key in strengths} == strengths
        assert choice.retain == ("hidden" if name == "rmu" else "nll")
        assert choice.heal_steps == (240 if alpha else 0)


def test_a_short_answer_and_an_empty_one_do_not_divide_by_nothing(case):
    _, z, *_ = case
    one, none = np.array([-1, 1, -1, -1, -1]), np.full(T, -1)
    assert float(CEU()(Views(seen(jnp.asarray(z), one)))) > 0, "an answer of one token is not skipped away"
    for name, loss in LOSSES.items():
        views = Views(*(seen(jnp.asarray(z), none, jnp.zeros((T, D))) for _ in range(4)), jnp.ones(D))
        assert np.isfinite(float(loss()(views))), name


# ---------------------------------------------------------------- the loop


def outputs(params, example):
    z = example["x"] @ params["w"]
    return z + jnp.broadcast_to(params["b"], z.shape)


def loss_of(params, example):
    z, y = outputs(params, example), example["y"]
    each = jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, jnp.maximum(y, 0)[:, None], -1)[:, 0]
    return jnp.where(y >= 0, each, 0)


TASK = Task(loss_of, outputs=outputs, label=lambda e: e["y"], features=lambda p, e: e["x"] @ p["w"])


def two_rows(rng):
    """One row to forget and one to keep, so that nothing is drawn."""
    y = np.array([[2, -1, 0, 3, -1], [1, 1, -1, 0, 2]], np.int32)
    params = {"b": rng.normal(size=V), "w": rng.normal(size=(D, V))}
    return {"x": rng.normal(size=(2, T, D)), "y": y}, params


def retained(kind, z, ref, labels, h, h_ref):
    places = [t for t, y in enumerate(labels) if y >= 0]
    if kind == "nll":
        return nlls(z, labels).mean()
    if kind == "row":
        return nlls(z, labels).sum()
    if kind == "hidden":
        return np.mean([np.mean((h[t] - h_ref[t]) ** 2) for t in places])
    return np.mean([(softmax(ref[t]) * np.log(softmax(ref[t]) / softmax(z[t]))).sum() for t in places])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "nll") for name in LOSSES), ("npo", "kl"), ("rmu", "hidden"), ("npo", "row")]
)
def test_the_loop_equals_adamw_by_hand(name, kind, rng):
    data, start = two_rows(rng)
    others = {"x": rng.normal(size=(1, T, D)), "y": data["y"][:1]} if name in ("dpo", "cda") else None
    loss = PDU(bound=0.3, rate=2.0) if name == "pdu" else forgetting.get(name)
    choice = Unlearning(loss, kind, gamma=0.7, alpha=1.3, steps=4, heal_steps=3, learning_rate=0.05, every=3)
    found = unlearn(TASK, jax.tree.map(jnp.asarray, start), data, [0], choice, 5, others=others)
    u = np.asarray(jax.random.uniform(jax.random.fold_in(jax.random.key(5), 7), (V,)))
    u = u / np.linalg.norm(u)
    flat = lambda p: np.concatenate([p["b"], p["w"].ravel()])  # noqa: E731  # there and back
    deep = lambda w: {"b": w[:V], "w": w[V:].reshape(D, V)}  # noqa: E731
    z_of = lambda w, rows, i: rows["x"][i] @ deep(w)["w"] + deep(w)["b"]  # noqa: E731
    h_of = lambda w, i: data["x"][i] @ deep(w)["w"]  # noqa: E731
    first, second, w, begun, dual = 0.0, 0.0, flat(start), flat(start), 1.3
    for k in range(7):
        held = w.copy()

        def keep(w):
            return retained(kind, z_of(w, data, 1), z_of(begun, data, 1), data["y"][1], h_of(w, 1), h_of(begun, 1))

        def objective(w, held=held, k=k, keep=keep, dual=dual):
            total = dual * keep(w)
            if k < 4:
                pair = [z_of(v, others, 0) for v in (w, begun)] if others else [None, None]
                looks = z_of(w, data, 0), data["y"][0], z_of(held, data, 0), z_of(begun, data, 0)
                total += 0.7 * twin(name, *looks, *pair, h_of(w, 0), u)
            return total

        slope, over = differences(objective, w), keep(w) - 0.3
        if name == "pdu" and 2 <= k < 4:
            dual = max(0.0, dual + 2.0 * over)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        w = w - 0.05 * (1 - k / 7) * (first / (1 - 0.9 ** (k + 1))) / (np.sqrt(second / (1 - 0.999 ** (k + 1))) + 1e-8)
    np.testing.assert_allclose(flat(jax.tree.map(np.asarray, found.params)), w, rtol=2e-4, atol=2e-5)
    ends = [nlls(z_of(v, data, 1), data["y"][1]).sum() for v in (begun, w)]
    np.testing.assert_allclose(found.kept[[0, -1]], ends, rtol=1e-4)
    assert (len(found.kept), found.forgot) == (4, 4)
    np.testing.assert_allclose(found.dual, dual, rtol=1e-4)


def many_rows(rng, count=40):
    x = rng.normal(size=(count, T, D)).astype(np.float32)
    y = rng.integers(V, size=(count, T)).astype(np.int32)
    y[::3, 3:] = -1
    return {"x": x, "y": y}, {"b": jnp.zeros(V), "w": jnp.asarray(rng.normal(size=(D, V)), jnp.float32)}


class Stop(Exception):
    pass


class Stopping:
    def __init__(self, at):
        self.at = at

    def write(self, step, scalars):
        assert set(scalars) == {"retain_loss"}
        if step == self.at:
            raise Stop


def test_a_stopped_run_goes_on_to_the_bit_and_leaves_what_came_in(rng, tmp_path):
    data, params = many_rows(rng)
    before = jax.tree.map(np.array, params)
    choice = Unlearning("simnpo", steps=12, heal_steps=9, batch_size=3, retain_size=5, every=4, learning_rate=1e-2)
    whole = unlearn(TASK, params, data, [3, 7, 1], choice, 2, sinks=[JsonLines(tmp_path / "whole.jsonl")])
    for at in (8, 16):
        with pytest.raises(Stop):
            unlearn(TASK, params, data, [3, 7, 1], choice, 2, folder=tmp_path / "run", sinks=[Stopping(at)])
    resumed = unlearn(TASK, params, data, [3, 7, 1], choice, 2, folder=tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    np.testing.assert_array_equal(resumed.kept, whole.kept)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    lines = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 21]
    np.testing.assert_allclose([line["retain_loss"] for line in lines], whole.kept[1:], rtol=1e-6)
    for other in (dataclasses.replace(choice, steps=13), dataclasses.replace(choice, loss="npo")):
        with pytest.raises(MismatchError, match="another run"):
            unlearn(TASK, params, data, [3, 7, 1], other, 2, folder=tmp_path / "run")
    changed = dataclasses.replace(TASK, outputs=lambda p, e: outputs(p, e) + 0.0 * e["x"].sum())
    with pytest.raises(MismatchError, match="another run"):
        unlearn(changed, params, data, [3, 7, 1], choice, 2, folder=tmp_path / "run")


def test_forgetting_stops_early_once_what_is_kept_suffers(rng):
    data, params = many_rows(rng)
    choice = Unlearning("grad_ascent", steps=40, every=5, learning_rate=0.1, batch_size=4)
    long = unlearn(TASK, params, data, [0, 1], choice)
    short = unlearn(TASK, params, data, [0, 1], dataclasses.replace(choice, most=0.1))
    assert long.forgot == 40
    assert short.forgot == 5 * next(k for k, x in enumerate(short.kept) if x > 1.1 * short.kept[0]) < 40
    assert len(short.kept) == short.forgot // 5 + 1
    np.testing.assert_array_equal(short.kept, long.kept[: len(short.kept)])
    healed = unlearn(TASK, params, data, [0, 1], dataclasses.replace(choice, most=0.1, alpha=1.0, heal_steps=100))
    assert healed.kept[-1] < max(healed.kept)


def test_adapters_and_patterns_move_what_they_name_alone(rng):
    data, params = many_rows(rng)
    choice = Unlearning("npo", steps=5, heal_steps=2, learning_rate=1e-2)
    only = unlearn(TASK, params, data, [0], dataclasses.replace(choice, include=("w",))).params
    np.testing.assert_array_equal(only["b"], params["b"])
    assert not np.array_equal(only["w"], params["w"])
    low = unlearn(TASK, params, data, [0], dataclasses.replace(choice, lora=1)).params
    np.testing.assert_array_equal(low["b"], params["b"])
    moved = np.asarray(low["w"]) - np.asarray(params["w"])
    values = np.linalg.svd(moved, compute_uv=False)
    assert values[0] > 1e-4
    assert values[1] < 1e-6 < values[0]
    free = subspace.opened(params, ("*",), (), 1, 0)
    jax.tree.map(np.testing.assert_array_equal, subspace.join(params, free), params)
    with pytest.raises(UsageError, match="did you mean 'w'"):
        unlearn(TASK, params, data, [0], dataclasses.replace(choice, include=("ww*",)))
    with pytest.raises(UsageError, match="no matrix that has a rank of 9"):
        unlearn(TASK, params, data, [0], dataclasses.replace(choice, lora=9))


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("dpo", "rmu", "cda")])
def test_a_language_model_and_a_classifier_forget_by_every_loss(name, rng):
    task, params = build_decoder(Shape(vocabulary=7, length=6, layers=1, width=8, heads=2), 0)
    rows = {"tokens": rng.integers(7, size=(9, 6)).astype(np.int32), "counted": np.ones((9, 6), np.float32)}
    choice = Unlearning(name, steps=3, heal_steps=0, batch_size=2, retain_size=2, learning_rate=3e-3)
    made = unlearn(task, params, rows, [4], choice)
    own = lambda p: float(task.loss(p, {k: jnp.asarray(v[4]) for k, v in rows.items()}).sum())  # noqa: E731  # short
    assert own(made.params) > own(params)
    images = {"x": rng.normal(size=(9, D)).astype(np.float32), "y": rng.integers(V, size=9).astype(np.int32)}
    single = Task(lambda p, e: -jax.nn.log_softmax(outputs(p, e))[e["y"]], outputs=outputs, label=lambda e: e["y"])
    w = {"b": jnp.zeros(V), "w": jnp.asarray(rng.normal(size=(D, V)), jnp.float32)}
    after = unlearn(single, w, images, [4], choice).params
    one = lambda p: float(single.loss(p, {k: jnp.asarray(v[4]) for k, v in images.items()}))  # noqa: E731
    assert one(after) > one(w)


def without(task, *names):
    return dataclasses.replace(task, **dict.fromkeys(names))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"loss": "npoo"}, UnknownNameError, "Did you mean 'npo'"),
        ({"retain": "nul"}, UnknownNameError, "retain loss"),
        ({"forget": []}, UsageError, "0 row ids to forget, of 40 rows"),
        ({"forget": [40]}, UsageError, "1 row ids to forget, of 40 rows"),
        ({"forget": [3, 3]}, UsageError, "name 1 of 40 rows; each once fits"),
        ({"loss": "dpo"}, UsageError, "one row for each to forget, with the answer that is to come instead"),
        ({"others": True}, UsageError, "others=rows arrived; nothing was wanted"),
        ({"loss": "dpo", "others": True, "forget": [1, 2]}, UsageError, "1 other answers arrived for 2 rows"),
        ({"loss": "undial", "task": without(TASK, "outputs")}, UsageError, "looks at logits"),
        ({"loss": "wga", "task": without(TASK, "label")}, UsageError, "looks at tokens one by one"),
        ({"loss": "rmu", "task": without(TASK, "features")}, UsageError, "looks at hidden states"),
        ({"loss": "rmu", "hidden": lambda p, _: p["b"]}, ShapeError, "of 5 tokens arrived"),
        ({"task": dataclasses.replace(TASK, label=lambda e: (e["y"] + 1) % 4)}, MismatchError, "mend label"),
        ({"learning_rate": 1e38}, NonFiniteError, "diverged; lower its learning rate"),
        ({"steps": 0}, UsageError, "should be positive"),
        ({"most": 0.0}, UsageError, "gamma and most should be above 0"),
        ({"loss": "grad_ascent", "heal_steps": 3}, UsageError, "3 steps of healing by a retain loss whose weight is 0"),
        ({"loss": lambda: NPO(beta=0.0)}, UsageError, "above 0"),
        ({"loss": lambda: SatImp(beta1=-1.0)}, UsageError, "from 0 on, and -1.0 arrived"),
    ],
)
def test_what_is_wrong_is_refused(change, error, match, rng):
    data, params = many_rows(rng)
    settings = {"task": TASK, "forget": [1], "others": None, "hidden": None} | change
    others = {"x": data["x"][:1], "y": data["y"][:1]} if settings["others"] else None
    known = {k: v for k, v in change.items() if k not in ("task", "forget", "others", "hidden")}
    loss = known.pop("loss", "npo")

    def run():
        choice = Unlearning(loss() if callable(loss) else loss, **{"steps": 4, "retain_size": 4} | known)
        unlearn(settings["task"], params, data, settings["forget"], choice, others=others, hidden=settings["hidden"])

    with pytest.raises(error, match=match) as caught:
        run()
    assert isinstance(caught.value, UimError)


def test_a_loss_without_labels_is_forgotten_as_a_whole(rng):
    """A regression has no tokens: sums over rows fit it."""
    task = Task(lambda w, e: jnp.square(e["x"] @ w - e["y"]))
    data = {"x": rng.normal(size=(9, 3)).astype(np.float32), "y": rng.normal(size=9).astype(np.float32)}
    for loss in (NPO(), GradAscent(), GradAscent(per="row"), SimNPO(), WGA()):
        made = unlearn(task, jnp.ones(3), data, [0], Unlearning(loss, steps=2, heal_steps=0))
        assert np.isfinite(made.kept).all()
    with pytest.raises(UsageError, match="looks at logits"):
        unlearn(task, jnp.ones(3), data, [0], Unlearning(UNDIAL(), steps=2))
    assert DPO().needs == {"before", "other"}
    assert RMU().needs == {"hidden"}


def test_the_table_in_the_docs_is_that_of_the_code():
    page = (Path(forgetting.__file__).parent.parent / "docs" / "mitigate.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    table = {row[0]: row for row in rows if len(row) == 4}
    assert set(LOSSES) <= set(table)
    for name in LOSSES:
        loss = forgetting.get(name)
        assert [float(x) for x in table[name][1].split(",")] == [loss.gamma, loss.alpha], name
        said = dict(part.split() for part in filter(None, table[name][2].split(", ")))
        held = {
            f.name: getattr(loss, f.name) for f in dataclasses.fields(loss) if f.name not in ("gamma", "alpha", "per")
        }
        assert {key: float(value) for key, value in said.items()} == held, name
