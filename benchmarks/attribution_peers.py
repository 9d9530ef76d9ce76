"""Other libraries' attribution end to end on given weights and rows; `attribution_speed.py` runs it where they live.

Prints one JSON object: the seconds of each step, the largest resident set, the version, and the losses of the first
training rows. The scores `[N, Q]` are left in the folder, as PEER.npy.
Run: python attribution_peers.py FOLDER w1|w2 PEER, where FOLDER holds `params.npz`, `data.npz`, `queries.npz` and
`damping.json` (the number to add to every eigenvalue).
"""

import contextlib
import functools
import importlib
import importlib.metadata
import json
import logging
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # the peers' interpreter has it, the project's does not
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]
from torch.utils import data as torch_data  # pyright: ignore[reportMissingImports]

from benchmarks.peers_torch import TRAK_WIDTH, Gpt, Mlp, losses, tensor

COMPARED = 64  # training rows whose losses are given
# kronfluence's batches, the fastest of those tried: covariances, eigenvalues, queries, training rows
BATCHES = {"w1": (1000, 64, 500, 128), "w2": (64, 64, 64, 64)}
LOGRA_WIDTH = 256  # 16 x 16 numbers a layer, as uimjax's preset


class Given(NamedTuple):
    """What the folder holds; `rows` and `queries` are (inputs, targets)."""

    name: str
    folder: Path
    network: Any
    rows: tuple[Any, Any]
    queries: tuple[Any, Any]
    damping: float


class Clock:
    """Seconds by step."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, step: str):
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


def given(folder: Path, name: str) -> Given:
    with np.load(folder / "params.npz") as archive:
        params = dict(archive)
    network = (Mlp if name == "w1" else Gpt)(params)
    parts = []
    for part in ("data", "queries"):
        with np.load(folder / f"{part}.npz") as archive:
            arrays = [tensor(archive[key]) for key in sorted(archive.files)]
        tokens = arrays[0]
        parts.append(tuple(arrays) if name == "w1" else (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))
    data, queries = parts
    return Given(name, folder, network, data, queries, json.loads((folder / "damping.json").read_text()))


# ---------------------------------------------------------------- each peer: (given, clock) -> scores [N, Q]


def kronfluence(its: Given, clock: Clock, rank: int | None = None) -> Any:
    """EK-FAC of the empirical Fisher matrix, full rank unless told; of a `Gpt` the matrices in its blocks."""
    analyzers, arguments, tasks, prepare = (
        importlib.import_module(f"kronfluence.{part}") for part in ("analyzer", "arguments", "task", "analyzer")
    )
    linear = [name for name, module in its.network.named_modules() if isinstance(module, nn.Linear)]
    tracked = linear if its.name == "w1" else [name for name in linear if "blocks" in name]

    class Nats(tasks.Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:  # noqa: ARG002
            return losses(model, *batch).sum()

        def compute_measurement(self, batch: Any, model: Any) -> Any:
            return losses(model, *batch).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return tracked

    task = Nats()
    model = prepare.prepare_model(its.network, task)
    analyzer = analyzers.Analyzer("run", model, task, cpu=True, disable_tqdm=True, output_dir=str(its.folder))
    rows, queries = (torch_data.TensorDataset(*parts) for parts in (its.rows, its.queries))
    factors = arguments.FactorArguments(strategy="ekfac", use_empirical_fisher=True)
    scores = arguments.ScoreArguments(damping_factor=its.damping, query_gradient_low_rank=rank)
    covariance, eigenvalue, query, train = BATCHES[its.name]
    with clock("covariances"):
        analyzer.fit_covariance_matrices("f", rows, per_device_batch_size=covariance, factor_args=factors)
    with clock("eigendecomposition"):
        analyzer.perform_eigendecomposition("f", factor_args=factors)
    with clock("eigenvalues"):
        analyzer.fit_lambda_matrices("f", rows, per_device_batch_size=eigenvalue, factor_args=factors)
    with clock("scores"):
        analyzer.compute_pairwise_scores(
            "s",
            "f",
            queries,
            rows,
            per_device_query_batch_size=min(query, len(queries)),
            per_device_train_batch_size=train,
            score_args=scores,
        )
        found = analyzer.load_pairwise_scores("s")["all_modules"]
    return found.T


def _loaders(its: Given, batch: int, rows_shape: bool = False) -> tuple[Any, Any]:
    """Of dattri; it tries a lone row first, so a row stands in a batch of its own where asked."""
    made = []
    for inputs, targets in (its.rows, its.queries):
        inputs = inputs[:, None] if rows_shape else inputs
        made.append(torch_data.DataLoader(torch_data.TensorDataset(inputs, targets), batch_size=batch))
    return made[0], made[1]


def _mean(params: Any, pair: Any, network: Any) -> Any:
    """The loss as dattri wants it, a function of parameters by name: of a row, or the mean of a batch (EK-FAC's
    covariances)."""
    inputs, targets = pair[0].reshape(-1, pair[0].shape[-1]), pair[1].reshape(-1)
    return functional.cross_entropy(torch.func.functional_call(network, params, (inputs,)), targets)


def dattri_ekfac(its: Given, clock: Clock) -> Any:
    task = importlib.import_module("dattri.task").AttributionTask
    attributor = importlib.import_module("dattri.algorithm.influence_function").IFAttributorEKFAC(
        task(functools.partial(_mean, network=its.network), its.network, its.network.state_dict()),
        damping=its.damping,
    )
    rows, queries = _loaders(its, 64)
    with clock("cache"):
        attributor.cache(rows)
    with clock("scores"):
        return attributor.attribute(rows, queries)


def dattri_tracin(its: Given, clock: Clock) -> Any:
    task = importlib.import_module("dattri.task").AttributionTask
    module = importlib.import_module("dattri.algorithm.tracin")
    attributor = module.TracInAttributor(
        task(functools.partial(_mean, network=its.network), its.network, its.network.state_dict()),
        weight_list=torch.ones(1),
        normalized_grad=False,
    )
    attributor.projector_kwargs = None  # whole gradients: given None, it would take its default projection
    rows, queries = _loaders(its, 100)
    with clock("scores"):
        return attributor.attribute(rows, queries)


def dattri_logra(its: Given, clock: Clock) -> Any:
    def loss(model: Any, rows: Any, device: str) -> Any:  # noqa: ARG001  # dattri passes it
        return functional.cross_entropy(model(rows[0]), rows[1])

    task = importlib.import_module("dattri.task").AttributionTask(loss, its.network, its.network.state_dict())
    attributor = importlib.import_module("dattri.algorithm.logra").LoGraAttributor(
        task, proj_dim=LOGRA_WIDTH, offload="none", cache_dir=str(its.folder)
    )
    rows, queries = _loaders(its, 256, rows_shape=True)  # the fastest of 64, 256 and 1024
    with clock("cache"):
        attributor.cache(rows)
        attributor.compute_preconditioners()
        attributor.compute_ifvp()
    with clock("scores"):
        return attributor.attribute(rows, queries)


def captum_tracin(its: Given, clock: Clock) -> Any:
    """The last layer's gradients alone, which is what its fast form is for."""
    path = its.folder / "checkpoint.pt"
    torch.save(its.network.state_dict(), path)

    def load(model: Any, file: str) -> float:
        model.load_state_dict(torch.load(file))
        return 1.0

    package = importlib.import_module("captum.influence")
    fast = package.TracInCPFast(
        its.network,
        its.network.layers[-1],
        torch_data.TensorDataset(*its.rows),
        [str(path)],
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=1000,
    )
    with clock("scores"):
        return fast.influence(its.queries).T


