"""GPT-2, GPT-NeoX and the Llama-like decoders: Llama, Mistral, Qwen 2 and 3, SmolLM 3, OLMo 2."""

import dataclasses
from typing import Any

from uimjax.errors import UnsupportedModelError
from uimjax.models.attention import Rotary
from uimjax.models.blocks import Shape
from uimjax.models.decoder import Decoder, task_of
from uimjax.pretrained.base import ACTS, Config, Family, Leaf, linear_leaves, norm_leaves


def _rotary(config: Config, share: float = 1.0) -> Rotary:
    """Of either spelling: rope_theta beside rope_scaling, or rope_parameters."""
    scaling, whole = config.dictionary("rope_scaling"), config.dictionary("rope_parameters")
    apart = sorted(key for key in scaling.keys() & whole.keys() if scaling[key] != whole[key])
    if apart:
        raise UnsupportedModelError(f"{config.where}: rope_scaling and rope_parameters disagree on {', '.join(apart)}")
    found = {**scaling, **whole}
    if any(isinstance(value, dict) for value in found.values()):
        raise UnsupportedModelError(f"{config.where}: rotary positions of each kind of layer are not built here")
    base = float(found.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or 1e4)
    named = float(found.get("partial_rotary_factor") or config.get("partial_rotary_factor") or share)
    if config.kind != "gpt_neox" and named != 1:
        raise UnsupportedModelError(
            f"{config.where}: a {config.kind} of which {named} of a head turns is not built here"
        )
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind == "default":
        return Rotary(base, named)
    if kind not in ("linear", "llama3", "yarn"):
        raise UnsupportedModelError(
            f"{config.where}: rotary positions of type {kind!r}; default, linear, llama3 and yarn are built here"
        )
    return _stretched(config, kind, Rotary(base, named), found)


def _stretched(config: Config, kind: str, plain: Rotary, found: dict[str, Any]) -> Rotary:
    def number(name: str, default: float | None = None) -> float:
        value = found.get(name, default)
        if not isinstance(value, int | float):
            raise UnsupportedModelError(f"{config.where}: rotary positions of type {kind} want a number {name}")
        return float(value)

    if kind == "linear":
        return dataclasses.replace(plain, stretch="linear", factor=number("factor"))
    longest = float(config.need("max_position_embeddings"))
    trained = config.get("original_max_position_embeddings") or number("original_max_position_embeddings", longest)
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        made = {"stretch": "llama3", "factor": number("factor"), "low": low, "high": high}
        return dataclasses.replace(plain, trained=int(trained), **made)
    if found.get("mscale") or found.get("mscale_all_dim"):
        raise UnsupportedModelError(f"{config.where}: yarn with mscale is not built here")
    return dataclasses.replace(
        plain, stretch="yarn", factor=number("factor", longest / trained), trained=int(trained),
        low=number("beta_slow", 1.0), high=number("beta_fast", 32.0), attention=number("attention_factor", 0.0),
        whole_pairs=bool(found.get("truncate", True)),
    )  # fmt: skip


def _windows(config: Config, layers: int, unturned: tuple[int, ...]) -> tuple[int, ...]:
    """How far each layer sees, by each family's own rule."""
    types = config.get("layer_types")
    if types is not None and (len(types) != layers or set(types) - {"full_attention", "sliding_attention"}):
        raise UnsupportedModelError(f"{config.where}: layer_types {types}, of {layers} layers, are not built here")
    if config.kind in ("llama", "olmo2"):  # which have none
        config.only("use_sliding_window", False)
        if types and "sliding_attention" in types:
            raise UnsupportedModelError(f"{config.where}: a {config.kind} with sliding windows is not built here")
        return ()
    if config.kind == "mistral":  # null is none; left out is 4,096
        if types is not None:
            raise UnsupportedModelError(f"{config.where}: a mistral with layer_types is not built here")
        size = config.values.get("sliding_window", 4096)
        return (int(size),) * layers if size else ()
    if not config.get("use_sliding_window", False):
        return ()
    size = int(config.get("sliding_window", 4096 if config.kind.startswith("qwen") else 0))
    if types is None and config.kind == "smollm3":
        types = ["sliding_attention" if k in unturned else "full_attention" for k in range(layers)]
    elif types is None:
        first = int(config.get("max_window_layers", 28))
        types = ["sliding_attention" if k >= first else "full_attention" for k in range(layers)]
    sizes = tuple(size if its == "sliding_attention" else 0 for its in types)
    return sizes if any(sizes) else ()


