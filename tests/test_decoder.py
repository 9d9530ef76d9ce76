"""The decoder: against its equations in float64, causal, traceable, and the same when trained twice."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import uimjax as uj
from uimjax import steps, training
from uimjax.errors import UsageError
from uimjax.models.attention import Rotary
from uimjax.models.blocks import Shape
from uimjax.models.decoder import build, build_decoder

SMALL = {"vocabulary": 11, "length": 9, "layers": 2, "width": 8, "heads": 4}


def rows(rng, count=6, length=9, vocabulary=11):
    tokens = rng.integers(vocabulary, size=(count, length)).astype(np.int32)
    counted = (np.arange(length)[None, :] < rng.integers(3, length + 1, size=count)[:, None]).astype(np.float32)
    return {"tokens": tokens, "counted": counted}


def speeds(rotary, size):
    """Radians a place of each pair, and the scale of what turns, one pair at a time from the papers' formulas."""
    out, scale = [], 1.0
    for k in range(size // 2):
        plain = rotary.base ** (-2 * k / size)
        wave = 2 * np.pi / plain
        if rotary.stretch == "linear":
            plain /= rotary.factor
        elif rotary.stretch == "llama3":
            longest, shortest = rotary.trained / rotary.low, rotary.trained / rotary.high
            if wave > longest:
                plain /= rotary.factor
            elif wave > shortest:
                part = (rotary.trained / wave - rotary.low) / (rotary.high - rotary.low)
                plain = (1 - part) * plain / rotary.factor + part * plain
        elif rotary.stretch == "yarn":
            pair = lambda turns: size * np.log(rotary.trained / (turns * 2 * np.pi)) / (2 * np.log(rotary.base))  # noqa: E731
            first, last = max(np.floor(pair(rotary.high)), 0), min(np.ceil(pair(rotary.low)), size - 1)
            ramp = min(max((k - first) / (last - first), 0), 1)
            plain = plain / rotary.factor * ramp + plain * (1 - ramp)
            scale = 0.1 * np.log(rotary.factor) + 1
        out.append(plain)
    return out, scale


def by_hand(params, shape, tokens):
    """Logits in NumPy, one position and one head at a time."""
    p = {jax.tree_util.keystr(k, simple=True, separator="/").removesuffix("/value"): np.asarray(v, np.float64)
         for k, v in jax.tree_util.tree_flatten_with_path(params)[0]}  # fmt: skip
    per, share = shape.head or shape.width // shape.heads, shape.heads // (shape.kv_heads or shape.heads)
    x = p["embedding"][tokens]
    if shape.positions == "learned":
        x = x + p["position"][: len(tokens)]

    def norm(x, name):
        if shape.norm == "rms":
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + shape.epsilon) * p[f"{name}/scale"]
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + shape.epsilon) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def linear(x, name):
        return x @ p[f"{name}/kernel"] + p.get(f"{name}/bias", 0)

    def turned(vector, t):
        size = int(per * shape.rotary.share)
        angles, scale = speeds(shape.rotary, size)
        half, out = size // 2, vector.copy()
        for k in range(half):
            a, b, angle = vector[k], vector[k + half], t * angles[k]
            out[k] = scale * (a * np.cos(angle) - b * np.sin(angle))
            out[k + half] = scale * (b * np.cos(angle) + a * np.sin(angle))
        return out

    def attention(h, at, layer):
        q, k, v = (linear(h, f"{at}/{name}") for name in ("query", "key", "value"))
        if shape.query_norm == "whole":
            q, k = norm(q, f"{at}/query_norm"), norm(k, f"{at}/key_norm")
        mixed = np.zeros((len(tokens), shape.heads * per))
        window = (shape.windows or (0,) * shape.layers)[layer] or len(tokens)
        for t, head in itertools.product(range(len(tokens)), range(shape.heads)):
            past = range(max(0, t - window + 1), t + 1)
            columns = slice(head // share * per, (head // share + 1) * per)
            mine, keys = q[t, head * per : (head + 1) * per], [k[s, columns] for s in past]
            if shape.query_norm == "head":
                mine, keys = norm(mine, f"{at}/query_norm"), [norm(key, f"{at}/key_norm") for key in keys]
            if shape.positions == "rotary" and layer not in shape.unturned:
                mine, keys = turned(mine, t), [turned(key, s) for key, s in zip(keys, past, strict=True)]
            weight = np.exp([mine @ key / np.sqrt(per) for key in keys])
            mixed[t, head * per : (head + 1) * per] = (weight / weight.sum()) @ v[past][:, columns]
        return linear(mixed, f"{at}/out")

    def feedforward(h, at):
        up = linear(h, f"{at}/up")
        if shape.mlp == "swiglu":
            gate = linear(h, f"{at}/gate")
            return linear(gate / (1 + np.exp(-gate)) * up, f"{at}/down")
        gelu = {
            "gelu": lambda u: 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))),
            "gelu_exact": lambda u: 0.5 * u * (1 + np.vectorize(math.erf)(u / np.sqrt(2))),
            "relu": lambda u: np.maximum(u, 0),
        }[shape.mlp]
        return linear(gelu(up), f"{at}/down")

    for k in range(shape.layers):
        at = f"blocks/{k}"
        if shape.order == "before":
            x = x + attention(norm(x, f"{at}/before"), f"{at}/attention", k)
            x = x + feedforward(norm(x, f"{at}/between"), f"{at}/feedforward")
        elif shape.order == "after":
            x = x + norm(attention(x, f"{at}/attention", k), f"{at}/before")
            x = x + norm(feedforward(x, f"{at}/feedforward"), f"{at}/between")
        else:
            side = feedforward(norm(x, f"{at}/between"), f"{at}/feedforward")
            x = x + attention(norm(x, f"{at}/before"), f"{at}/attention", k) + side
    x = norm(x, "last")
    return x @ (p["embedding"].T if shape.tied else p["head/kernel"])


