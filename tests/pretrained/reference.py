"""Small models of every family: configs, weights drawn from their names, and what transformers makes of them.

The logits in `reference.json` are those of torch and transformers: `python -m tests.pretrained.reference` writes it
again where both are installed (`python3 -m pip install torch==2.13.0 transformers`). Nothing else here needs them.
"""

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("reference.json")
TOKENS = np.random.default_rng(7).integers(3, 61, size=(2, 14))
COUNTED = np.arange(14)[None, :] < np.array([[14], [9]])  # encoders see no further
KINDS = (np.arange(14)[None, :] >= np.array([[6], [4]])).astype(np.int64)
PIXELS = np.random.default_rng(8).normal(size=(2, 8, 8, 3)).astype(np.float32)
LLAMA = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
NEOX = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "rotary_pct": 0.5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
RAMP = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 4096,
        "beta_fast": 24.0, "beta_slow": 2.0}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
BERT = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "max_position_embeddings": 20}  # fmt: skip
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "image_size": 8,
       "patch_size": 4, "num_labels": 3}  # fmt: skip
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "layer_type": "basic", "num_labels": 3}
WORDS, CLASSES, MASKED, IMAGES = (
    "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
)  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("gpt2", WORDS, GPT2),
    "gpt2_untied": ("gpt2", WORDS, GPT2 | {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 20}),
    "neox": ("gpt_neox", WORDS, NEOX),
    "neox_in_turn": ("gpt_neox", WORDS, NEOX | {"use_parallel_residual": False, "hidden_act": "gelu_new",
                                                "rotary_pct": 1.0}),
    "llama": ("llama", WORDS, LLAMA),
    "llama3_scaled": ("llama", WORDS, LLAMA | {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 8}),
    "llama_biased": ("llama", WORDS, LLAMA | {"attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR,
                                              "num_key_value_heads": 4}),
    "llama_yarn": ("llama", WORDS, LLAMA | {"rope_parameters": YARN, "num_key_value_heads": 1}),
    "llama_ramp": ("llama", WORDS, LLAMA | {"rope_parameters": RAMP, "head_dim": 32, "max_position_embeddings": 65536}),
    "llama_ramp_between": ("llama", WORDS, LLAMA | {"rope_parameters": RAMP | {"truncate": False, "factor": 40.0,
                           "attention_factor": 0.7}, "head_dim": 32, "max_position_embeddings": 65536}),
    "mistral": ("mistral", WORDS, LLAMA | {"sliding_window": 5}),
    "qwen2": ("qwen2", WORDS, LLAMA | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", WORDS, LLAMA | {"head_dim": 8, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", WORDS, LLAMA | {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 0, 1]}),
    "olmo2": ("olmo2", WORDS, LLAMA),
    "bert": ("bert", CLASSES, BERT | {"num_labels": 3}),
    "bert_masked": ("bert", MASKED, BERT | {"hidden_act": "gelu_new"}),
    "roberta": ("roberta", CLASSES, BERT | {"num_labels": 3, "type_vocab_size": 2, "pad_token_id": 1}),
    "roberta_masked": ("roberta", MASKED, BERT | {"type_vocab_size": 2, "pad_token_id": 1}),
    "vit": ("vit", IMAGES, VIT),
    "vit_unbiased": ("vit", IMAGES, VIT | {"qkv_bias": False}),
    "resnet": ("resnet", IMAGES, RESNET),
    "resnet_bottleneck": ("resnet", IMAGES, RESNET | {"layer_type": "bottleneck", "downsample_in_first_stage": True}),
    "resnet_strided": ("resnet", IMAGES, RESNET | {"layer_type": "bottleneck", "downsample_in_bottleneck": True}),
}  # fmt: skip


def drawn(name: str, shape: tuple[int, ...] | list[int]) -> np.ndarray:
    """The numbers of one tensor, float32: they follow from its name and shape; norms are near one, variances above."""
    found = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    norm = any(part in name for part in ("norm", "Norm", "ln_"))
    centre = float(norm and name.endswith("weight"))
    return (0.5 + found**2 if name.endswith("running_var") else centre + 0.3 * found).astype(np.float32)


def _of(kind: str, head: str, choices: dict[str, Any]) -> dict[str, Any]:
    """What a model is called in its file, and what it says when its weights are drawn."""
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    config = transformers.AutoConfig.for_model(kind, **choices)
    make = getattr(transformers, head)
    with tempfile.TemporaryDirectory() as at:
        make.from_config(config).save_pretrained(at)
        file = Path(at) / "model.safetensors"
        shapes = {name: list(x.shape) for name, x in load_file(file).items() if "num_batches_tracked" not in name}
        save_file({name: drawn(name, shape) for name, shape in shapes.items()}, file, {"format": "pt"})
        model, told = make.from_pretrained(at, attn_implementation="eager", output_loading_info=True)
        assert not told["unexpected_keys"], told
        assert all("num_batches_tracked" in name for name in told["missing_keys"]), told
        saved = json.loads((Path(at) / "config.json").read_text())
    if head == IMAGES:
        inputs = {"pixel_values": torch.tensor(PIXELS.transpose(0, 3, 1, 2).copy())}
    else:
        inputs = {"input_ids": torch.tensor(TOKENS)}
    if head in (CLASSES, MASKED):
        inputs |= {"attention_mask": torch.tensor(COUNTED), "token_type_ids": torch.tensor(KINDS)}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.double().numpy()
    few = logits[:, ::3, ::4] if logits.ndim == 3 else logits
    return {"config": saved, "tensors": shapes, "logits": np.round(few, 6).tolist()}


def main() -> None:
    import torch
    import transformers

    made = {name: _of(*its) for name, its in MODELS.items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    FILE.write_text(json.dumps({"made_with": versions, "models": made}) + "\n")


if __name__ == "__main__":
    main()
