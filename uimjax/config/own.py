"""Configs of work on the reader's own models: an index, a question to it, a check of methods."""

from typing import Literal

from pydantic import Field

from uimjax.config.base import Strict, TrainChoice


class IndexConfig(Strict):
    """An index of the reader's own model and rows."""

    kind: Literal["index"] = "index"
    load: str = Field(description="pkg.module:function returning (uimjax.Task, params)")
    rows: str = Field(description="training rows: .jsonl, .npz or .parquet")
    sketch_rank: int = Field(16, ge=1)
    seed: int = Field(0, description="of the projection matrices")
    batch_size: int = Field(64, ge=1)
    shard_rows: int = Field(1024, ge=1)
    devices: int = Field(1, ge=1, description="of this process, that share each batch")
    coding: str = Field(
        "float32", description="float32, bfloat16, int8, int4; rank4-int8: matrices as 4 pairs of factors"
    )
    target_recall: float | None = Field(
        None,
        gt=0,
        le=1,
        description="in coding's stead: the smallest that keeps that share of top-20 lists on a sample",
    )


class TraceConfig(Strict):
    """A question to an index of the reader's own model: which training rows does a failure come from?"""

    kind: Literal["trace"] = "trace"
    load: str = Field(description="pkg.module:function returning (uimjax.Task, params, uimjax.Measurement, queries)")
    index: str = Field(description="folder of the index, or its URL (s3://, gs://, https://)")
    rows: str = Field(description="training rows: any of them, for their shapes; to re-rank all of the index's")
    method: str = Field(
        "grad_cos", description="a method for sketched rows: grad_cos, logra, trackstar, retain_cos ..."
    )
    k: int = Field(20, ge=1, description="proponents and opponents of each question")
    each: bool = Field(False, description="each query on its own; otherwise what caused them together")
    retain: str = Field("", description="file of held-out clean rows, for methods that keep what the model does right")
    rerank: int = Field(0, ge=0, description="candidates at either end scored again by whole gradients; 0: none")
    null: int | None = Field(
        None, ge=0, description="shuffled questions for the chance p of a score; none: 100, or 0 beside rerank or ann"
    )
    ann: bool = Field(False, description="by the approximate index alone (`uimjax index ann`); cosine methods")
    metadata: str = Field("", description="a line a training row: .parquet, .jsonl or .csv; its columns join the hits")
    where: dict[str, tuple[str | int, ...]] = Field(
        {}, description="columns of the metadata and the values whose rows alone are asked, as {source: [wiki]}"
    )
    group_by: str = Field("", description="a column of the metadata: scores of all rows are added up by it")


class FailuresConfig(Strict):
    """Failures of a language model, traced to the documents of its corpus."""

    kind: Literal["failures"] = "failures"
    model: str = Field(description="a folder as save_pretrained writes it, or pkg.module:function -> Flax module")
    checkpoint: str = Field("", description="Orbax checkpoint, or steps of a run, whose parameters it gets")
    adapter: str = Field("", description="folder of a LoRA adapter (peft), which alone is then attributed")
    step: int | None = Field(None, ge=0, description="of the run; none: the newest")
    tokenizer: str = Field("", description="tokenizer.json; none: the folder's")
    task: str = Field("", description="pkg.module:function(module) -> uimjax.Task; none: tokens [T] to logits [T, V]")
    corpus: tuple[str, ...] = Field(description="files of documents, or folders of them (`uimjax help corpora`)")
    queries: str = Field(description='failures, a line each: {"prompt": ..., "bad": ..., "good": ...}')
    text_column: str = Field("text", description="column of the documents that holds the text")
    id_column: str = Field("", description="their names; none: FILE:ROW")
    source_column: str = Field("", description="where they are from; none: a column `source`, or the file's name")
    token_dtype: str = Field("", description="of plain files of tokens (.bin): uint16, int32 ...")
    end_token: int | None = Field(None, ge=0, description="that ends a document in those; none: the model's eos")
    proxy: bool = Field(False, description="the corpus is not what the model was trained on, but like it")
    measure: str = Field("", description="logprob, differential ... (`uimjax help trace`), or pkg.module:function")
    method: str = Field(
        "auto", description="auto (by size), relatif, ekfac, trackstar, logra, grad_cos, retain_cos ..."
    )
    length: int = Field(512, ge=2, description="tokens of a row; a longer document goes on in the next")
    k: int = Field(10, ge=1, description="documents at either end of each failure")
    shown: int = Field(3, ge=0, description="of so many documents the tokens that carry the score are looked at")
    fold: float = Field(0.8, ge=0, le=1, description="documents as alike as that (Jaccard) are one; 0: none are")
    near: float = Field(0, ge=0, lt=1, description="near copies in all of the corpus are counted (extra text); 0: not")
    retain: tuple[str, ...] = Field((), description="held-out clean documents, for retain_cos")
    include: tuple[str, ...] = Field((), description="parameters that are attributed, by patterns of paths; none: all")
    exclude: tuple[str, ...] = Field((), description="and those that are not")
    dtype: Literal["", "float32", "bfloat16"] = Field("", description="of the parameters; none: as in the files")
    scanned: bool = Field(False, description="layers stacked and compiled once: for deep models")
    remat: bool = Field(False, description="activations computed again on the way back: less memory, more time")
    devices: int = Field(1, ge=1, description="that share each batch")
    model_devices: int = Field(1, ge=1, description="that share the parameters")
    batch_size: int = Field(8, ge=1, description="rows at once")
    sketch_rank: int = Field(16, ge=1, description="of an index, as all below")
    seed: int = Field(0, description="of the projection matrices")
    coding: str = Field("int8", description="float32, bfloat16, int8, int4; rank4-int8: matrices as 4 pairs of factors")
    shard_rows: int = Field(1024, ge=1)
    null: int = Field(100, ge=0, description="shuffled questions for the chance p of a score; 0: none")


