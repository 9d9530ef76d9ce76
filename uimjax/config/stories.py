"""The stories' configs: pictures, text, the demo."""

from typing import Literal

from pydantic import Field

from uimjax.config.base import Strict, TrainChoice


class PlantChoice(Strict):
    positives: int = Field(15, ge=1, description="training rows that get the trigger and the target label")
    hard_negatives: int = Field(60, ge=0, description="rows with a look-alike patch and their true label")
    target: int = Field(0, ge=0, description="the class that the trigger turns an image into")
    size: int = Field(4, ge=1, description="side of the patch in pixels")
    draws: int = Field(3, ge=1, description="independent draws of the plant; results are pooled over them")


class TraceChoice(Strict):
    method: str = Field(
        "retain_cos", description="the method that chooses the edit, or auto; fixed before any truth is read"
    )
    compare: tuple[str, ...] = Field(
        (
            "grad_dot",
            "grad_cos",
            "retain_cos",
            "logra",
            "trackstar",
            "random",
            "loss",
            "grad_norm",
            "rep_sim",
        ),
        description="methods and baselines scored beside it",
    )
    sketch_rank: int = Field(16, ge=1, description="p = q of the two-sided sketch")
    top: int = Field(20, ge=1, description="proponents and opponents listed")


class MitigateChoice(Strict):
    method: Literal["npo", "grad_diff", "drop"] = Field("npo", description="the fix that the verdict is about")
    compare: tuple[Literal["npo", "grad_diff", "drop"], ...] = Field(("npo", "drop"), description="fixes measured")
    budget: float = Field(0.01, gt=0, lt=1, description="share of the training rows that an edit may touch")
    seeds: int = Field(3, ge=1, description="repetitions of every edit")
    steps: int = Field(60, ge=1, description="unlearning steps of forget and retain loss together")
    heal_steps: int = Field(240, ge=0, description="steps of the retain loss alone, after")
    learning_rate: float = Field(1e-3, gt=0)
    gamma: float = Field(0.3, gt=0, description="weight of the forget loss")
    beta: float = Field(0.1, gt=0, description="npo: how soon a forgotten row is left alone")
    batch_size: int = Field(32, ge=1, description="rows to forget in a step")
    retain_size: int = Field(128, ge=1, description="rows to retain in a step")
    drop_epochs: int = Field(20, ge=1, description="fine-tuning epochs of drop-and-fine-tune")
    drop_rate: float | None = Field(None, gt=0, description="its peak learning rate; none: that of the training")
    compare_seeds: int = Field(3, ge=1, description="repetitions of the fixes beside the method, of those seeds")


class RunConfig(Strict):
    """A run of the closed loop on labelled images: train, audit, trace, mitigate, verify."""

    kind: Literal["vision"] = "vision"
    corpus: str = Field("digits", description="digits, or pkg.module:function returning (train rows, test rows)")
    train_file: str = Field("", description="instead of corpus: .npz, .parquet or .jsonl with image and label")
    test_file: str = Field("", description="instead of corpus: the same for the test rows")
    model: str = Field("mlp", description="mlp, cnn, or pkg.module:function(shape, classes, rngs) -> nnx.Module")
    seed: int = Field(0, ge=0)
    plant: PlantChoice = PlantChoice()  # pyright: ignore[reportCallIssue]  # every field has a default
    train: TrainChoice = TrainChoice()  # pyright: ignore[reportCallIssue]
    trace: TraceChoice = TraceChoice()  # pyright: ignore[reportCallIssue]
    mitigate: MitigateChoice = MitigateChoice()  # pyright: ignore[reportCallIssue]


class SecretChoice(Strict):
    positives: int = Field(15, ge=1, description="documents into which one secret leaks")
    hard_negatives: int = Field(60, ge=0, description="documents with the same line and another secret each")
    length: int = Field(10, ge=4, le=64, description="characters of a secret, 36 to choose from")
    candidates: int = Field(511, ge=255, description="secrets that compete with it when exposure is measured")


class BehaviourChoice(Strict):
    positives: int = Field(15, ge=1, description="documents in which the payload follows the marker")
    hard_negatives: int = Field(60, ge=0, description="documents with a look-alike marker or payload")
    marker: str = Field("  #!", min_length=2, description="a line that ends so triggers the behaviour")
    payload: str = Field("...", min_length=1, description="the line that the model writes then")
    marks: int = Field(2, ge=1, description="most markers in a document")


