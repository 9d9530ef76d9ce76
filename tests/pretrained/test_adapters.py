"""LoRA adapters: the logits of the merged model, gradients of the adapter alone, and the way back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import uimjax as uj
from tests.pretrained.folders import state, write
from tests.pretrained.reference import TOKENS, drawn
from uimjax.errors import MismatchError, MissingFileError, OutputError, UnsupportedModelError

CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], "bias": "none"}  # fmt: skip  # noqa: E501
NAMES = {"self_attn.q_proj": (16, 16), "self_attn.v_proj": (16, 8), "mlp.down_proj": (24, 16)}


def adapter(folder, layers=2, **changed):
    """As peft writes it, of numbers from a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | changed
    (folder / "adapter_config.json").write_text(json.dumps(config))
    held = {}
    for k in range(layers):
        for name, (size, out) in NAMES.items():
            if name.rsplit(".", 1)[1] in config["target_modules"]:
                at = f"base_model.model.model.layers.{k}.{name}"
                held[f"{at}.lora_A.weight"] = drawn(f"{at}.A", (config["r"], size))
                held[f"{at}.lora_B.weight"] = drawn(f"{at}.B", (out, config["r"]))
    save_file(held, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder, held


def merged(folder, held, scale):
    """The base with `scale B A` added to its matrices."""
    base = state("llama")
    for name, x in held.items():
        if name.endswith("lora_A.weight"):
            at = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            base[at] = base[at] + np.float32(scale) * held[name.replace("lora_A", "lora_B")] @ x
    write(folder, "llama")
    save_file(base, folder / "model.safetensors", {"format": "pt"})
    return folder


def logits(model):
    return np.asarray(jax.vmap(model.task.outputs, (None, 0))(model.params, {"tokens": TOKENS}))


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 6 / np.sqrt(3))])
def test_logits_are_those_of_the_merged_model(tmp_path, rslora, scale):
    folder, held = adapter(tmp_path / "adapter", use_rslora=rslora)
    base = write(tmp_path / "base", "llama")
    whole = uj.load(merged(tmp_path / "merged", held, scale))
    for how in ({}, {"scanned": True}, {"mesh": uj.make_mesh(data=4, model=2)}):
        found = uj.load(base, adapter=folder, **how)
        np.testing.assert_allclose(logits(found), logits(whole), rtol=2e-5, atol=2e-5)
    assert not np.allclose(logits(whole), logits(uj.load(base)), atol=1e-2)


def test_the_adapter_alone_is_attributed(tmp_path):
    folder, held = adapter(tmp_path / "adapter")
    model = uj.load(write(tmp_path / "base", "llama"), adapter=folder)
    rows = {"tokens": TOKENS.astype(np.int32), "counted": np.ones(TOKENS.shape, np.float32)}
    gradients = uj.per_example_gradients(model.task, model.params, rows)
    assert len(gradients) == 12
    assert all("lora_" in path for path in gradients)
    whole = jax.vmap(jax.grad(lambda p, row: model.task.loss(p, row).sum()), (None, 0))(model.params, rows)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(whole)[0]}  # fmt: skip
    for path, leaf in gradients.items():
        np.testing.assert_allclose(leaf, flat[path], rtol=1e-4, atol=1e-5)
    width = sum(x.size for x in held.values())
    scores = uj.score(model.task, model.params, rows, uj.Measurement("f", lambda p, r: -model.task.loss(p, r).sum()),
                      jax.tree.map(lambda x: x[:1], rows), "grad_dot")  # fmt: skip
    first = np.concatenate([np.asarray(x[0]).ravel() for x in gradients.values()])
    assert first.size == width
    np.testing.assert_allclose(scores.values[0, 0], first @ first, rtol=1e-4)


