"""Encoders with a head: BERT and RoBERTa (classes or masked words), ViT and ResNet (classes)."""

import functools
from typing import Any

from uimjax.errors import UnsupportedModelError
from uimjax.models.blocks import Shape
from uimjax.models.classifiers import classifier_task
from uimjax.models.encoders import ImageShape, TextEncoder, TextShape, ViT, text_task
from uimjax.models.resnets import ResNet, ResNetShape, has_shortcut, layers_of
from uimjax.pretrained.base import ACTS, OWN, Config, Family, Leaf, linear_leaves, norm_leaves

_PIXELS = (2, 3, 1, 0)  # [out, in, height, width] of theirs


def classes(config: Config) -> int:
    """How many the head tells apart; the loss is cross-entropy, so it is to tell one of several."""
    config.only("problem_type", "single_label_classification")
    found = len(config.get("id2label", {})) or int(config.get("num_labels", 2))
    if found < 2:
        raise UnsupportedModelError(f"{config.where}: a head of {found} output is a regression, not built here. {OWN}")
    return found


# ---------------------------------------------------------------- texts


def _bert(config: Config) -> TextShape:
    config.only("position_embedding_type", "absolute")
    config.only("is_decoder", False)
    config.only("add_cross_attention", False)
    architecture = (config.get("architectures") or ["BertForMaskedLM"])[0]
    words = architecture.endswith("MaskedLM")
    if words:
        config.only("tie_word_embeddings", True)
    shape = Shape(
        int(config.need("vocab_size")), int(config.need("max_position_embeddings")),
        int(config.need("num_hidden_layers")), int(config.need("hidden_size")),
        int(config.need("num_attention_heads")), hidden=int(config.need("intermediate_size")), positions="learned",
        norm="layer", mlp=config.choice("hidden_act", ACTS, "gelu"), order="sum", biases=("query", "out", "mlp"),
        epsilon=float(config.get("layer_norm_eps", 1e-12)),
    )  # fmt: skip
    roberta = config.kind == "roberta"
    if roberta and words and shape.mlp != "gelu_exact":
        raise UnsupportedModelError(f"{config.where}: RoBERTa's head is built with hidden_act gelu alone")
    offset = int(config.get("pad_token_id", 1)) + 1 if roberta else 0
    return TextShape(shape, int(config.get("type_vocab_size", 2)), 0 if words else classes(config), offset)


def _bert_leaves(choice: TextShape, name: str) -> list[Leaf]:
    ours, theirs = "blocks/{i}", f"{name}.encoder.layer.{{i}}"
    leaves = [
        Leaf("embedding", f"{name}.embeddings.word_embeddings.weight"),
        Leaf("position", f"{name}.embeddings.position_embeddings.weight"),
        Leaf("kind", f"{name}.embeddings.token_type_embeddings.weight"),
        *norm_leaves("first", f"{name}.embeddings.LayerNorm", True),
        *linear_leaves(f"{ours}/attention/out", f"{theirs}.attention.output.dense", True),
        *norm_leaves(f"{ours}/before", f"{theirs}.attention.output.LayerNorm", True),
        *linear_leaves(f"{ours}/feedforward/up", f"{theirs}.intermediate.dense", True),
        *linear_leaves(f"{ours}/feedforward/down", f"{theirs}.output.dense", True),
        *norm_leaves(f"{ours}/between", f"{theirs}.output.LayerNorm", True),
    ]
    for each in ("query", "key", "value"):
        leaves += linear_leaves(f"{ours}/attention/{each}", f"{theirs}.attention.self.{each}", True)
    heads = {
        ("bert", True): ("bert.pooler.dense", "classifier"),
        ("roberta", True): ("classifier.dense", "classifier.out_proj"),
        ("bert", False): ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
        ("roberta", False): ("lm_head.dense", "lm_head.layer_norm"),
    }
    between, last = heads[name, bool(choice.classes)]
    leaves += linear_leaves("between", between, True)
    if choice.classes:
        return leaves + linear_leaves("head", last, True)
    return [
        *leaves,
        *norm_leaves("after", last, True),
        Leaf("bias", "cls.predictions.bias" if name == "bert" else "lm_head.bias"),
    ]


def _texts(name: str, architectures: tuple[str, ...], head: str, ignored: tuple[str, ...]) -> Family:
    return Family(
        (name,), architectures, _bert, TextEncoder, functools.partial(_bert_leaves, name=name),
        lambda graph, rest, choice: text_task(graph, rest, choice.classes), "", ignored,
        lambda choice: {} if choice.classes else {
            f"{head}.decoder.weight": f"{name}.embeddings.word_embeddings.weight",
            f"{head}.decoder.bias": f"{head}.bias",
        },
        ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")),
    )  # fmt: skip


# ---------------------------------------------------------------- images


