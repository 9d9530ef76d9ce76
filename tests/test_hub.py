"""Datasets as the `datasets` library reads them, from a folder in a hub's place: no network in tests."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from uimjax.corpora.hub import Hub, parse_hub, read_hub
from uimjax.corpora.preparing import prepare
from uimjax.corpora.texts import Columns
from uimjax.errors import DataError, OutputError, UnknownNameError, UsageError


@pytest.fixture
def folder(tmp_path):
    """A dataset of two splits, one row of it empty."""
    at = tmp_path / "set" / "data"
    at.mkdir(parents=True)
    for split, count in (("train", 2500), ("test", 3)):
        rows = [{"text": f"{split} says w{k}" if k != 7 else " ", "source": f"s{k % 2}"} for k in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), at / f"{split}-00000-of-00001.parquet")
    return at.parent


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_rows_are_streamed_with_their_columns(folder):
    notes = []
    found = [its for block in read_hub(Hub(str(folder)), Columns(), notes.append) for its in block]
    assert len(found) == 2499
    assert found[0] == (f"{folder}:1", "s0", "train says w0")
    assert found[-1].text == "train says w2499"
    assert [(note.row, note.why) for note in notes] == [(8, "empty")]
    few = [
        its.text for block in read_hub(Hub(str(folder), split="test", rows=2), Columns(), notes.append) for its in block
    ]
    assert few == ["test says w0", "test says w1"]


def test_a_corpus_of_it_is_opened_again_and_another_refused(folder, tmp_path):
    engine = tokenizers.Tokenizer(models.WordLevel({"?": 0, "test": 1, "says": 2}, unk_token="?"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made = prepare([f"hub:{folder}?split=test"], engine, tmp_path / "out", length=4)
    assert made.manifest["documents"] == 3
    assert made.rows["tokens"][0].tolist() == [1, 2, 0, 0]
    again = prepare([f"hub:{folder}?split=test"], engine, tmp_path / "out", length=4)
    assert again.manifest == made.manifest
    with pytest.raises(OutputError, match="other files or choices"):
        prepare([f"hub:{folder}?split=train"], engine, tmp_path / "out", length=4)
    path = tmp_path / "more.jsonl"
    path.write_text(json.dumps({"text": "says"}))
    both = prepare([path, f"hub:{folder}?split=test"], engine, tmp_path / "both", length=4)
    assert both.manifest["documents"] == 4


def test_what_is_wrong_is_said(folder):
    note = [].append
    with pytest.raises(UnknownNameError, match="Did you mean 'text'"):
        next(read_hub(Hub(str(folder)), Columns(text="txt"), note))
    with pytest.raises(DataError, match=r"cannot be read .* Is the name right, and is there a network"):
        next(read_hub(Hub(str(folder), split="tset"), Columns(), note))
    with pytest.raises(DataError, match="download it, and name its files"):
        next(read_hub(Hub(str(folder / "none")), Columns(), note))
    with pytest.raises(UnknownNameError, match="Did you mean 'split'"):
        parse_hub("hub:x/y?splt=train")
    with pytest.raises(UsageError, match="names no dataset"):
        parse_hub("hub:?split=train")
    with pytest.raises(UsageError, match="rows is 'many'"):
        parse_hub("hub:x/y?rows=many")
    its = parse_hub("hub:x/y?config=en&rows=10&revision=abc")
    assert its == Hub("x/y", "en", "train", 10, "abc")
    assert parse_hub(str(its)) == its
