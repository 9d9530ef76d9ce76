"""PyTorch and its per-example gradient libraries on given weights and rows; `peers.py` runs it where they live.

Prints one JSON object: for each peer its examples a second, its version and what can be compared, or its error.
Run: python peers_torch.py FOLDER gpt|mlp, where FOLDER holds `params.npz` and `batch.npz`.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # the peers' interpreter has it, the project's does not
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

RANK = 16  # of a matrix's rows and of its columns, as in factor_cost
TRAK_WIDTH = 2048  # its default
HEADS = 4


class Block(nn.Module):
    """One layer of `networks.gpt_loss`; the bare scale of its norm is a LayerNorm without a bias."""

    def __init__(self, width: int):
        super().__init__()
        self.ln1, self.ln2 = (nn.LayerNorm(width, eps=1e-5, bias=False) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, h: Any) -> Any:
        n = self.ln1(h)
        q, k, v = (part(n).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.o(mixed.transpose(1, 2).flatten(-2))
        return h + self.down(functional.gelu(self.up(self.ln2(h)), approximate="tanh"))


class Body(nn.Module):
    """All but the head, which is what Bergson hooks."""

    def __init__(self, vocab: int, length: int, width: int, layers: int):
        super().__init__()
        self.token = nn.Embedding(vocab, width)
        self.position = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.ln = nn.LayerNorm(width, eps=1e-5, bias=False)

    def forward(self, tokens: Any) -> Any:
        h = self.token(tokens) + self.position[: tokens.shape[-1]]
        for block in self.blocks:
            h = block(h)
        return self.ln(h)


class Gpt(nn.Module):
    def __init__(self, params: dict[str, np.ndarray]):
        super().__init__()
        (vocab, width), length = params["token"].shape, len(params["position"])
        self.body = Body(vocab, length, width, sum(path.endswith(".q") for path in params))
        state = {}
        for path, array in params.items():
            linear = path.startswith("blocks.") and array.ndim == 2
            state[path if path == "position" else f"{path}.weight"] = tensor(array.T if linear else array)
        self.body.load_state_dict(state)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.body.token.weight

    def forward(self, tokens: Any) -> Any:
        return self.head(self.body(tokens))


class Mlp(nn.Module):
    def __init__(self, params: dict[str, np.ndarray]):
        super().__init__()
        shapes = [params[f"{k}.w"].shape for k in range(len(params) // 2)]
        self.layers = nn.ModuleList(nn.Linear(*shape) for shape in shapes)
        names = {path: path.replace(".w", ".weight").replace(".b", ".bias") for path in params}
        self.layers.load_state_dict({names[path]: tensor(array.T) for path, array in params.items()})

    def forward(self, images: Any) -> Any:
        h = images.reshape(-1, self.layers[0].in_features)  # dattri hands over a lone row, and rows of [1, features]
        for layer in self.layers[:-1]:
            h = functional.relu(layer(h))
        return self.layers[-1](h)


def tensor(array: np.ndarray) -> Any:
    """Rows that stand in memory one after the other, whole numbers in the width that torch indexes by."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else np.int64))


def losses(network: Callable[[Any], Any], inputs: Any, targets: Any) -> Any:
    """Mean nats per target of each example, `[B]`."""
    each = functional.cross_entropy(network(inputs).flatten(0, -2), targets.flatten(), reduction="none")
    return each.reshape(len(targets), -1).mean(1)


def timed(call: Callable[[], Any], repeats: int = 15) -> tuple[Any, float]:
    """The result, and the median seconds of what follows a warm-up."""
    result, taken = call(), []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        taken.append(time.perf_counter() - start)
    return result, statistics.median(taken)


def rate(examples: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {"examples_per_s": round(examples / seconds, 1), **more}


def plain(network: Any, batch: Any) -> dict[str, Any]:
    """One forward and backward pass of the summed loss: training, with no gradient per example."""

    def call() -> Any:
        network.zero_grad()
        each = losses(network, *batch)
        each.sum().backward()
        return each

    each, seconds = timed(call)
    return rate(len(each), seconds, losses=each.tolist())


def gradients(network: Any, batch: Any, chunk: int) -> Iterator[dict[str, Any]]:
    """`vmap(grad)`: the dense gradients of `chunk` examples at a time, as all of them would not fit in memory."""
    params = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(params: Any, inputs: Any, target: Any) -> Any:
        bound = functools.partial(torch.func.functional_call, network, params)
        return losses(lambda x: bound((x,)), inputs[None], target[None]).squeeze(0)

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    for rows in zip(*(part.split(chunk) for part in batch), strict=True):
        yield each(params, *rows)


def vmap_grad(network: Any, batch: Any, chunk: int) -> dict[str, Any]:
    """`torch.func` per-example gradients, and their norms over all parameters."""

    def norms(found: dict[str, Any]) -> Any:
        parts = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in found.values()]
        return torch.linalg.vector_norm(torch.stack(parts), dim=0)

    each, seconds = timed(lambda: torch.cat([norms(found) for found in gradients(network, batch, chunk)]), 5)
    return rate(len(each), seconds, norms=each.tolist())


def check_squares(sketched: float, network: Any, batch: Any, covers: Callable[[str], bool]) -> None:
    """Sketches keep the squared norm on average: off by more than half, a peer did not see the gradients we meant."""
    chunks = gradients(network, batch, 32)
    exact = sum(float(g.square().sum()) for found in chunks for name, g in found.items() if covers(name))
    if not abs(sketched / exact - 1) < 0.5:
        raise ValueError(f"squared sketches sum to {sketched:.4g}, squared gradients to {exact:.4g}")


