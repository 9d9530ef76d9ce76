"""The two workloads that attribution is timed on: real data, briefly trained networks, kept in a folder that a fresh
process of ours and one of a peer's both read.

W1: an MLP 784-512-512-10 with biases (669,706 parameters), the first 10,000 training rows of MNIST and the first 500
test rows as queries. W2: a decoder of 4 layers, d = 128, 4 heads, T = 128, 256 byte tokens; 1,000 training sequences of
tiny Shakespeare and 64 that come after them as queries. A loss of W2 is the mean over a sequence's tokens, on all
sides. `PEER_COVERS`: the parameters that kronfluence covers, its `nn.Linear` modules, tied ones left out.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import networks, peers
from uimjax.interpret import bank
from uimjax.steps import Recipe
from uimjax.task import Measurement, Task

FILES = {"w1": "vis_mnist/mnist.npz", "w2": "lm_tinyshakespeare/input.txt"}
SIZES = {"w1": (10_000, 500), "w2": (1_000, 64)}
QUICK = {"w1": (1_000, 50), "w2": (100, 16)}
LENGTH = 128
RECIPES = {
    "w1": Recipe(epochs=3, batch_size=64, weight_decay=0.0),
    "w2": Recipe(epochs=3, batch_size=16, learning_rate=2e-3, weight_decay=0.0, warmup=0.1),
}
LOSSES: dict[str, Callable[[Any, Any], Any]] = {"w1": networks.mlp_loss, "w2": networks.gpt_loss}
MEASUREMENT = {name: Measurement("loss", loss) for name, loss in LOSSES.items()}
EVERYTHING: dict[str, Any] = {}
PEER_COVERS: dict[str, dict[str, Any]] = {"w1": {}, "w2": {"include": ("blocks*",), "exclude": ("*ln*",)}}


class Workload(NamedTuple):
    params: Any
    data: Any
    queries: Any


def network(name: str) -> Any:
    """Untrained parameters."""
    key = jax.random.key(0)
    return networks.mlp_params(key) if name == "w1" else networks.gpt_params(key, t=LENGTH)


def label(example: Any) -> Any:
    return example[1]


logits = networks.mlp_logits  # of W1


def task(name: str, covers: dict[str, Any] = EVERYTHING) -> Task:
    more: dict[str, Any] = {"outputs": logits, "label": label} if name == "w1" else {}
    return Task(LOSSES[name], **more, **covers)


def folder() -> Path:
    """Of the reference data; the benchmark ends where it is not set."""
    found = Path(os.environ.get("UIMJAX_DATA") or "UIMJAX_DATA")
    for file in FILES.values():
        if not (found / file).is_file():
            sys.exit(f"{found / file} is not there: set UIMJAX_DATA to the folder of the reference data")
    return found


def rows(name: str, count: int, asked: int) -> tuple[Any, Any]:
    """(training rows, queries)."""
    path = folder() / FILES[name]
    if name == "w1":
        with np.load(path) as held:
            parts = [held["x_train"][:count], held["y_train"][:count], held["x_test"][:asked], held["y_test"][:asked]]
        x, y, x_test, y_test = parts
        x, x_test = (((part.reshape(len(part), -1) / 255 - 0.1307) / 0.3081).astype(np.float32) for part in (x, x_test))
        return (x, y.astype(np.int32)), (x_test, y_test.astype(np.int32))
    text = np.frombuffer(path.read_bytes(), np.uint8)
    size, first = LENGTH + 1, SIZES[name][0]
    cut = text[: (first + asked) * size].reshape(-1, size).astype(np.int32)
    return cut[:count], cut[first:]


def make(name: str, quick: bool) -> tuple[Workload, np.ndarray]:
    """(the workload with trained parameters, the losses of its training rows)."""
    data, queries = rows(name, *(QUICK if quick else SIZES)[name])
    key, params = jax.random.key(0), network(name)
    trained = bank.trainer(task(name), RECIPES[name], "masked")
    count = len(jax.tree.leaves(data)[0])
    params = trained(params, jax.tree.map(jnp.asarray, data), jnp.ones(count), key)
    losses = jax.jit(jax.vmap(lambda row: LOSSES[name](params, row)))
    return Workload(params, data, queries), np.asarray(losses(data))


def write(made: Workload, where: Path) -> None:
    for name, part in made._asdict().items():
        held = part if isinstance(part, list | dict | tuple) else {"": part}
        np.savez(where / f"{name}.npz", **peers.arrays(held))


def read(name: str, where: Path) -> Workload:
    """What `write` wrote, parameters in the shape that the network takes."""
    like = jax.eval_shape(functools.partial(network, name))  # drawing one would be time of a cold start
    held = jax.tree_util.tree_leaves_with_path(like)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in held]
    with np.load(where / "params.npz") as found:
        params = jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(found[path]) for path in paths])
    parts = []
    for part in ("data", "queries"):
        with np.load(where / f"{part}.npz") as found:
            leaves = [found[key] for key in found.files]
        parts.append(tuple(leaves) if len(leaves) > 1 else leaves[0])
    return Workload(params, *parts)
