"""The config of a mitigation of the model of a trace."""

from typing import Literal

from pydantic import Field

from uimjax.config.base import Strict


class CurateChoice(Strict):
    """Which rows, or parts of rows, the model is tuned on."""

    target: tuple[str, ...] = Field(
        (), description="dsir, less: documents like those that the model should do well on; none: retain"
    )
    keep: float | None = Field(
        None, gt=0, lt=1, description="dsir, less: share of the rows that stays; none: 0.5, 0.05"
    )
    near: float | None = Field(
        None, gt=0, lt=1,
        description="dedup: share of runs of five words, semdedup: cosine, from which on rows are alike; none: "
        "0.8, 0.95",
    )  # fmt: skip
    warmup: float = Field(0.05, gt=0, le=1, description="less: share of the rows of the warm-up that it reads")
    rounds: int = Field(8, ge=1, description="doremi: rounds of tuning after each of which sources are weighed")
    eta: float = Field(1.0, gt=0, description="doremi: how fast the weights move")
    isolate: float = Field(0.01, gt=0, lt=1, description="abl: share of the rows that are isolated and forgotten")
    early: int = Field(5, ge=1, description="abl: epochs from the start, by which a trigger is learned")
    rate: float = Field(1e-3, gt=0, description="abl: their learning rate")
    level: float | None = Field(
        None, gt=0, description="abl: nats a row that the loss is held at; none: half of what it is at the start"
    )
    quantile: float = Field(0.99, gt=0, lt=1, description="if_guide: tokens that score above that are culprits")
    window: int = Field(1, ge=0, description="if_guide: and so many on either side")
    most: float = Field(0.02, gt=0, lt=1, description="if_guide: of all tokens at the most")
    penalty: float = Field(1.0, ge=0, description="if_guide: weight of log p of the culprits; 0: they do not count")


class SyntheticChoice(Strict):
    """Rows that nobody wrote."""

    templates: str = Field("", description="balanced: a file of lines like `the {nurse|pilot} said {he|she} is late`")
    ratio: float = Field(0.5, ge=0, le=1, description="balanced, self_distill: share of what is kept that is synthetic")
    sweep: tuple[float, ...] = Field((0.0, 0.25, 0.5, 0.75, 1.0), description="other shares, measured beside it")
    rows: int = Field(64, ge=1, description="self_distill: rows that the model writes itself")
    temperature: float = Field(1.0, gt=0, description="self_distill: that it writes at")
    prompt: float = Field(0.25, gt=0, lt=1, description="self_distill: share of a row that it goes on from")
    loss: Literal["kl", "nll"] = Field(
        "kl", description="self_distill: divergence to the model before on what is kept, or its likelihood"
    )


class MendConfig(Strict):
    """A mitigation of the model of a trace, held against controls; most act on the edit in the trace's folder."""

    kind: Literal["mend"] = "mend"
    run: str = Field(description="folder of a finished `uimjax trace --model ...` of a language model")
    edit: str = Field(
        "", description="the documents to act on (`uimjax edit RUN`); none: edit.json in the run's folder"
    )
    method: str = Field(
        "npo", description="drop, npo, rmu, cda, dsir, if_guide ... (`uimjax help mitigate`: all of them)"
    )
    swap: tuple[str, ...] = Field((), description="cda, dpo: words of two groups that change places, he=she uncle=aunt")
    instead: str = Field("", description="dpo: a text that is to come in the place of every row of the edit")
    retain: tuple[str, ...] = Field(
        (), description="held-out clean documents that the cost is measured on; none: the trace's"
    )
    curate: CurateChoice = CurateChoice()  # pyright: ignore[reportCallIssue]  # every field has a default
    synthetic: SyntheticChoice = SyntheticChoice()  # pyright: ignore[reportCallIssue]  # as above
    seeds: int = Field(3, ge=1, description="repetitions of each arm; below 3 nothing is called fixed")
    controls: bool = Field(True, description="as many random rows, and as many by BM25, go the same way")
    steps: int = Field(60, ge=1, description="of forgetting and retaining together")
    heal_steps: int = Field(60, ge=0, description="of the retain loss alone, after")
    learning_rate: float = Field(1e-4, gt=0)
    gamma: float | None = Field(None, gt=0, description="weight of the forget loss; none: the reference's")
    batch_size: int = Field(8, ge=1, description="rows to forget in a step")
    retain_size: int = Field(8, ge=1, description="rows to retain in a step")
    most: float | None = Field(0.02, gt=0, description="rise of the retain loss at which forgetting ends; none: never")
    lora: int = Field(0, ge=0, description="rank of adapters that alone are trained; 0: the parameters themselves")
    include: tuple[str, ...] = Field(("*",), description="parameters that move, by patterns of their paths")
    epochs: int = Field(1, ge=1, description="drop, downweight, curation: of fine-tuning without the rows, or with")
    weight: float = Field(0.1, ge=0, lt=1, description="downweight: what an edited row counts")
    epsilon: float = Field(8.0, gt=0, description="private: what fine-tuning without the rows may spend (DP-SGD)")
    clip: float = Field(1.0, gt=0, description="private: largest norm of a row's gradient")
    share: float = Field(1.0, gt=0, le=1, description="newton: of the step that is taken")
    reworded: str = Field(
        "", description="the failures in other words, in the form of the trace's queries: measured too"
    )
    relearn: int = Field(10, ge=0, description="steps on half of the edited rows, and on others, after; 0: none")
    seed: int = Field(0, ge=0)