class ClassifiedConfig(Strict):
    """Mistakes of a classifier, traced to its labelled examples: pictures, texts, or features of a model unseen."""

    kind: Literal["classified"] = "classified"
    model: str = Field(
        description="a folder as save_pretrained writes it, pkg.module:function -> nnx.Module of images, or head: a "
        "linear one, fitted here to features"
    )
    checkpoint: str = Field("", description="Orbax checkpoint, or steps of a run, whose parameters it gets")
    step: int | None = Field(None, ge=0, description="of the run; none: the newest")
    tokenizer: str = Field("", description="tokenizer.json; none: the folder's")
    task: str = Field("", description="pkg.module:function(module) -> uimjax.Task; none: cross-entropy of its logits")
    classes: tuple[str, ...] = Field((), description="names of the model's outputs, in order; none: its config's")
    corpus: tuple[str, ...] = Field(description="folders of pictures by class, or tables (`uimjax help corpora`)")
    queries: str = Field(
        description='mistakes, a line each: {"image": FILE, "label": ..., "predicted": ...}; or "text", "features"'
    )
    column: str = Field("", description="that holds the value; none: image, text or features")
    label_column: str = Field("label", description="that holds the class, by name or number")
    id_column: str = Field("", description="their names; none: FILE:ROW")
    source_column: str = Field("", description="where they are from; none: a column `source`, or the file's name")
    labels: str = Field("", description="of features in one .npy: a .npy or lines of text")
    side: int = Field(0, ge=0, description="pictures for your own module are resized to; 0: they stay as they are")
    channels: Literal[1, 3] = Field(3, description="of those")
    decay: float = Field(1e-3, gt=0, description="of a head that is fitted here")
    measure: str = Field(
        "", description="differential, logprob, margin ... (`uimjax help trace`), or pkg.module:function"
    )
    method: str = Field("auto", description="auto (by size), relatif, ekfac, trackstar, logra, grad_cos ...")
    length: int = Field(128, ge=2, description="tokens of a text; of a longer one the beginning")
    k: int = Field(10, ge=1, description="examples at either end of each mistake")
    shown: int = Field(5, ge=0, description="examples with the nearest representations, told beside")
    include: tuple[str, ...] = Field((), description="parameters that are attributed, by patterns of paths; none: all")
    exclude: tuple[str, ...] = Field((), description="and those that are not")
    scanned: bool = Field(False, description="layers stacked and compiled once: for deep models")
    remat: bool = Field(False, description="activations computed again on the way back: less memory, more time")
    devices: int = Field(1, ge=1, description="that share each batch")
    model_devices: int = Field(1, ge=1, description="that share the parameters")
    batch_size: int = Field(32, ge=1, description="rows at once")
    sketch_rank: int = Field(16, ge=1, description="of an index, as all below")
    seed: int = Field(0, description="of the projection matrices")
    coding: str = Field("int8", description="float32, bfloat16, int8, int4; rank4-int8: matrices as 4 pairs of factors")
    shard_rows: int = Field(1024, ge=1)


