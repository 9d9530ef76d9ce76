"""What attribution is judged on: a network, its rows and queries, and how it is trained. Real data; a folder of them is
named by UIMJAX_DATA."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import networks
from uimjax.errors import UsageError
from uimjax.steps import Recipe
from uimjax.task import Measurement, Task


class Judged(NamedTuple):
    """`initial(seed)` gives the parameters that a training starts from; `subsets` x `seeds` models are the truth."""

    task: Task
    initial: Callable[[int], Any]
    data: Any
    queries: Any
    measurement: Measurement
    recipe: Recipe
    subsets: int
    texts: tuple[list[str], list[str]] | None = None


def folder(name: str) -> Path:
    """A folder of the reference data.

    Raises:
        UsageError: UIMJAX_DATA is not set, or holds no such folder.
    """
    root = os.environ.get("UIMJAX_DATA")
    if not root or not (Path(root) / name).is_dir():
        raise UsageError(f"this benchmark reads {name} in the folder that UIMJAX_DATA names, which is {root!r}")
    return Path(root) / name


def label(example: Any) -> Any:
    return example[1]


MLP = Task(networks.mlp_loss, outputs=networks.mlp_logits, features=networks.mlp_features, label=label)
NLL = Measurement("nll", networks.mlp_loss)


def mlp_initial(widths: tuple[int, ...], seed: int) -> list[dict[str, Any]]:
    """Uniform in +-1 / sqrt(inputs), weights and biases, as PyTorch's linear layers start."""
    keys = jax.random.split(jax.random.key(seed), 2 * len(widths))
    draw = lambda key, shape, i: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / np.sqrt(i)  # noqa: E731
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    return [{"w": draw(keys[2 * k], (i, o), i), "b": draw(keys[2 * k + 1], (o,), i)} for k, (i, o) in enumerate(pairs)]


def fashion(quick: bool, rows: int = 0) -> Judged:
    """784-512-512-10 on the first 1,000 images of Fashion-MNIST (or so many `rows`), the next 100 its queries."""
    queries, rows = 20 if quick else 100, rows or (300 if quick else 1000)
    with np.load(folder("vis_fashion_mnist") / "fashion_mnist_22k_10k.npz") as held:
        x, y = (held[name][: rows + queries] for name in ("x_train", "y_train"))
    x, y = ((x.reshape(len(x), -1) / 255 - 0.286) / 0.353).astype(np.float32), y.astype(np.int32)
    widths, epochs = ((784, 64, 64, 10), 5) if quick else ((784, 512, 512, 10), 20)
    recipe = Recipe(epochs, 64, 0.05, "sgd", weight_decay=1e-3, final=0.0)
    return Judged(
        MLP, lambda seed: mlp_initial(widths, seed), (x[:rows], y[:rows]),
        (x[rows:], y[rows:]), NLL, recipe, 10 if quick else 50,
    )  # fmt: skip


def gpt_total(params: Any, tokens: Any) -> Any:
    """Nats of one sequence."""
    return networks.gpt_loss(params, tokens) * (tokens.shape[0] - 1)


def gpt_features(params: Any, tokens: Any) -> Any:
    """The mean logits' direction: what the sequence makes likely."""
    return networks.gpt_logits(params, tokens).mean(0)


def following(tokens: Any) -> Any:
    return tokens[1:]


GPT = Task(gpt_total, outputs=networks.gpt_logits, features=gpt_features, label=following)


def gpt(quick: bool) -> Judged:
    """A decoder of 2 layers, d = 64, on chunks of 64 bytes of tinyshakespeare; the chunks that follow are queries."""
    text = (folder("lm_tinyshakespeare") / "input.txt").read_bytes()
    rows, queries, t = (64, 8, 16) if quick else (512, 40, 64)
    cut = np.frombuffer(text, np.uint8)[: (rows + queries) * (t + 1)].reshape(-1, t + 1).astype(np.int32)
    cut = np.minimum(cut, 127)
    texts = [bytes(row.astype(np.uint8)).decode("ascii") for row in cut]
    make = lambda seed: networks.gpt_params(jax.random.key(seed), layers=2, d=64, vocab=128, t=t)  # noqa: E731
    recipe, start = Recipe(2 if quick else 12, 64, 1e-3, "adamw", weight_decay=1e-2), make(0)
    return Judged(  # one start for all: with their own, two seeds agree at .2 to .3, and there is little to predict
        GPT, lambda _: start, cut[:rows], cut[rows:], Measurement("nll", gpt_total), recipe, 6 if quick else 40,
        (texts[:rows], texts[rows:]),
    )  # fmt: skip


SETS = {"fashion": fashion, "gpt": gpt}
