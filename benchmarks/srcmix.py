"""Decoders trained from scratch on real documents of seven sources, as the benchmarks of text ask for them."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import uimjax as uj
from uimjax.corpora.prepared import Prepared
from uimjax.corpora.preparing import prepare
from uimjax.corpora.texts import Columns
from uimjax.pretrained.loading import Pretrained

WORDS, LENGTH = 2048, 128
Line = dict[str, Any]


class Study(NamedTuple):
    """A corpus on disk, the document of each of its rows, and a model with random weights to train on it."""

    folder: Path
    documents: list[Line]
    corpus: Prepared
    owner: np.ndarray
    model: Pretrained

    @property
    def rows(self) -> dict[str, np.ndarray]:
        return self.corpus.rows


def sources(data: Path, per: int, length: int, seed: int = 0) -> dict[str, list[Line]]:
    """`per` documents of each source, the first `length` characters of each."""
    rng = np.random.default_rng(seed)
    table = pq.read_table(data / "lm_srcmix" / "docs.parquet").to_pylist()
    made = {}
    for source in sorted({line["source"] for line in table}):
        mine = [line for line in table if line["source"] == source and line["n_chars"] >= length]
        chosen = rng.permutation(len(mine))[:per]
        made[source] = [{"id": mine[k]["doc_id"], "source": source, "text": mine[k]["text"][:length]} for k in chosen]
    return made


def facts(data: Path) -> list[Line]:
    """The fictional passages with their probes."""
    with gzip.open(data / "fact_fictional_knowledge" / "fictional_knowledge.json.gz") as held:
        return json.load(held)


def bpe(texts: Iterable[str], words: int = WORDS) -> Tokenizer:
    """A byte-level BPE of the texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(vocab_size=words, show_progress=False, initial_alphabet=alphabet)  # pyright: ignore[reportCallIssue]
    made.train_from_iterator(texts, trainer)
    return made


def config(layers: int, width: int, words: int = WORDS) -> dict[str, Any]:
    """A Llama of that size, as a checkpoint folder has it."""
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": words, "hidden_size": width,
        "intermediate_size": 8 * width // 3 // 16 * 16, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 512, "tie_word_embeddings": True, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    }  # fmt: skip


def study(folder: Path, documents: list[Line], layers: int, width: int, seed: int = 0) -> Study:
    """Files as a user has them (JSON lines, config.json, tokenizer.json), the corpus prepared, the model made."""
    start = folder / "start"
    start.mkdir(parents=True, exist_ok=True)
    lines = folder / "documents.jsonl"
    lines.write_text("".join(json.dumps(line) + "\n" for line in documents))
    if not (start / "config.json").exists():
        bpe(line["text"] for line in documents).save(str(start / "tokenizer.json"))
        (start / "config.json").write_text(json.dumps(config(layers, width)))
    model = uj.initial(start, seed)
    assert model.tokenizer is not None
    corpus = prepare([lines], model.tokenizer, folder / "corpus", length=LENGTH, columns=Columns(id="id"))
    return Study(folder, documents, corpus, np.asarray(corpus.metadata()["document"]), model)