def _llama(config: Config) -> Shape:
    kind, layers, heads = config.kind, int(config.need("num_hidden_layers")), int(config.need("num_attention_heads"))
    config.only("hidden_act", "silu")
    biases = {"qwen2": ("query",)}.get(kind, ("query", "out") if config.get("attention_bias") else ())
    if config.get("mlp_bias"):
        biases = (*biases, "mlp")
    unturned: tuple[int, ...] = ()
    if kind == "smollm3":
        every = int(config.get("no_rope_layer_interval", 4))
        turned = config.get("no_rope_layers") or [(k + 1) % every != 0 for k in range(layers)]
        unturned = tuple(k for k in range(layers) if not turned[k])
    return Shape(
        int(config.need("vocab_size")), int(config.need("max_position_embeddings")), layers,
        int(config.need("hidden_size")), heads, int(config.get("num_key_value_heads", heads)),
        int(config.need("intermediate_size")), tied=bool(config.get("tie_word_embeddings", kind == "smollm3")),
        head=int(config.get("head_dim", 128 if kind == "qwen3" else 0)), rotary=_rotary(config), biases=biases,
        order="after" if kind == "olmo2" else "before",
        query_norm={"olmo2": "whole", "qwen3": "head"}.get(kind, "none"),  # pyright: ignore[reportArgumentType]
        windows=_windows(config, layers, unturned), unturned=unturned,
        epsilon=float(config.get("rms_norm_eps", 1e-5 if kind == "olmo2" else 1e-6)),
    )  # fmt: skip


def _llama_leaves(shape: Shape) -> list[Leaf]:
    ours, theirs = "blocks/{i}", "model.layers.{i}"
    before, between = ("input_layernorm", "post_attention_layernorm")
    if shape.order == "after":
        before, between = ("post_attention_layernorm", "post_feedforward_layernorm")
    leaves = [
        Leaf("embedding", "model.embed_tokens.weight"),
        *norm_leaves("last", "model.norm", False),
        *norm_leaves(f"{ours}/before", f"{theirs}.{before}", False),
        *norm_leaves(f"{ours}/between", f"{theirs}.{between}", False),
        *linear_leaves(f"{ours}/attention/out", f"{theirs}.self_attn.o_proj", shape.biased("out")),
    ]
    for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
        leaves += linear_leaves(f"{ours}/attention/{name}", f"{theirs}.self_attn.{short}_proj", shape.biased("query"))
        if shape.query_norm != "none" and name != "value":
            leaves += norm_leaves(f"{ours}/attention/{name}_norm", f"{theirs}.self_attn.{short}_norm", False)
    for name in ("gate", "up", "down"):
        leaves += linear_leaves(f"{ours}/feedforward/{name}", f"{theirs}.mlp.{name}_proj", shape.biased("mlp"))
    return leaves if shape.tied else [*leaves, *linear_leaves("head", "lm_head", False)]


def _gpt2(config: Config) -> Shape:
    for name, allowed in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False),
                          ("reorder_and_upcast_attn", False), ("add_cross_attention", False)):  # fmt: skip
        config.only(name, allowed)
    width = int(config.need("n_embd", "hidden_size"))
    return Shape(
        int(config.need("vocab_size")), int(config.need("n_positions", "max_position_embeddings")),
        int(config.need("n_layer", "num_hidden_layers")), width, int(config.need("n_head", "num_attention_heads")),
        hidden=int(config.get("n_inner") or 4 * width), positions="learned", norm="layer",
        mlp=config.choice("activation_function", ACTS, "gelu_new"), tied=bool(config.get("tie_word_embeddings", True)),
        biases=("query", "out", "mlp"), epsilon=float(config.get("layer_norm_epsilon", 1e-5)),
    )  # fmt: skip