def bergson(network: Gpt, batch: Any) -> dict[str, Any]:
    """Bergson's in-memory collector over forward and backward, as `bergson build` runs it: all weights frozen but the
    input embedding, about 2048 tokens a pass, `RANK` x `RANK` numbers of each matrix in the blocks. It leaves out the
    embedding with its tied head, positions and norms."""
    package = importlib.import_module("bergson")
    network.requires_grad_(False)
    network.body.token.requires_grad_(True)
    network.body.device = torch.device("cpu")  # it asks a model for that
    count, length = batch[0].shape
    collector = package.InMemoryCollector(
        model=network.body,
        data=range(count),  # of the data it reads the length alone
        cfg=package.IndexConfig(run_path="unwritten", projection_dim=RANK, loss_reduction="mean"),
        processor=package.GradientProcessor(projection_dim=RANK),
    )
    passes = torch.arange(count).split(max(1, 2048 // length))

    def call() -> None:
        for rows in passes:
            with collector.with_batch(None):
                each = losses(network, batch[0][rows], batch[1][rows])
                each.sum().backward()
                network.zero_grad()
            collector.process_batch(rows.tolist(), losses=each)

    _, seconds = timed(call)
    collector.teardown()
    sketched = sum(float(part.square().sum()) for part in collector.gradients.values())
    hooked = {f"body.{name}.weight" for name in collector.target_info}
    check_squares(sketched, network, batch, hooked.__contains__)
    return rate(count, seconds)


def dattri(network: Mlp, batch: Any, folder: Path) -> dict[str, Any]:
    """dattri's LoGra `cache`: `RANK` x `RANK` numbers of each layer with its bias, kept in memory. `Identity` leaves
    out the Fisher matrix that follows by default, as a sketch alone is what it stands against."""
    algorithm = importlib.import_module("dattri.algorithm.logra")
    data = importlib.import_module("torch.utils.data")

    def loss(model: Any, rows: Any, device: str) -> Any:  # noqa: ARG001  # dattri passes it
        return functional.cross_entropy(model(rows[0]), rows[1])

    task = importlib.import_module("dattri.task").AttributionTask(loss, network, network.state_dict())
    attributor = algorithm.LoGraAttributor(
        task, hessian="Identity", proj_dim=RANK**2, offload="none", cache_dir=str(folder)
    )
    rows = data.TensorDataset(batch[0][:, None], batch[1])  # it tries a lone row first, which must be a batch too
    loader = data.DataLoader(rows, batch_size=256)  # the fastest of 64, 256 and 1024
    start = time.perf_counter()
    attributor.cache(loader)
    first = time.perf_counter() - start  # it compiles
    _, seconds = timed(lambda: attributor.cache(loader))
    sketched = sum(float(part.square().sum()) for part in attributor.offload_manager.cached_gradients.values())
    check_squares(sketched, network, batch, lambda _: True)
    return rate(len(rows), seconds, first_call_s=round(first, 2))


def trak(network: Mlp, batch: Any, folder: Path) -> dict[str, Any]:
    """TRAK's `featurize` with its projector for CPUs: the whole gradient of each margin to `TRAK_WIDTH` numbers, in
    single precision as the others. It draws its projection anew at every call, so calls of 32 examples would be a
    quarter as fast as these of 256."""
    package = importlib.import_module("trak")
    sizes = [32, 256, 256, 256]  # the warm-up may be small
    traker = package.TRAKer(
        model=network,
        task="image_classification",
        train_set_size=sum(sizes),
        save_dir=str(folder / "trak"),
        load_from_save_dir=False,
        device="cpu",
        proj_dim=TRAK_WIDTH,
        use_half_precision=False,
    )
    traker.load_checkpoint(network.state_dict(), model_id=0)
    left = iter(sizes)

    def call() -> None:
        size = next(left)
        traker.featurize([part[:size] for part in batch], num_samples=size)

    _, seconds = timed(call, len(sizes) - 1)
    return rate(sizes[-1], seconds)


def jobs(folder: Path, name: str) -> dict[str, tuple[str, Callable[[], dict[str, Any]]]]:
    """{peer: (its distribution, what measures it)}, each with a network of its own, as some change theirs."""
    with np.load(folder / "params.npz") as archive:
        params = dict(archive)
    with np.load(folder / "batch.npz") as archive:
        parts = {path: tensor(array) for path, array in archive.items()}
    if name == "gpt":
        tokens = parts["batch"]
        batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        return {
            "torch_plain": ("torch", lambda: plain(Gpt(params), batch)),
            "torch_vmap_grad": ("torch", lambda: vmap_grad(Gpt(params), batch, 32)),
            "bergson": ("bergson", lambda: bergson(Gpt(params), batch)),
        }
    batch = parts["batch.0"], parts["batch.1"]
    return {
        "torch_plain": ("torch", lambda: plain(Mlp(params), batch)),
        "torch_vmap_grad": ("torch", lambda: vmap_grad(Mlp(params), batch, 64)),
        "dattri_logra": ("dattri", lambda: dattri(Mlp(params), batch, folder)),
        "trak": ("traker", lambda: trak(Mlp(params), batch, folder)),
    }


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    torch.manual_seed(0)
    result: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):  # peers print as they please
        for peer, (distribution, measure) in jobs(folder, name).items():
            try:
                result[peer] = measure() | {"version": importlib.metadata.version(distribution)}
            except Exception as error:  # one peer's failure is its own
                traceback.print_exc()
                result[peer] = {"error": traceback.format_exception_only(error)[-1].strip().splitlines()[-1]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