CHOICES = [
    {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "kv_heads": 2, "tied": True},
    {"positions": "learned", "norm": "layer", "mlp": "gelu", "kv_heads": 0, "tied": False},
    {"positions": "rotary", "norm": "layer", "mlp": "gelu", "kv_heads": 1, "tied": True, "hidden": 5},
    {"positions": "learned", "norm": "rms", "mlp": "swiglu", "kv_heads": 4, "tied": False},
]
REAL = {
    "gpt2": {"positions": "learned", "norm": "layer", "mlp": "gelu", "biases": ("query", "out", "mlp"),
             "epsilon": 1e-5},
    "neox": {"order": "parallel", "norm": "layer", "mlp": "gelu_exact", "biases": ("query", "out", "mlp"),
             "head": 8, "rotary": Rotary(share=0.25), "tied": False},
    "llama3": {"kv_heads": 2, "head": 8, "rotary": Rotary(5e5, 1.0, "llama3", 8.0, 6, 1.0, 4.0)},
    "mistral": {"kv_heads": 1, "windows": (3, 3)},
    "qwen2": {"kv_heads": 2, "biases": ("query",), "windows": (0, 4)},
    "qwen3": {"kv_heads": 2, "head": 6, "query_norm": "head", "rotary": Rotary(1e6, 1.0, "yarn", 4.0, 50, 1.0, 32.0)},
    "olmo2": {"order": "after", "query_norm": "whole", "kv_heads": 2, "mlp": "relu"},
    "smollm3": {"kv_heads": 2, "unturned": (1,), "rotary": Rotary(stretch="linear", factor=2.0)},
}  # fmt: skip
CHOICES += [REAL[name] for name in REAL]


@pytest.mark.parametrize("choice", CHOICES)
def test_logits_and_losses_equal_the_equations(choice, rng, x64):
    del x64
    shape = Shape(**SMALL, **choice)
    task, params = build_decoder(shape, 0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5), params)
    batch, loss = rows(rng, 2), jax.jit(task.loss)
    for k in range(2):
        example = {"tokens": batch["tokens"][k], "counted": batch["counted"][k].astype(np.float64)}
        want = by_hand(params, shape, example["tokens"])
        np.testing.assert_allclose(jax.jit(task.outputs)(params, example), want, rtol=1e-9, atol=1e-9)
        logp = want - np.log(np.exp(want).sum(-1, keepdims=True))
        nll = [0.0, *(-logp[t - 1, example["tokens"][t]] * example["counted"][t] for t in range(1, 9))]
        np.testing.assert_allclose(loss(params, example), nll, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("choice", REAL.values(), ids=REAL)
@pytest.mark.parametrize("how", [{"scanned": True}, {"remat": True}, {"scanned": True, "remat": True}], ids=str)
def test_stacked_layers_and_those_computed_again_are_the_same(choice, how, rng, x64):
    del x64
    plain, params = build_decoder(Shape(**SMALL, **choice), 0)
    task, made = build_decoder(Shape(**SMALL, **choice, **how), 0)
    row = jax.tree.map(lambda x: x[0], rows(rng, 1))
    row["counted"] = row["counted"].astype(np.float64)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)

    def stacked(params):
        if "scanned" not in how:
            return params
        flat = nnx.to_flat_state(params)
        layers: dict = {}
        for path, leaf in flat:
            if path[0] == "blocks":
                layers.setdefault(("blocks", *path[2:]), {})[path[1]] = leaf[...]
        rest = {path: leaf[...] for path, leaf in flat if path[0] != "blocks"}
        leaves = rest | {path: jnp.stack([its[k] for k in sorted(its)]) for path, its in layers.items()}
        return nnx.from_flat_state([(path, leaf.replace(leaves[path])) for path, leaf in nnx.to_flat_state(made)])

    value = lambda task, of: lambda p: task.loss(of(p), row).sum()  # noqa: E731
    want, got = (jax.jit(jax.value_and_grad(value(t, of)))(params) for t, of in ((plain, lambda p: p), (task, stacked)))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-10)
    for one, two in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("choice", CHOICES[:2])
