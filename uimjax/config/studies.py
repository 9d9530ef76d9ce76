"""Configs of what is understood: a sweep of small trainings and the law fitted to it."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

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

    @field_validator("train")
    @classmethod
    def _without_data(cls, train: str) -> str:
        if train == "decoder":
            raise ValueError(
                "a decoder learns from tokens, which a config cannot hold. From Python: uj.scaling.sweep(folder, axes, "
                "train='decoder', data=uj.scaling.Tokens(tokens, test_tokens)); or write a trainer of your own, "
                "pkg.module:fn, that reads its text"
            )
        return train


_PAIRS = 5  # of amount and noise: the law has four parameters


class NoiseConfig(Strict):
    """A study of label noise: what finds wrong labels, what noise does to representations, what it costs in data."""

    kind: Literal["noise"] = "noise"
    data: str = Field("digits", description="digits, or an .npz of image, given, true, test_image, test_label")
    rate: float = Field(0.1, gt=0, lt=1, description="share of the digits' labels that is flipped")
    model: Literal["mlp", "cnn"] = "mlp"
    seeds: int = Field(5, ge=2)
    epochs: int = Field(40, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    rates: tuple[float, ...] = Field((0.0, 0.1, 0.2, 0.4), description="of noise, for the representations")
    widths: tuple[int, ...] = Field((32,), description="of the sweep, as the following; one: the law has no size")
    amounts: tuple[int, ...] = (150, 300, 600, 1000, 1500)
    corruptions: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4)
    law_seeds: int = Field(3, ge=1)
    law_epochs: int = Field(40, ge=1)
    law_learning_rate: float = Field(1e-3, gt=0)
    fitted: Literal["loss", "error_rate"] = Field("loss", description="the held-out value that the law is fitted to")
    tensorboard: bool = Field(False, description="curves, histograms, texts, the sweep's settings; JSON lines too")
    out: str = "runs/noise"

    @field_validator("rate")
    @classmethod
    def _of_digits(cls, rate: float, info: ValidationInfo) -> float:
        if info.data.get("data", "digits") != "digits":
            raise ValueError(f"{info.data['data']} has its given labels; only the digits' are flipped. Leave rate out")
        return rate

    @field_validator("rates", "corruptions")
    @classmethod
    def _shares(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= value < 1 for value in values):
            raise ValueError("shares of the labels, from 0 to below 1, were wanted")
        return values

    @field_validator("rates", "amounts", "corruptions")
    @classmethod
    def _several(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) < 2 or len({f"{value:g}" for value in values}) < len(values):
            raise ValueError("two or more were wanted, none of them twice")
        return values

    @field_validator("widths")
    @classmethod
    def _one(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if len(values) != 1:
            raise ValueError("one width was wanted: the law is of data and noise and would take size for scatter")
        return values

    @field_validator("widths", "amounts")
    @classmethod
    def _counts(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if min(values) < 1:
            raise ValueError("whole numbers of 1 or more were wanted")
        return values

    @field_validator("corruptions")
    @classmethod
    def _enough(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if len(values) * len(info.data.get("amounts", range(_PAIRS))) < _PAIRS:
            raise ValueError(f"the law needs {_PAIRS} pairs of amounts and corruptions or more; add values to either")
        return values
