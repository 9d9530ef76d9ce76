"""The config of tuning on features or logits, the model unopened."""

from typing import Literal

from pydantic import Field

from uimjax.config.base import Strict


class TuneConfig(Strict):
    """A mitigation of what a model gives out, its features or logits alone, held against a linear head and an MLP."""

    kind: Literal["tune"] = "tune"
    train: str = Field(
        description="features or logits with labels: .npz, .parquet, .jsonl, .csv (`uimjax help mitigate`)"
    )
    method: str = Field(
        "nmtune", description="linear, mlp, nmtune, nmtune_paper, skd, adjusted, group_dro, jtt, dfr, relabel, d3m, "
        "erase, temperature, thresholds, cmaes"
    )  # fmt: skip
    held_out: str = Field("", description="rows for dfr, d3m, temperature, thresholds, cmaes; none: a fifth")
    test: tuple[str, ...] = Field((), description="rows that are measured, as many files as you like; none: a fifth")
    label: str = Field("", description="column of the labels; none: label or labels")
    group: str = Field("", description="column of the groups; none: group or groups, where there is one")
    scale: bool = Field(False, description="features to mean 0 and standard deviation 1 of the training rows first")
    seeds: int = Field(3, ge=1, description="repetitions; below 3 there is no verdict")
    seed: int = Field(0, ge=0)
    draws: int = Field(500, ge=100, description="resamples of the test rows for the intervals")
    epochs: int = Field(30, ge=1, description="of a head, as all down to ratio; NMTune's")
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    ratio: float = Field(4.0, gt=0, description="of the MLP: hidden units by features")
    tau: float = Field(1.0, gt=0, description="adjusted: strength")
    eta: float = Field(0.01, gt=0, description="group_dro: step of the groups' weights")
    first: int = Field(5, ge=1, description="jtt: epochs of the first head")
    upweight: float = Field(20.0, ge=1, description="jtt: how often rows count that it gets wrong")
    goal: Literal["parity", "opportunity"] = Field(
        "parity", description="thresholds: equal shares of all, or of class 1"
    )
    queries: int = Field(2000, ge=20, description="cmaes: candidates asked about")