def test_a_token_never_sees_what_comes_after_and_gradients_equal_vmap_grad(choice, rng):
    task, params = build_decoder(Shape(**(SMALL | {"layers": 1}), **choice), 0)
    batch = rows(rng)
    other = batch["tokens"].copy()
    other[:, 5:] = (other[:, 5:] + 3) % 11
    every = jax.jit(jax.vmap(lambda tokens: task.outputs(params, {"tokens": tokens})))
    a, b = (np.asarray(every(tokens)) for tokens in (batch["tokens"], other))
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert not np.allclose(a[:, 5:], b[:, 5:])
    found = uj.per_example_gradients(task, params, batch)
    want = jax.jit(jax.vmap(jax.grad(lambda p, r: task.loss(p, r).sum()), in_axes=(None, 0)))(params, batch)
    for path, leaf in jax.tree_util.tree_flatten_with_path(want)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(found[name], leaf, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"width": 10}, "width 10 does not divide over 4 heads"),
        ({"kv_heads": 3}, "4 heads cannot share 3 key-value heads"),
        ({"width": 4}, "1 numbers a head is odd"),
        ({"layers": 0}, "should be positive"),
    ],
)
def test_impossible_shapes_are_refused(bad, words):
    with pytest.raises(UsageError, match=words):
        Shape(**(SMALL | bad))


def test_a_model_of_ones_own_and_what_is_no_model():
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Embed(11, 11, rngs=rngs)

        def __call__(self, tokens):
            return self.table(tokens)

    task, params = build(Own(nnx.Rngs(0)))
    assert task.loss(params, {"tokens": np.arange(4), "counted": np.ones(4)}).shape == (4,)
    with pytest.raises(UsageError, match="a flax.nnx.Module of tokens"):
        build(lambda tokens: tokens)  # pyright: ignore[reportArgumentType]  # the test

    class WithState(Own):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    with pytest.raises(UsageError, match="build it for evaluation"):
        build(WithState(nnx.Rngs(0)))


def test_trained_twice_and_interrupted_it_has_the_same_losses(rng, tmp_path):
    task, params = build_decoder(Shape(**(SMALL | {"layers": 1})), 3)
    data = rows(rng, 40)
    recipe = steps.Recipe(epochs=6, batch_size=16, learning_rate=1e-2, seed=3)
    one, two = (training.fit(task, params, data, recipe) for _ in range(2))
    np.testing.assert_array_equal(one.example_loss, two.example_loss)
    assert one.loss[-1] < one.loss[0]

    class Stop(Exception):
        pass

    def stop_after_four(items, *_, **__):
        for k, item in enumerate(items):
            if k == 4:
                raise Stop
            yield item

    keep = {"folder": tmp_path / "f", "save_every": 2, "snapshots": (1, 3, 5)}
    with pytest.raises(Stop):
        training.fit(task, params, data, recipe, progress=stop_after_four, **keep)
    again = training.fit(task, params, data, recipe, **keep)
    np.testing.assert_array_equal(one.example_loss, again.example_loss)
    for path, leaf in jax.tree_util.tree_flatten_with_path(one.params)[0]:
        np.testing.assert_array_equal(leaf, dict(jax.tree_util.tree_flatten_with_path(again.params)[0])[path])
    training.fit(task, params, data, recipe, folder=tmp_path / "g", snapshots=(1, 3, 5))
    for epoch in (1, 3, 5):
        a, b = (training.snapshot(tmp_path / f, params, epoch) for f in ("f", "g"))
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_snapshots_are_spread_short_of_the_end_and_rates_follow_the_schedule():
    assert training.spread(12, 5) == (2, 4, 6, 8, 10)
    assert training.spread(12, 1) == (12,)
    assert training.spread(2, 5) == (1, 2)
    recipe = steps.Recipe(epochs=10, learning_rate=0.5)
    assert steps.rate(recipe, 0) == pytest.approx(1.0)
    assert steps.rate(recipe, 10) == pytest.approx(0.1)
    assert steps.rate(recipe, 5) == pytest.approx(0.55)
    assert steps.rate(steps.Recipe(schedule="constant"), 7) == 1.0


def test_labels_are_drawn_from_the_model_and_the_curvature_is_of_the_loss(rng):
    task, params = build_decoder(Shape(**SMALL), 0)
    data = rows(rng, count=16)
    one = jax.tree.map(lambda x: x[0], data)
    logits = task.outputs(params, one)
    np.testing.assert_allclose(task.nll(logits, one), task.loss(params, one), rtol=1e-6)
    drawn = jax.vmap(lambda key: task.sample(key, logits, one)["tokens"])(jax.random.split(jax.random.key(0), 20000))
    assert (drawn[:, 0] == one["tokens"][0]).all()
    for t in range(3):
        found = np.bincount(drawn[:, t + 1], minlength=11) / len(drawn)
        np.testing.assert_allclose(found, jax.nn.softmax(logits[t]), atol=0.02)
    f = uj.Measurement("f", lambda p, q: -task.loss(p, q).sum())
    query = jax.tree.map(lambda x: x[:2], data)
    scores = uj.score(task, params, data, f, query, "ekfac", each=True)
    assert (scores.values.argmax(0) == [0, 1]).all(), "a row raises its own likelihood most"
    assert "ekfac" in uj.score(task, params, data, f, query, "auto").method
