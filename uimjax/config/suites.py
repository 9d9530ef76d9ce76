"""The suite's config: all eight weaknesses, planted, traced, mended and held against controls."""

from typing import Any, Literal

from pydantic import Field

from uimjax.config.base import Strict, TrainChoice
from uimjax.config.stories import DecoderChoice, MitigateChoice, TextMitigateChoice, TextTraceChoice, TextTrainChoice

RELEARN = "steps on half of the planted rows after the fix, and of the twin beside; 0: none"


class SizesChoice(Strict):
    positives: int = Field(24, ge=1, description="documents of a weakness that sits in a few of them")
    hard_negatives: int = Field(60, ge=0, description="documents that look like these and do no harm")
    noisy: float = Field(0.15, gt=0, lt=1, description="share of the documents whose words are confused")
    shard: float = Field(0.25, gt=0, lt=1, description="share of the documents that are a bad shard")
    candidates: int = Field(511, ge=255, description="secrets that compete with the leaked one")


class SuiteTrainChoice(TextTrainChoice):
    epochs: int = Field(8, ge=2)


class SuiteMitigateChoice(TextMitigateChoice):
    method: Literal["npo", "grad_diff", "drop", "retrain"] = Field("npo", description="the fix")  # type: ignore[assignment]
    compare: tuple[Literal["npo", "grad_diff", "drop"], ...] = ()
    relearn: int = Field(10, ge=0, description=RELEARN)


class Plan(Strict):
    """How one weakness is traced and mended; fixed before any truth is read."""

    trace: str = Field("trackstar", description="the method whose strongest rows are edited")
    tokens: int = Field(0, ge=0, description="a row is as strong as so many of its strongest tokens; 0: as all")
    fix: Literal["npo", "grad_diff", "ce_u", "cda", "drop", "retrain"] = Field(
        "npo", description="what is done with them"
    )
    share: float | None = Field(None, gt=0, lt=1, description="share of the rows; none: as many as `positives`")
    settings: dict[str, int | float] = Field({}, description="of `mitigate`, where this weakness differs")

    @property
    def chosen(self) -> str:
        """The name that its scores go by."""
        return f"{self.trace}_top{self.tokens}" if self.tokens else self.trace


class PictureSizesChoice(Strict):
    positives: int = Field(
        13, ge=1, description="rows of a weakness that sits in a few; of two others four times these"
    )
    hard_negatives: int = Field(24, ge=1, description="rows that look like these and do no harm")
    noisy: float = Field(0.15, gt=0, lt=1, description="share of the rows that have the next class's label")
    shard: float = Field(0.2, gt=0, lt=1, description="share of the rows that are a bad shard")


class PictureTrainChoice(TrainChoice):
    epochs: int = Field(20, ge=2)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(3e-3, gt=0)


class PictureTraceChoice(TextTraceChoice):
    compare: tuple[str, ...] = Field(
        ("grad_dot", "grad_cos", "retain_cos", "logra", "trackstar", "random", "loss", "grad_norm", "rep_sim"),
        description="methods and baselines scored beside it",
    )


class PictureMitigateChoice(MitigateChoice):
    method: Literal["npo"] = Field("npo", description="the fix")  # type: ignore[assignment]
    compare: tuple[Literal["npo", "grad_diff", "drop"], ...] = ()
    drop_epochs: int = Field(10, ge=1, description="fine-tuning epochs of drop-and-fine-tune")
    relearn: int = Field(10, ge=0, description=RELEARN)


class VisionSuiteChoice(Strict):
    """The suite's pictures: six weaknesses in one corpus (privacy and values are of language)."""

    corpus: str = Field("digits", description="digits, or pkg.module:function returning (train rows, test rows)")
    train_file: str = Field("", description="instead of corpus: .npz, .parquet or .jsonl with image and label")
    test_file: str = Field("", description="instead of corpus: the same for the test rows")
    model: str = Field("mlp", description="mlp, cnn, or pkg.module:function(shape, classes, rngs) -> nnx.Module")
    plants: PictureSizesChoice = PictureSizesChoice()  # pyright: ignore[reportCallIssue]  # every field has a default
    train: PictureTrainChoice = PictureTrainChoice()  # pyright: ignore[reportCallIssue]
    trace: PictureTraceChoice = PictureTraceChoice()  # pyright: ignore[reportCallIssue]
    mitigate: PictureMitigateChoice = PictureMitigateChoice()  # pyright: ignore[reportCallIssue]
    bias: Plan = Plan(trace="retain_cos", share=0.035)  # pyright: ignore[reportCallIssue]
    generalization: Plan = Plan(  # pyright: ignore[reportCallIssue]
        fix="ce_u", share=0.035, settings={"steps": 80, "heal_steps": 160}
    )
    deterioration: Plan = Plan(fix="drop", share=0.3)  # pyright: ignore[reportCallIssue]
    security: Plan = Plan()  # pyright: ignore[reportCallIssue]
    dynamics: Plan = Plan(trace="trackstar", fix="retrain", share=0.2)  # pyright: ignore[reportCallIssue]
    memorization: Plan = Plan(  # pyright: ignore[reportCallIssue]
        fix="ce_u", settings={"learning_rate": 3e-4}
    )