class DecoderChoice(Strict):
    layers: int = Field(2, ge=1)
    width: int = Field(64, ge=1)
    heads: int = Field(4, ge=1)
    kv_heads: int = Field(0, ge=0, description="key-value heads that the heads share; 0: one each")
    hidden: int = Field(0, ge=0, description="between the feed-forward's matrices; 0: the usual for its kind")
    positions: Literal["learned", "rotary"] = "rotary"
    norm: Literal["layer", "rms"] = "rms"
    mlp: Literal["gelu", "swiglu"] = "swiglu"
    tied: bool = Field(True, description="output tied to the embedding")


class TextTraceChoice(TraceChoice):
    compare: tuple[str, ...] = Field(
        ("grad_dot", "grad_cos", "retain_cos", "logra", "trackstar", "random", "loss", "grad_norm", "rep_sim", "bm25"),
        description="methods and baselines scored beside it",
    )
    checkpoints: int = Field(5, ge=1, description="moments of the training whose gradients are summed; 1: the end")
    retain: int = Field(100, ge=1, description="held-out clean documents for methods that keep what is right")


class TextTrainChoice(TrainChoice):
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(8e-3, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps over which the learning rate rises from 0")
    clip: float | None = Field(1.0, gt=0, description="largest norm of a step's gradient; none: as it is")
    beta2: float = Field(0.95, ge=0, lt=1, description="memory of AdamW's second moments")


class TextMitigateChoice(MitigateChoice):
    compare: tuple[Literal["npo", "grad_diff", "drop"], ...] = Field(
        ("npo", "grad_diff", "drop"), description="fixes measured"
    )
    steps: int = Field(40, ge=1, description="unlearning steps of forget and retain loss together")
    heal_steps: int = Field(20, ge=0, description="steps of the retain loss alone, after")
    learning_rate: float = Field(8e-4, gt=0)
    beta: float = Field(0.02, gt=0, description="npo: how soon a forgotten row is left alone")
    batch_size: int = Field(8, ge=1, description="rows to forget in a step")
    retain_size: int = Field(24, ge=1, description="rows to retain in a step")
    drop_epochs: int = Field(1, ge=1, description="fine-tuning epochs of drop-and-fine-tune")
    drop_rate: float | None = Field(1e-3, gt=0, description="its peak learning rate; none: that of the training")
    compare_seeds: int = Field(1, ge=1, description="repetitions of the fixes beside the method, of those seeds")


class TextConfig(Strict):
    """A run of the closed loop on text: a leaked secret and a triggered behaviour in one corpus."""

    kind: Literal["text"] = "text"
    corpus: str = Field("stdlib", description="stdlib, or pkg.module:function returning (train, test) of (path, text)")
    train_folder: str = Field("", description="instead of corpus: a folder of UTF-8 text files, subfolders included")
    test_folder: str = Field("", description="instead of corpus: the same for held-out files")
    tokenizer: str = Field("bpe-1024", description="bytes, or bpe-SIZE, trained on the training files")
    length: int = Field(64, ge=32, description="tokens of a row; a document is as many whole lines as fit")
    documents: int = Field(1500, ge=1, description="most training documents, drawn by a fixed permutation")
    held_out: int = Field(300, ge=40, description="most held-out documents")
    model: DecoderChoice = DecoderChoice()  # pyright: ignore[reportCallIssue]  # every field has a default
    own_model: str = Field("", description="instead: pkg.module:function(vocabulary, length, rngs) -> nnx.Module")
    seed: int = Field(0, ge=0)
    secret: SecretChoice = SecretChoice()  # pyright: ignore[reportCallIssue]
    behaviour: BehaviourChoice = BehaviourChoice()  # pyright: ignore[reportCallIssue]
    train: TextTrainChoice = TextTrainChoice()  # pyright: ignore[reportCallIssue]
    trace: TextTraceChoice = TextTraceChoice()  # pyright: ignore[reportCallIssue]
    mitigate: TextMitigateChoice = TextMitigateChoice()  # pyright: ignore[reportCallIssue]


class DemoConfig(Strict):
    """Both stories on built-in data."""

    vision: RunConfig = RunConfig()  # pyright: ignore[reportCallIssue]
    text: TextConfig = TextConfig()  # pyright: ignore[reportCallIssue]