def trak(its: Given, clock: Clock) -> Any:
    package = importlib.import_module("trak")
    (rows, queries), batch = (its.rows, its.queries), 256
    with clock("features"):
        traker = package.TRAKer(
            model=its.network,
            task="image_classification",
            train_set_size=len(rows[0]),
            save_dir=str(its.folder / "trak"),
            device="cpu",
            proj_dim=TRAK_WIDTH,
            use_half_precision=False,
        )
        traker.load_checkpoint(its.network.state_dict(), model_id=0)
        for part in zip(*(x.split(batch) for x in rows), strict=True):
            traker.featurize(part, num_samples=len(part[0]))
        traker.finalize_features()
    with clock("scores"):
        traker.start_scoring_checkpoint("run", its.network.state_dict(), 0, num_targets=len(queries[0]))
        for part in zip(*(x.split(batch) for x in queries), strict=True):
            traker.score(part, num_samples=len(part[0]))
        return np.asarray(traker.finalize_scores("run"))


PEERS: dict[str, tuple[str, Callable[[Given, Clock], Any]]] = {
    "kronfluence": ("kronfluence", kronfluence),
    "kronfluence_rank8": ("kronfluence", functools.partial(kronfluence, rank=8)),
    "dattri_ekfac": ("dattri", dattri_ekfac),
    "dattri_tracin": ("dattri", dattri_tracin),
    "dattri_logra": ("dattri", dattri_logra),
    "captum_tracin": ("captum", captum_tracin),
    "trak": ("traker", trak),
}


def most_resident() -> float:
    """Of this process alone, MiB: `ru_maxrss` counts what its parent held when it started."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(its: Given, peer: str) -> dict[str, Any]:
    distribution, call = PEERS[peer]
    with torch.no_grad():
        each = losses(its.network, *(part[:COMPARED] for part in its.rows)).tolist()
    clock, start, used = Clock(), time.perf_counter(), time.process_time()
    found = call(its, clock)
    taken, processor = time.perf_counter() - start, time.process_time() - used
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else found
    np.save(its.folder / f"{peer}.npy", np.asarray(found, np.float32))
    return {
        "seconds": round(taken, 3),
        "processor_s": round(processor, 3),
        "steps": {step: round(seconds, 3) for step, seconds in clock.seconds.items()},
        "peak_mib": round(most_resident(), 1),
        "version": importlib.metadata.version(distribution),
        "losses": each,
    }


def main() -> None:
    folder, name, peer = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):  # peers print as they please
        try:
            result = measured(given(folder, name), peer)
        except Exception as error:  # one peer's failure is its own
            traceback.print_exc()
            result = {"error": traceback.format_exception_only(error)[-1].strip().splitlines()[-1]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
