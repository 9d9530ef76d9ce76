"""Configs of what is understood: a sweep of small trainings and the law fitted to it."""

from typing import Any, Literal

from pydantic import Field

from uimjax.config.base import Strict


class SweepConfig(Strict):
    """Many small trainings over a grid, as one table, and a scaling law fitted to it."""

    kind: Literal["sweep"] = "sweep"
    train: str = Field("mlp", description="mlp (the digits), or your own pkg.module:fn(settings) -> {name: number}")
    axes: dict[str, Any] = Field(
        {"width": [32], "data": [100, 200, 400, 800], "epochs": [20], "corruption": [0.0, 0.2, 0.4], "seed": [0, 1]},
        description="name: values; all combinations are run",
    )
    at_once: int = Field(32, ge=1, description="runs of equal shape in one program")
    diverged_at: float = Field(3.0, gt=1, description="a training loss above so many times that of a guess: given up")
    form: str | None = Field("corrupted", description="the law fitted to the table; null: none")
    objective: str = "huber"
    loss: str = Field("loss", description="the fitted column, any measurement")
    columns: dict[str, str] = Field({}, description="input of the form: column")
    starts: int = Field(512, ge=1)
    draws: int = Field(1000, ge=2, description="resamples for the intervals")
    tensorboard: bool = Field(False, description="settings and results of each run as well")
    out: str = "runs/sweep"