class CheckTrainChoice(TrainChoice):
    epochs: int = Field(20, ge=1)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    final: float = Field(0.1, ge=0, le=1, description="where the cosine ends, as a share of the learning rate")


class CheckConfig(Strict):
    """Attribution judged by retraining the reader's own small task."""

    kind: Literal["check"] = "check"
    load: str = Field(
        description="pkg.module:function returning (uimjax.Task, initial(seed) -> params, rows, Measurement, queries)"
    )
    train: CheckTrainChoice = CheckTrainChoice()  # pyright: ignore[reportCallIssue]  # every field has a default
    methods: tuple[str, ...] = Field(
        ("auto", "ekfac", "logra", "trackstar", "grad_cos", "grad_dot", "random"), description="methods judged"
    )
    halves: int = Field(20, ge=2, description="random halves of the rows to train again on, with every seed")
    seeds: int = Field(2, ge=1, description="trainings of each half; two show how far any method can get")
    protocol: Literal["rebatched", "masked"] = Field(
        "rebatched", description="kept rows alone are cut into batches, or all keep their places and some weigh nothing"
    )
    removals: int = Field(10, ge=0, description="trainings without 1 to a tenth of the rows, for calibration")
    checkpoints: int = Field(6, ge=1, description="moments of the training, for methods that read several")
    damping: float | None = Field(
        None, gt=0, description="times the mean eigenvalue; none: chosen by each method that has one"
    )
    batch_size: int = Field(256, ge=1, description="rows scored at once")


class Unattributed(Strict):
    """A config by which a model is opened, and no gradient taken."""

    @property
    def include(self) -> tuple[str, ...]:
        return ()

    exclude = include


class AuditConfig(Unattributed):
    """Weaknesses of the reader's own language model, measured by items that they or public sets give."""

    kind: Literal["audit"] = "audit"
    model: str = Field(description="a folder as save_pretrained writes it, or pkg.module:function -> Flax module")
    items: tuple[str, ...] = Field((), description="files of items (`uimjax help audit`)")
    members: tuple[str, ...] = Field((), description="documents that the model was trained on: can that be told?")
    others: tuple[str, ...] = Field((), description="and documents like them that it was not trained on")
    weakness: str = Field("", description="of items that do not say theirs")
    suite: tuple[str, ...] = Field(("all",), description="weaknesses whose items are asked: bias values ...")
    checkpoint: str = Field("", description="Orbax checkpoint, or steps of a run, whose parameters it gets")
    adapter: str = Field("", description="folder of a LoRA adapter (peft)")
    step: int | None = Field(None, ge=0, description="of the run; none: the newest")
    tokenizer: str = Field("", description="tokenizer.json; none: the folder's")
    task: str = Field("", description="pkg.module:function(module) -> uimjax.Task; none: tokens [T] to logits [T, V]")
    dtype: Literal["", "float32", "bfloat16"] = Field("", description="of the parameters; none: as in the files")
    scanned: bool = Field(False, description="layers stacked and compiled once: for deep models")
    length: int = Field(512, ge=2, description="most tokens of an item; a longer prompt keeps its end")
    limit: int | None = Field(None, ge=1, description="items, or documents, of each file, evenly spaced; none: all")
    batch_size: int = Field(16, ge=1)
    seed: int = Field(0, ge=0, description="of the word order that the model should find unlikely")

    text_column: str = Field("text", description="column of members and others that holds the text")

    @property
    def remat(self) -> bool:
        """Nothing is differentiated here."""
        return False


