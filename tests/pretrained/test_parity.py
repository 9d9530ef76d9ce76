"""Models of others: the logits of torch and transformers, the tensors given back bit for bit, on a mesh as well."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import uimjax as uj
from tests.pretrained.folders import REFERENCE, state, write
from tests.pretrained.reference import COUNTED, KINDS, PIXELS, TOKENS
from uimjax.errors import MismatchError, OutputError
from uimjax.pretrained import loading
from uimjax.pretrained.base import Config


def examples(name):
    if name.startswith(("vit", "resnet")):
        return {"image": PIXELS}
    if "bert" in name:
        return {"tokens": TOKENS, "counted": COUNTED, "kinds": KINDS}
    return {"tokens": TOKENS}


def logits(model, rows=None):
    every = jax.jit(jax.vmap(model.task.outputs, in_axes=(None, 0)))
    return np.asarray(every(model.params, {"tokens": TOKENS} if rows is None else rows), np.float64)


@pytest.mark.parametrize("name", REFERENCE)
def test_logits_are_those_of_transformers_and_the_way_back_gives_the_same_tensors(name, tmp_path):
    model, rows = uj.load(write(tmp_path / "a", name)), examples(name)
    found = logits(model, rows)
    few = found[:, ::3, ::4] if found.ndim == 3 else found
    want = np.asarray(REFERENCE[name]["logits"])
    assert few.shape == want.shape
    np.testing.assert_allclose(few, want, atol=1e-4, rtol=1e-4)
    uj.save(model, tmp_path / "b")
    back, held = load_file(tmp_path / "b" / "model.safetensors"), state(name)
    assert set(back) == set(held)
    for key, x in held.items():
        np.testing.assert_array_equal(back[key], x, err_msg=key)
    again = json.loads((tmp_path / "b" / "config.json").read_text())
    assert again == {k: v for k, v in REFERENCE[name]["config"].items() if k != "dtype"} | {"dtype": "float32"}
    np.testing.assert_array_equal(logits(uj.load(tmp_path / "b"), rows), found)


@pytest.mark.parametrize("name", ["gpt2", "neox", "mistral", "smollm3", "olmo2"])
def test_stacked_sharded_and_in_several_files_it_is_the_same_model(name, tmp_path):
    plain = uj.load(write(tmp_path / "one", name))
    mesh = uj.make_mesh(data=2, model=4)
    stacked = uj.load(write(tmp_path / "three", name, files=3), mesh=mesh, scanned=True, remat=True)
    shards = [leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in jax.tree.leaves(stacked.params)]
    assert sum(shards) > 0.7 * len(shards)
    np.testing.assert_allclose(logits(stacked), logits(plain), rtol=2e-5, atol=2e-5)
    uj.save(stacked, tmp_path / "back", most=4000)
    names = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert len(names) > 2
    assert names[-1] == f"model-{len(names):05d}-of-{len(names):05d}.safetensors"
    back = {key: x for file in names for key, x in load_file(tmp_path / "back" / file).items()}
    for key, x in state(name).items():
        np.testing.assert_array_equal(back[key], x, err_msg=key)
    np.testing.assert_allclose(logits(uj.load(tmp_path / "back")), logits(plain), rtol=1e-6, atol=1e-6)


def test_bare_models_older_names_and_tensors_that_are_no_parameters(tmp_path):
    want = logits(uj.load(write(tmp_path / "a", "gpt2")))
    held = {key.removeprefix("transformer."): x for key, x in state("gpt2").items()}
    held["h.0.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.float32))
    held["lm_head.weight"] = held["wte.weight"].copy()
    bare = write(tmp_path / "b", "gpt2")
    save_file(held, bare / "model.safetensors")
    np.testing.assert_array_equal(logits(uj.load(bare)), want)


def test_the_names_of_older_berts_and_heads_that_came_along(tmp_path):
    rows = examples("bert_masked")
    want = logits(uj.load(write(tmp_path / "a", "bert_masked")), rows)
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    held = {}
    for key, x in state("bert_masked").items():
        end = next((new for new in older if key.endswith(new)), "")
        held[key.removesuffix(end) + older[end] if end else key] = x
    held |= {"bert.pooler.dense.weight": np.zeros((16, 16), np.float32), "cls.seq_relationship.bias": np.zeros(2)}
    held["cls.predictions.decoder.weight"] = held["bert.embeddings.word_embeddings.weight"].copy()
    save_file(held, write(tmp_path / "b", "bert_masked") / "model.safetensors")
    model = uj.load(tmp_path / "b")
    np.testing.assert_array_equal(logits(model, rows), want)
    back = load_file(uj.save(model, tmp_path / "c") / "model.safetensors")
    np.testing.assert_array_equal(back["bert.pooler.dense.weight"], 0)
    assert "bert.embeddings.LayerNorm.weight" in back
    np.testing.assert_array_equal(logits(uj.load(tmp_path / "c"), rows), want)


def test_an_architecture_that_is_named_without_a_list_is_the_same(tmp_path):
    rows = examples("bert_masked")
    want = logits(uj.load(write(tmp_path / "a", "bert_masked")), rows)
    found = uj.load(write(tmp_path / "b", "bert_masked", architectures="BertForMaskedLM"))
    np.testing.assert_array_equal(logits(found, rows), want)


def test_two_folders_of_one_shape_share_their_task_and_the_module_is_flax(tmp_path):
    one, two = uj.load(write(tmp_path / "a", "llama")), uj.load(write(tmp_path / "b", "llama"))
    assert one.task is two.task
    module = one.module()
    assert isinstance(module, nnx.Module)
    np.testing.assert_allclose(module(TOKENS[0]), logits(one)[0], rtol=1e-4, atol=1e-4)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("llama3_scaled", {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                           "high_freq_factor": 4.0, "original_max_position_embeddings": 8}}),
        ("llama_yarn", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
        ("llama_biased", {"rope_theta": 10000, "rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
        ("neox", {"rotary_pct": 0.5, "rotary_emb_base": 10000}),
        ("qwen2", {"layer_types": None}),
        ("smollm3", {"layer_types": None, "rope_theta": 2e6}),
        ("olmo2", {"rope_theta": 10000.0, "rope_scaling": None}),
    ],
)  # fmt: skip
def test_the_older_spelling_of_a_config_is_the_same_model(name, older, tmp_path):
    if name == "smollm3":
        older = older | {"rope_theta": REFERENCE[name]["config"]["rope_parameters"]["rope_theta"]}
    model = uj.load(write(tmp_path, name, **({"rope_parameters": None, "torch_dtype": "float32"} | older)))
    np.testing.assert_allclose(logits(model)[:, ::3, ::4], REFERENCE[name]["logits"], atol=1e-4, rtol=1e-4)


HUB = {
    "mistral, left out": ({"model_type": "mistral"}, (4096,) * 32),
    "mistral 0.3": ({"model_type": "mistral", "sliding_window": None}, ()),
    "qwen 2.5": ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 131072,
                  "max_window_layers": 28}, ()),
    "qwen, saved again": ({"model_type": "qwen3", "use_sliding_window": False, "sliding_window": 4096,
                           "layer_types": ["sliding_attention"] * 32}, ()),
    "qwen with windows": ({"model_type": "qwen2", "use_sliding_window": True}, (0,) * 28 + (4096,) * 4),
    "smollm": ({"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 512,
                "no_rope_layers": [1, 1, 1, 0] * 9}, (0, 0, 0, 512) * 8),
    "llama": ({"model_type": "llama", "sliding_window": 4096, "pretraining_tp": 1}, ()),
}  # fmt: skip


@pytest.mark.parametrize(("values", "windows"), HUB.values(), ids=HUB)
def test_windows_are_read_by_each_familys_own_rule(values, windows):
    sizes = {"vocab_size": 9, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 32,
             "num_attention_heads": 4, "max_position_embeddings": 8}  # fmt: skip
    family = loading.family_of(values, "here")
    assert family.read(Config(sizes | values, "here")).windows == windows


def test_parameters_that_are_mitigated_are_saved_and_those_of_another_model_refused(tmp_path):
    model = uj.load(write(tmp_path / "a", "llama", words=61))
    moved = jax.tree.map(lambda x: x + 0.01, model.params)
    uj.save(model, tmp_path / "b", moved)
    other = uj.load(tmp_path / "b")
    assert other.tokenizer is not None
    assert other.tokenizer.encode("w3 w5").ids == [3, 5]
    for a, b in zip(jax.tree.leaves(other.params), jax.tree.leaves(moved), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(OutputError, match="holds a checkpoint already"):
        uj.save(model, tmp_path / "b")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="holds a checkpoint already"):
        uj.save(model, tmp_path / "d")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / ".tmp-01234567-model.safetensors").write_bytes(b"half")
    uj.save(model, tmp_path / "e")
    with pytest.raises(MismatchError, match="not of the model"):
        uj.save(model, tmp_path / "c", uj.load(write(tmp_path / "q", "qwen3")).params)


def test_half_precision_is_read_as_it_lies_or_as_asked(tmp_path):
    folder = write(tmp_path, "llama")
    for kind, want in ((jnp.bfloat16, jnp.bfloat16), (np.float16, jnp.float32)):
        save_file({key: x.astype(kind) for key, x in state("llama").items()}, folder / "model.safetensors")
        model = uj.load(folder)
        assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype(want)}
        scale = np.abs(REFERENCE["llama"]["logits"]).max()
        np.testing.assert_allclose(logits(model)[:, ::3, ::4], REFERENCE["llama"]["logits"], atol=0.05 * scale)
    asked = uj.load(folder, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(asked.params)} == {jnp.dtype(jnp.bfloat16)}


def test_gradients_of_every_example_are_those_of_the_loss(tmp_path):
    model = uj.load(write(tmp_path, "qwen3"), scanned=True)
    rows = {"tokens": TOKENS.astype(np.int32), "counted": np.ones(TOKENS.shape, np.float32)}
    found = uj.per_example_gradients(model.task, model.params, rows)
    each = jax.vmap(jax.grad(lambda p, r: model.task.loss(p, r).sum()), in_axes=(None, 0))
    want = jax.jit(each)(model.params, rows)
    for path, leaf in jax.tree_util.tree_flatten_with_path(want)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(found[name], leaf, rtol=2e-3, atol=2e-4, err_msg=name)