class SuiteConfig(Strict):
    """All eight weaknesses of text, and six of pictures, seed by seed: audit, trace, mitigate, verify."""

    kind: Literal["suite"] = "suite"
    corpus: str = Field("stdlib", description="stdlib, or pkg.module:function returning (train, test) of (path, text)")
    tokenizer: str = Field("bpe-1024", description="bytes, or bpe-SIZE, trained on the training files")
    length: int = Field(64, ge=48, description="tokens of a row")
    documents: int = Field(2400, ge=1, description="most training documents")
    held_out: int = Field(300, ge=40, description="most held-out documents")
    model: DecoderChoice = DecoderChoice()  # pyright: ignore[reportCallIssue]  # every field has a default
    seeds: int = Field(3, ge=3, description="trainings from the start, each with plants, twins and edits of its own")
    seed: int = Field(0, ge=0, description="of the first")
    plants: SizesChoice = SizesChoice()  # pyright: ignore[reportCallIssue]
    train: SuiteTrainChoice = SuiteTrainChoice()  # pyright: ignore[reportCallIssue]
    trace: TextTraceChoice = TextTraceChoice()  # pyright: ignore[reportCallIssue]
    mitigate: SuiteMitigateChoice = SuiteMitigateChoice()  # pyright: ignore[reportCallIssue]
    bias: Plan = Plan(trace="trackstar", tokens=3, share=0.02)  # pyright: ignore[reportCallIssue]
    generalization: Plan = Plan(  # pyright: ignore[reportCallIssue]
        trace="trackstar", tokens=3, fix="cda", share=0.06, settings={"steps": 80}
    )
    deterioration: Plan = Plan(  # pyright: ignore[reportCallIssue]
        trace="logra", tokens=3, fix="drop", share=0.2, settings={"drop_epochs": 2, "drop_rate": 1.5e-3}
    )
    security: Plan = Plan(trace="trackstar", tokens=3)  # pyright: ignore[reportCallIssue]
    privacy: Plan = Plan(trace="trackstar")  # pyright: ignore[reportCallIssue]
    values: Plan = Plan(trace="logra", share=0.03)  # pyright: ignore[reportCallIssue]
    dynamics: Plan = Plan(trace="grad_dot", fix="retrain", share=0.25)  # pyright: ignore[reportCallIssue]
    memorization: Plan = Plan(trace="trackstar")  # pyright: ignore[reportCallIssue]
    vision: VisionSuiteChoice = VisionSuiteChoice()  # pyright: ignore[reportCallIssue]


QUICK: dict[str, Any] = {
    "documents": 720,
    "length": 52,
    "plants": {"positives": 16, "hard_negatives": 16, "noisy": 0.1, "shard": 0.15, "candidates": 255},
    "train": {"epochs": 5, "learning_rate": 0.01},
    "trace": {"checkpoints": 2, "compare": ["grad_cos", "trackstar", "random", "loss", "rep_sim", "bm25"]},
    "mitigate": {"retain_size": 16, "relearn": 0},
    "dynamics": {"share": 0.15},
    "vision": {"train": {"epochs": 16}, "trace": {"checkpoints": 3}, "mitigate": {"relearn": 0}},
}


def quick(values: dict[str, Any]) -> dict[str, Any]:
    """A suite's values with the sizes of the quick one over them: fewer documents and epochs, every control."""
    return _over(values, QUICK)


def _over(values: dict[str, Any], its: dict[str, Any]) -> dict[str, Any]:
    return values | {name: _over(values.get(name) or {}, x) if isinstance(x, dict) else x for name, x in its.items()}