class CensusConfig(Strict):
    """What a corpus holds, before any model: a card of its sources, copies, languages, people, personal data."""

    kind: Literal["census"] = "census"
    data: tuple[str, ...] = Field(description="files of documents, or folders of them (`uimjax help corpora`)")
    text_column: str = Field("text", description="column that holds the text")
    id_column: str = Field("", description="names of the documents; none: FILE:ROW")
    source_column: str = Field("", description="where they are from; none: a column `source`, or the file's name")
    label_column: str = Field("", description="classes, whose wrong labels are estimated; none: there are none")
    near: float = Field(0.8, ge=0, lt=1, description="documents as alike as that are near copies; 0: not looked for")
    languages: bool = Field(True, description="of the sample, told by py3langid")
    terms: str = Field("", description="YAML of groups and attributes; none: the lists that are shipped")
    toxicity: str = Field("", description="labelled texts that a classifier of toxic ones is trained on; none: none is")
    toxicity_text: str = Field("text", description="its column of texts")
    toxicity_label: str = Field("label", description="its column of labels")
    toxic: tuple[str, ...] = Field((), description="the labels that mean toxic; none: 1, of labels 0 and 1")
    evaluation: tuple[str, ...] = Field((), description="evaluation sets: do their items stand in the corpus?")
    evaluation_column: str = Field("text", description="their column of texts")
    sample: int = Field(20_000, ge=100, description="documents that languages, toxicity and labels are told by")
    workers: int = Field(0, ge=0, description="processes; 0: as many as the machine has cores")
    seed: int = Field(0, ge=0, description="of the sample and of the classifiers' folds")
    name: str = Field("", description="of the dataset, on its card; none: that of the first file")
    licence: str = Field("", description="of the dataset, on its card")


class ExaminedConfig(Unattributed):
    """A classifier of pictures, texts or features, judged on labelled examples: its groups, and small changes."""

    kind: Literal["examined"] = "examined"
    model: str = Field(
        description="a folder as save_pretrained writes it, or pkg.module:function -> nnx.Module of images"
    )
    examples: tuple[str, ...] = Field(description="folders of pictures by class, or tables (`uimjax help corpora`)")
    checkpoint: str = Field("", description="Orbax checkpoint, or steps of a run, whose parameters it gets")
    step: int | None = Field(None, ge=0, description="of the run; none: the newest")
    tokenizer: str = Field("", description="tokenizer.json; none: the folder's")
    task: str = Field("", description="pkg.module:function(module) -> uimjax.Task; none: cross-entropy of its logits")
    classes: tuple[str, ...] = Field((), description="names of the model's outputs, in order; none: its config's")
    column: str = Field("", description="that holds the value; none: image, text or features")
    label_column: str = Field("label", description="that holds the class, by name or number")
    id_column: str = Field("", description="their names; none: FILE:ROW")
    group_column: str = Field("", description="groups that are compared; none: a column `source`, or the file's name")
    side: int = Field(0, ge=0, description="pictures for your own module are resized to; 0: they stay as they are")
    channels: Literal[1, 3] = Field(3, description="of those")
    length: int = Field(128, ge=2, description="tokens of a text; of a longer one the beginning")
    epsilon: tuple[float, ...] = Field(
        (2.0, 8.0), description="pictures: largest change of a pixel of 0 to 255, by an adversary (PGD)"
    )
    attack_steps: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=1, description="rows at once")
    least: int = Field(10, ge=1, description="rows of a group, below which it is left out and named")
    draws: int = Field(1000, ge=100, description="resamples for the intervals")
    seed: int = Field(0, ge=0)
    scanned: bool = Field(False, description="layers stacked and compiled once: for deep models")
    remat: bool = Field(False, description="activations computed again on the way back: less memory, more time")
    decay: float = Field(1e-3, description="of a head that is fitted to features, which is not examined here")


class DecisionsConfig(Strict):
    """What a model of any kind decided, by group: a table of predictions, the model unopened."""

    kind: Literal["decisions"] = "decisions"
    predictions: str = Field(description="a table with a row a decision: .parquet, .jsonl, .csv or .tsv")
    label: str = Field("label", description="column of what is right")
    predicted: str = Field("predicted", description="column of what the model decided")
    group: tuple[str, ...] = Field((), description="columns of groups; none: group; each is judged by itself")
    positive: str = Field(
        "",
        description="the decision that is to be given alike (parity, odds); none: of 0 and 1 the 1, else no such gap",
    )
    least: int = Field(10, ge=1, description="rows of a group, below which it is left out and named")
    draws: int = Field(1000, ge=100, description="resamples for the intervals")
    seed: int = Field(0, ge=0)
