"""Folders in a wrong state: each gets its cure, before anything is compiled."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import uimjax as uj
from tests.pretrained.folders import state, write
from uimjax.errors import CorruptError, MismatchError, MissingFileError, ShapeError, UnsupportedModelError
from uimjax.pretrained.words import need_tokenizer, read_tokenizer


def test_what_is_no_folder_or_no_checkpoint(tmp_path):
    write(tmp_path / "pythia", "neox")
    with pytest.raises(MissingFileError, match=r"pyhtia is not a folder.*holds pythia"):
        uj.load(tmp_path / "pyhtia")
    with pytest.raises(MissingFileError, match=r"no config\.json \(it holds pythia\)"):
        uj.load(tmp_path)
    (tmp_path / "pythia" / "config.json").write_text("{")
    with pytest.raises(CorruptError, match="is not JSON"):
        uj.load(tmp_path / "pythia")
    (tmp_path / "pythia" / "config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="names no model_type"):
        uj.load(tmp_path / "pythia")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model_type": "lama"}, "Did you mean 'llama'"),
        ({"model_type": "mamba"}, "a Flax module of your own"),
        ({"model_type": None}, "names no model_type"),
        ({"vocab_size": "many"}, "cannot be read as that of a llama"),
        ({"num_attention_heads": 3}, "does not divide over 3 heads|cannot share"),
        ({"architectures": "LlamaForTokens"}, "the architecture is LlamaForTokens;"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]; a dictionary was wanted"),
        ({"rope_parameters": {"rope_type": "linear"}}, "want a number factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "want a number low_freq_factor"),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"rope_theta": 2e4}}, "disagree on rope_theta"),
        ({"partial_rotary_factor": 0.5}, "of which 0.5 of a head turns"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "the architecture is LlamaForSequenceClassification"),
        ({"hidden_act": "relu2"}, "hidden_act is 'relu2'"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "of type 'longrope'"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
    ],
)
def test_choices_that_are_not_built_are_refused(changed, words, tmp_path):
    with pytest.raises(UnsupportedModelError, match=words):
        uj.load(write(tmp_path, "llama", **changed))


def test_a_choice_of_gpt2_that_changes_its_numbers_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="scale_attn_by_inverse_layer_idx is True"):
        uj.load(write(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=True))


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("bert", {"problem_type": "multi_label_classification"}, "problem_type is 'multi_label"),
        ("vit", {"id2label": {"0": "only"}}, "a head of 1 output is a regression"),
        ("resnet", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("bert_masked", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "a mistral with layer_types"),
    ],
)
def test_heads_and_layers_that_would_be_others_are_refused(name, changed, words, tmp_path):
    with pytest.raises(UnsupportedModelError, match=words):
        uj.load(write(tmp_path, name, **changed))


def test_a_head_that_is_not_the_embedding_it_is_said_to_be(tmp_path):
    with pytest.raises(
        MismatchError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight, and the two hold other"
    ):
        uj.load(write(tmp_path, "llama", tie_word_embeddings=True))


def test_rows_longer_than_the_positions_are_refused(tmp_path):
    for name, most in (("gpt2", 32), ("bert", 20), ("roberta", 18)):
        model = uj.load(write(tmp_path / name, name))
        row = {"tokens": np.zeros(most + 1, np.int32)}
        with pytest.raises(ShapeError, match=f"a row of {most + 1} tokens; this model has {most} positions"):
            jax.eval_shape(model.task.outputs, model.params, row)
        assert jax.eval_shape(model.task.outputs, model.params, {"tokens": np.zeros(most, np.int32)}).ndim


def test_weights_that_are_pickled_missing_or_cut_short(tmp_path):
    folder = write(tmp_path / "m", "llama", files=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"lacks 1 of the 3 files.*model-00002-of-00003"):
        uj.load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(MissingFileError, match="no model.safetensors.index.json to say which belong together"):
        uj.load(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UnsupportedModelError, match=r"holds pytorch_model\.bin.*convert them once"):
        uj.load(folder)
    whole = write(tmp_path / "w", "llama") / "model.safetensors"
    data = whole.read_bytes()
    for cut in (data[:100], data[:-4], b"", data[:8] + b"x" + data[9:]):
        whole.write_bytes(cut)
        with pytest.raises(CorruptError, match="damaged or cut short"):
            uj.load(tmp_path / "w")


def test_an_index_that_lies_or_points_elsewhere(tmp_path):
    folder = write(tmp_path, "llama", files=2)
    path = folder / "model.safetensors.index.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({"weight_map": good["weight_map"] | {"more": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CorruptError, match="disagree about more"):
        uj.load(folder)
    path.write_text(json.dumps({"weight_map": {"a": 3}}))
    with pytest.raises(CorruptError, match="no weight_map of files"):
        uj.load(folder)
    path.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(CorruptError, match="outside its folder"):
        uj.load(folder)


def test_tensors_that_do_not_fit_the_config(tmp_path):
    held = state("llama")
    folder = write(tmp_path, "llama")
    wide = held["model.layers.1.mlp.up_proj.weight"]
    save_file(held | {"model.layers.1.mlp.up_proj.weight": wide[:-1]}, folder / "model.safetensors")
    with pytest.raises(ShapeError, match=r"up_proj\.weight is \[23, 16\] and its config makes it \[24, 16\]"):
        uj.load(folder)
    save_file(held | {"model.layers.1.mlp.router.weight": wide}, folder / "model.safetensors")
    with pytest.raises(MismatchError, match=r"no place for, first model\.layers\.1\.mlp\.router"):
        uj.load(folder)
    save_file({key: x for key, x in held.items() if "1.mlp.up" not in key}, folder / "model.safetensors")
    with pytest.raises(MismatchError, match=r"lacks 1 tensors.*first model\.layers\.1\.mlp\.up_proj"):
        uj.load(folder)
    save_file(held | {"model.norm.weight": np.ones(16, np.int32)}, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight is of I32"):
        uj.load(folder)


def test_tokenizers_that_are_missing_damaged_or_of_another_model(tmp_path):
    none = uj.load(write(tmp_path / "none", "llama"))
    assert none.tokenizer is None
    with pytest.raises(MissingFileError, match=r"no tokenizer\.json.*AutoTokenizer"):
        need_tokenizer(none.tokenizer, none.folder)
    with pytest.raises(MismatchError, match=r"knows id 69 \('w69'\) and the model has 61 words"):
        uj.load(write(tmp_path / "more", "llama", words=70))
    assert uj.load(write(tmp_path / "fewer", "llama", words=50)).tokenizer is not None, "embeddings may be padded"
    (tmp_path / "fewer" / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptError, match="tokenizer in .* cannot be read"):
        uj.load(tmp_path / "fewer")


def test_the_older_pair_of_gpt2_is_a_tokenizer(tmp_path, reference_data):
    folder = write(tmp_path, "gpt2")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((reference_data / "tok_gpt2" / f"gpt2_{name}").read_bytes())
    with pytest.raises(MismatchError, match="the model has 61 words"):
        uj.load(folder)
    found = read_tokenizer(folder, 50257, older=True)
    assert found is not None
    text = "Hello world, it's 2026!"
    assert found.encode(text).ids[:2] == [15496, 995]
    assert found.decode(found.encode(text).ids) == text
    assert found.encode("<|endoftext|>").ids == [50256]
    assert read_tokenizer(folder, 50257) is None, "the same files of another family are cut otherwise"


def test_a_model_with_random_weights_needs_none_in_the_folder(tmp_path):
    folder = write(tmp_path / "model", "llama", words=61)
    (folder / "model.safetensors").unlink()
    one, again, other = (uj.initial(folder, seed) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one.params, again.params))
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one.params, other.params))
    uj.save(one, tmp_path / "saved")
    back = uj.load(tmp_path / "saved")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one.params, back.params))
    assert back.tokenizer is not None
    split = uj.initial(folder, mesh=uj.make_mesh(data=2, model=4), dtype=jnp.bfloat16, scanned=True)
    assert {x.dtype for x in jax.tree.leaves(split.params)} == {jnp.dtype(jnp.bfloat16)}
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(split.params))


def test_running_means_are_not_made_up(tmp_path):
    folder = write(tmp_path / "model", "resnet")
    with pytest.raises(UnsupportedModelError, match="running means are no parameters"):
        uj.load(folder, checkpoint=tmp_path)