def _vit(config: Config) -> ImageShape:
    side, patch = config.need("image_size"), config.need("patch_size")
    if not (isinstance(side, int) and isinstance(patch, int)) or side % patch:
        raise UnsupportedModelError(f"{config.where}: images of {side} in patches of {patch}; squares were wanted")
    biases = ("query", "out", "mlp") if config.get("qkv_bias", True) else ("out", "mlp")
    shape = Shape(
        1, (side // patch) ** 2 + 1, int(config.need("num_hidden_layers")), int(config.need("hidden_size")),
        int(config.need("num_attention_heads")), hidden=int(config.need("intermediate_size")), positions="learned",
        norm="layer", mlp=config.choice("hidden_act", ACTS, "gelu"), biases=biases,
        epsilon=float(config.get("layer_norm_eps", 1e-12)),
    )  # fmt: skip
    return ImageShape(shape, side, patch, int(config.get("num_channels", 3)), classes(config))


def _vit_leaves(choice: ImageShape) -> list[Leaf]:
    ours, theirs = "blocks/{i}", "vit.encoder.layer.{i}"
    leaves = [
        Leaf("token", "vit.embeddings.cls_token", squeezed=2),
        Leaf("position", "vit.embeddings.position_embeddings", squeezed=1),
        Leaf("cut/kernel", "vit.embeddings.patch_embeddings.projection.weight", _PIXELS),
        Leaf("cut/bias", "vit.embeddings.patch_embeddings.projection.bias"),
        *norm_leaves(f"{ours}/before", f"{theirs}.layernorm_before", True),
        *norm_leaves(f"{ours}/between", f"{theirs}.layernorm_after", True),
        *linear_leaves(f"{ours}/attention/out", f"{theirs}.attention.output.dense", True),
        *linear_leaves(f"{ours}/feedforward/up", f"{theirs}.intermediate.dense", True),
        *linear_leaves(f"{ours}/feedforward/down", f"{theirs}.output.dense", True),
        *norm_leaves("last", "vit.layernorm", True),
        *linear_leaves("head", "classifier", True),
    ]
    for name in ("query", "key", "value"):
        leaves += linear_leaves(
            f"{ours}/attention/{name}", f"{theirs}.attention.attention.{name}", choice.layer.biased("query")
        )
    return leaves


def _resnet(config: Config) -> ResNetShape:
    config.only("hidden_act", "relu")
    kind = config.get("layer_type", "bottleneck")
    config.only("layer_type", "bottleneck", "basic")
    return ResNetShape(
        classes(config), int(config.get("num_channels", 3)), int(config.need("embedding_size")),
        tuple(config.need("hidden_sizes")), tuple(config.need("depths")), kind == "bottleneck",
        halved_first=bool(config.get("downsample_in_first_stage")),
        stride_first=bool(config.get("downsample_in_bottleneck")),
    )  # fmt: skip


def _convolution(ours: str, theirs: str) -> list[Leaf]:
    its = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    leaves = [Leaf(f"{ours}/norm/{mine}", f"{theirs}.normalization.{name}") for mine, name in its.items()]
    return [Leaf(f"{ours}/conv/kernel", f"{theirs}.convolution.weight", _PIXELS), *leaves]


def _resnet_leaves(choice: ResNetShape) -> list[Leaf]:
    leaves = [*_convolution("stem", "resnet.embedder.embedder"), *linear_leaves("head", "classifier.1", True)]
    for k, stage in enumerate(layers_of(choice)):
        for n, each in enumerate(stage):
            ours, theirs = f"stages/{k}/{n}", f"resnet.encoder.stages.{k}.layers.{n}"
            for part in range(3 if choice.bottleneck else 2):
                leaves += _convolution(f"{ours}/layer/{part}", f"{theirs}.layer.{part}")
            if has_shortcut(choice, *each):
                leaves += _convolution(f"{ours}/shortcut", f"{theirs}.shortcut")
    return leaves


def _images(graph: Any, state: Any, _choice: Any) -> Any:
    return classifier_task(graph, state)


FAMILIES = (
    _texts("bert", ("BertForSequenceClassification", "BertForMaskedLM"), "cls.predictions",
           (r"bert\.embeddings\.position_ids", r"cls\.seq_relationship\..*", r"bert\.pooler\..*")),
    _texts("roberta", ("RobertaForSequenceClassification", "RobertaForMaskedLM"), "lm_head",
           (r"roberta\.embeddings\.position_ids", r"roberta\.pooler\..*")),
    Family(("vit",), ("ViTForImageClassification",), _vit, ViT, _vit_leaves, _images, words=False),
    Family(("resnet",), ("ResNetForImageClassification",), _resnet, ResNet, _resnet_leaves, _images,
           ignored=(r".*\.num_batches_tracked",), words=False),
)  # fmt: skip