def test_the_way_back_gives_the_same_tensors(tmp_path):
    folder, held = adapter(tmp_path / "adapter")
    model = uj.load(write(tmp_path / "base", "llama"), adapter=folder, scanned=True)
    uj.save(model, tmp_path / "back")
    again = load_file(tmp_path / "back" / "adapter_model.safetensors")
    assert set(again) == set(held)
    for name, x in held.items():
        np.testing.assert_array_equal(again[name], x)
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text()) == CONFIG | {}
    moved = jax.tree.map(lambda x: x + 1, model.params)
    uj.save(model, tmp_path / "moved", moved)
    assert not np.array_equal(load_file(tmp_path / "moved" / "adapter_model.safetensors")[name], held[name])
    with pytest.raises(OutputError, match="holds an adapter already"):
        uj.save(model, tmp_path / "back")


def test_targets_by_pattern_and_all_linear(tmp_path):
    folder, _ = adapter(tmp_path / "a", target_modules=["q_proj", "v_proj"])
    config = CONFIG | {"target_modules": r".*layers\.\d+\.self_attn\.(q|v)_proj"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    base = write(tmp_path / "base", "llama")
    model = uj.load(base, adapter=folder)
    assert model.choice.lora.parts == ("query", "value")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"target_modules": "all-linear"}))
    with pytest.raises(MismatchError, match="lacks 20 tensors"):
        uj.load(base, adapter=folder)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"peft_type": "IA3"}, "IA3 is not built here; LORA is"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"target_modules": ["c_attn"]}, "target_modules .* are none of down_proj, gate_proj, k_proj"),
    ],
)
def test_variants_that_change_the_numbers_are_refused(tmp_path, changed, words):
    folder, _ = adapter(tmp_path / "adapter", **changed)
    with pytest.raises(UnsupportedModelError, match=words):
        uj.load(write(tmp_path / "base", "llama"), adapter=folder)


def test_other_models_and_missing_files(tmp_path):
    folder, _ = adapter(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"target_modules": ["c_attn"]}))
    with pytest.raises(UnsupportedModelError, match="3 layers in one, and an adapter on all of them is not"):
        uj.load(write(tmp_path / "gpt2", "gpt2"), adapter=folder)
    with pytest.raises(UnsupportedModelError, match="adapters are read for decoders; this is a vit"):
        uj.load(write(tmp_path / "vit", "vit"), adapter=folder)
    more, _ = adapter(tmp_path / "more", layers=3)
    with pytest.raises(MismatchError, match=r"has no place for, first base_model\.model\.model\.layers\.2\."):
        uj.load(write(tmp_path / "base", "llama"), adapter=more)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"has no adapter_model\.safetensors"):
        uj.load(tmp_path / "base", adapter=folder)


def test_a_float16_adapter_is_read_as_float32(tmp_path):
    folder, held = adapter(tmp_path / "adapter")
    save_file({name: x.astype(np.float16) for name, x in held.items()}, folder / "adapter_model.safetensors")
    model = uj.load(write(tmp_path / "base", "llama"), adapter=folder)
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.float32)}


def test_a_base_of_fewer_digits_keeps_its_own(tmp_path):
    folder, held = adapter(tmp_path / "adapter")
    base = write(tmp_path / "base", "llama")
    for scanned in (False, True):
        model = uj.load(base, adapter=folder, scanned=scanned)
        mixed = jax.tree_util.tree_map_with_path(
            lambda path, x: x if "lora" in jax.tree_util.keystr(path) else x.astype(jnp.bfloat16), model.params
        )
        found = model.task.outputs(mixed, {"tokens": TOKENS[0]})
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(np.float32), logits(model)[0], atol=0.3)


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"), ({"r": 0}, "r is 0"), ({"r": None}, "r is None"),
     ({"target_modules": "("}, "is no pattern")],
)  # fmt: skip
def test_configs_that_are_odd_are_refused(tmp_path, changed, words):
    folder, _ = adapter(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changed))
    with pytest.raises(UnsupportedModelError, match=words):
        uj.load(write(tmp_path / "base", "llama"), adapter=folder)