def _gpt2_leaves(shape: Shape) -> list[Leaf]:
    """Its layers hold `[in, out]`, and query, key and value side by side."""
    ours, theirs = "blocks/{i}", "transformer.h.{i}"
    leaves = [
        Leaf("embedding", "transformer.wte.weight"),
        Leaf("position", "transformer.wpe.weight"),
        *norm_leaves("last", "transformer.ln_f", True),
        *norm_leaves(f"{ours}/before", f"{theirs}.ln_1", True),
        *norm_leaves(f"{ours}/between", f"{theirs}.ln_2", True),
    ]
    for part, name in enumerate(("query", "key", "value")):
        both: Any = {"part": part, "parts": 3}
        leaves.append(Leaf(f"{ours}/attention/{name}/kernel", f"{theirs}.attn.c_attn.weight", along=1, **both))
        leaves.append(Leaf(f"{ours}/attention/{name}/bias", f"{theirs}.attn.c_attn.bias", **both))
    plain = {"attention/out": "attn.c_proj", "feedforward/up": "mlp.c_fc", "feedforward/down": "mlp.c_proj"}
    for mine, its in plain.items():
        leaves.append(Leaf(f"{ours}/{mine}/kernel", f"{theirs}.{its}.weight"))
        leaves.append(Leaf(f"{ours}/{mine}/bias", f"{theirs}.{its}.bias"))
    return leaves if shape.tied else [*leaves, *linear_leaves("head", "lm_head", False)]


def _neox(config: Config) -> Shape:
    parallel = bool(config.get("use_parallel_residual", True))
    biases = ("query", "out", "mlp") if config.get("attention_bias", True) else ("mlp",)
    return Shape(
        int(config.need("vocab_size")), int(config.need("max_position_embeddings")),
        int(config.need("num_hidden_layers")), int(config.need("hidden_size")),
        int(config.need("num_attention_heads")), hidden=int(config.need("intermediate_size")), norm="layer",
        mlp=config.choice("hidden_act", ACTS, "gelu"), tied=bool(config.get("tie_word_embeddings", False)),
        order="parallel" if parallel else "before", rotary=_rotary(config, float(config.get("rotary_pct", 0.25))),
        biases=biases, epsilon=float(config.get("layer_norm_eps", 1e-5)),
    )  # fmt: skip


def _neox_leaves(shape: Shape) -> list[Leaf]:
    """Query, key and value side by side in each head."""
    ours, theirs = "blocks/{i}", "gpt_neox.layers.{i}"
    leaves = [
        Leaf("embedding", "gpt_neox.embed_in.weight"),
        *norm_leaves("last", "gpt_neox.final_layer_norm", True),
        *norm_leaves(f"{ours}/before", f"{theirs}.input_layernorm", True),
        *norm_leaves(f"{ours}/between", f"{theirs}.post_attention_layernorm", True),
        *linear_leaves(f"{ours}/attention/out", f"{theirs}.attention.dense", shape.biased("out")),
        *linear_leaves(f"{ours}/feedforward/up", f"{theirs}.mlp.dense_h_to_4h", True),
        *linear_leaves(f"{ours}/feedforward/down", f"{theirs}.mlp.dense_4h_to_h", True),
    ]
    for part, name in enumerate(("query", "key", "value")):
        cut: Any = {"part": part, "parts": 3, "heads": shape.heads}
        at = f"{theirs}.attention.query_key_value"
        leaves.append(Leaf(f"{ours}/attention/{name}/kernel", f"{at}.weight", (1, 0), **cut))
        if shape.biased("query"):
            leaves.append(Leaf(f"{ours}/attention/{name}/bias", f"{at}.bias", **cut))
    return leaves if shape.tied else [*leaves, *linear_leaves("head", "embed_out", False)]


def _tied(name: str, embedding: str) -> Any:
    return lambda shape: {name: embedding} if shape.tied else {}


def _task(graph: Any, _state: Any, _choice: Any) -> Any:
    return task_of(graph)


_LLAMAS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
}
FAMILIES = (
    Family(
        tuple(_LLAMAS), tuple(_LLAMAS.values()), _llama, Decoder, _llama_leaves, _task,
        ignored=(r".*\.rotary_emb\.inv_freq",), tied=_tied("lm_head.weight", "model.embed_tokens.weight"),
    ),
    Family(
        ("gpt2",), ("GPT2LMHeadModel",), _gpt2, Decoder, _gpt2_leaves, _task, "transformer.",
        (r".*\.attn\.(bias|masked_bias)",), _tied("lm_head.weight", "transformer.wte.weight"),
    ),
    Family(
        ("gpt_neox",), ("GPTNeoXForCausalLM",), _neox, Decoder, _neox_leaves, _task, "gpt_neox.",
        (r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
        _tied("embed_out.weight", "gpt_neox.embed_in.weight"),
    ),
)  # fmt: skip
