"""From a checkpoint folder, files of documents and a file of failures to the document that a failure comes from."""

import json

import numpy as np

import uimjax as uj
from tests.pretrained.folders import write
from uimjax import training
from uimjax.answers.failures import read_failures
from uimjax.corpora.preparing import prepare
from uimjax.pretrained.words import need_tokenizer


def test_a_failure_finds_the_document_that_says_it(tmp_path):
    model = uj.load(write(tmp_path / "model", "llama", words=61))
    tokenizer, rng = need_tokenizer(model.tokenizer, model.folder), np.random.default_rng(0)
    documents = [" ".join(f"w{k}" for k in rng.integers(3, 40, 30)) for _ in range(60)]
    documents[17] = "w41 w42 w43 w44 w45 w46 w47 w48 " + documents[17]
    with (tmp_path / "corpus.jsonl").open("w") as out:
        out.writelines(json.dumps({"text": text, "source": f"s{k % 3}"}) + "\n" for k, text in enumerate(documents))
    (tmp_path / "failures.jsonl").write_text(json.dumps({"prompt": "w41 w42 w43 ", "bad": "w44 w45", "good": "w5 w9"}))

    corpus = prepare([tmp_path / "corpus.jsonl"], tokenizer, tmp_path / "corpus", length=16)
    failures = read_failures(tmp_path / "failures.jsonl", model.task, tokenizer, 16)
    recipe = uj.Recipe(epochs=20, batch_size=16, learning_rate=1e-2, seed=0)
    params = training.fit(model.task, model.params, corpus.rows, recipe).params
    index = uj.build_index(model.task, params, corpus.rows, tmp_path / "index", coding="int8", batch_size=16)
    found = uj.trace(index, model.task, params, corpus.rows, failures.measurement, failures.rows, k=5)
    hits = found.table(corpus.metadata()).to_pylist()
    best = hits[0]
    assert (best["side"], best["id"], best["source"], best["start"]) == ("proponent", "corpus.jsonl:18", "s2", 0)
    assert corpus.texts([best["row_id"]])[0].startswith("w41 w42 w43 w44 w45")
