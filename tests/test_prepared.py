"""Corpora from files of every kind: nothing lost in silence, and every token finds its characters."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from uimjax.corpora.pieces import pieces
from uimjax.corpora.prepared import NOTES, open_prepared
from uimjax.corpora.preparing import prepare
from uimjax.corpora.texts import Columns, read_texts
from uimjax.errors import CorruptError, DataError, MissingFileError, OutputError, UnknownNameError, UsageError

TEXTS = ["one fish two fish", "ein Fisch, é🐟 zwei", "red fish blue fish " * 7, "one fish two fish"]


@pytest.fixture
def engine():
    """Bytes, so that a fish is four tokens, and a mark before each document."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({"<s>": 0} | {letter: k + 1 for k, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])  # pyright: ignore[reportAttributeAccessIssue]
    return made


def written(folder, kind):
    """The same four documents in a file of some kind."""
    path, rows = folder / f"a{kind}", [{"text": text, "source": f"s{k % 2}"} for k, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = pa.Table.from_pylist(rows)
    if kind == ".jsonl":
        path.write_bytes(lines[:-1])  # without the last newline
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif kind == ".jsonl.zst":
        path.write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
    elif kind == ".csv":
        path.write_text("text,source\n" + "".join(f'"{row["text"]}",{row["source"]}\n' for row in rows))
    elif kind == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    else:
        open_ = pa.ipc.new_file if kind == ".file.arrow" else pa.ipc.new_stream
        with open_(path, table.schema) as out:
            out.write_table(table, max_chunksize=3)
    return path


@pytest.mark.parametrize(
    "kind", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".parquet", ".file.arrow", ".stream.arrow"]
)
def test_every_kind_of_file_holds_the_same_documents(kind, tmp_path):
    notes = []
    found = [text for block in read_texts([written(tmp_path, kind)], Columns(), notes.append) for text in block]
    assert [text.text for text in found] == TEXTS
    assert [text.source for text in found] == ["s0", "s1", "s0", "s1"]
    assert [text.id for text in found] == [f"a{kind}:{k}" for k in range(1, 5)]
    assert not notes


def test_rows_that_are_no_documents_are_listed_with_their_lines(tmp_path, engine):
    lines = ['{"text": "first", "id": 7}', "", "{broken", "[1]", '{"text": "  "}', '{"text": 3}', '{"id": 1}',
             '{"text": "last", "id": 8}', '{"text": "first", "id": 9}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    made = prepare([tmp_path / "a.jsonl"], engine, tmp_path / "c", length=8, columns=Columns(id="id"))
    notes = [json.loads(line) for line in (made.folder / NOTES).read_text().splitlines()]
    assert [(n["row"], n["why"].split(" (")[0]) for n in notes[:-1]] == [
        (2, "empty"), (3, "malformed: not JSON"), (4, "malformed: a list, no object"), (5, "empty"),
        (6, "a int as 'text'"), (7, "no 'text'"),
    ]  # fmt: skip
    assert notes[-1] == {"document": 2, "id": "9", "why": "duplicate of 7 (kept)"}
    assert made.manifest["documents"] == 3
    assert made.manifest["notes"] == {"a int as 'text'": 1, "duplicate": 1, "empty": 2, "malformed": 2, "no 'text'": 1}
    (tmp_path / "b.csv").write_text("text,n\nfine,1\nodd\nfine too,2\n")
    (tmp_path / "n.csv").write_text("text\n3\n2026-01-01\n")
    assert [t.text for b in read_texts([tmp_path / "n.csv"], Columns(), print) for t in b] == ["3", "2026-01-01"]
    found = []
    assert [t.text for block in read_texts([tmp_path / "b.csv"], Columns(), found.append) for t in block] == [
        "fine", "fine too",
    ]  # fmt: skip
    assert found[0].why == "malformed: 1 fields, 2 wanted"
    assert found[0].row == 3


def test_each_row_says_what_its_characters_say(tmp_path, engine):
    made = prepare([written(tmp_path, ".parquet")], engine, tmp_path / "c", length=9)
    rows, table = made.rows, made.metadata()
    assert rows["tokens"].shape == rows["counted"].shape == (made.manifest["rows"], 9)
    texts = made.texts(range(made.manifest["rows"]))
    for tokens, counted, text in zip(rows["tokens"], rows["counted"], texts, strict=True):
        assert engine.decode(tokens[counted > 0].tolist()).removeprefix("<s>") == text, (
            "no row begins inside a character"
        )
        assert set(np.diff(counted.astype(int))) <= {0, -1}
    joined = {}
    for text, document in zip(texts, table["document"].to_pylist(), strict=True):
        joined[document] = joined.get(document, "") + text
    assert [joined[k] for k in range(4)] == TEXTS
    assert table["id"].to_pylist()[-1] == "a.parquet:4"
    assert set(table["source"].to_pylist()) == {"s0", "s1"}
    assert made.texts([1, 0]) == [texts[1], texts[0]]
    assert int(rows["counted"].sum()) == made.manifest["tokens"] == sum(len(engine.encode(t).ids) for t in TEXTS)


def test_pieces_of_one_long_character_still_end():
    class Odd:
        ids, offsets = list(range(5)), [(0, 1)] * 5

    found = list(pieces(Odd(), 2))  # pyright: ignore[reportArgumentType]
    assert [token for piece in found for token in piece.tokens] == [0, 1, 2, 3, 4]
    assert all(piece.tokens for piece in found)


def test_what_is_there_already_is_opened_and_nothing_else_is_touched(tmp_path, engine):
    path = written(tmp_path, ".jsonl")
    made = prepare([path], engine, tmp_path / "c", length=9)
    before = (tmp_path / "c" / "tokens.npy").stat().st_mtime_ns
    assert prepare([path], engine, tmp_path / "c", length=9).manifest == made.manifest
    assert (tmp_path / "c" / "tokens.npy").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="other files or choices"):
        prepare([path], engine, tmp_path / "c", length=10)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "corpus.json", "counted.npy", "documents.parquet", "notes.jsonl", "rows.parquet", "tokens.npy",
    ]  # fmt: skip
    manifest = tmp_path / "c" / "corpus.json"
    manifest.write_text(manifest.read_text().replace('"rows": ', '"rows": 1'))
    with pytest.raises(CorruptError):
        open_prepared(tmp_path / "c")
    manifest.unlink()
    with pytest.raises(MissingFileError, match="stopped"):
        open_prepared(tmp_path / "c")
    assert prepare([path], engine, tmp_path / "c", length=9).manifest == made.manifest


def test_half_a_pair_of_surrogates_is_no_end_of_it(tmp_path, engine):
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud800 a pair", "source": "\\udc00"}')
    made = prepare([tmp_path / "a.jsonl"], engine, tmp_path / "c", length=40)
    assert made.texts([0]) == ["half \ufffd a pair"]
    assert made.metadata()["source"].to_pylist() == ["\ufffd"]


def test_damage_is_seen_and_files_of_others_are_not_overwritten(tmp_path, engine):
    path = written(tmp_path, ".jsonl")
    made = prepare([path], engine, tmp_path / "c", length=9)
    for name in ("rows.parquet", "documents.parquet"):
        file = tmp_path / "c" / name
        good = file.read_bytes()
        file.write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:])
        with pytest.raises(CorruptError, match=name):
            made.metadata()
        file.write_bytes(good)
    file = tmp_path / "c" / "documents.parquet"
    good = file.read_bytes()
    at = good.index(b"one fish")
    file.write_bytes(good[:at] + b"two" + good[at + 3 :])
    with pytest.raises(CorruptError, match=r"documents\.parquet is damaged"):
        made.texts([0])
    file.write_bytes(good)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "rows.parquet").write_bytes(b"years of work")
    with pytest.raises(OutputError, match=r"holds rows\.parquet and no corpus of ours"):
        prepare([path], engine, tmp_path / "theirs", length=9)
    assert (tmp_path / "theirs" / "rows.parquet").read_bytes() == b"years of work"


def test_what_cannot_be_read_is_named(tmp_path, engine):
    with pytest.raises(UnknownNameError, match="Did you mean 'text'"):
        prepare([written(tmp_path, ".jsonl")], engine, tmp_path / "c", length=9, columns=Columns(text="txt"))
    for kind in (".parquet", ".csv", ".stream.arrow"):
        with pytest.raises(UnknownNameError, match="'source'"):
            list(read_texts([written(tmp_path, kind)], Columns(source="sorce"), print))
    with pytest.raises(MissingFileError, match="is not there"):
        prepare([tmp_path / "none.jsonl"], engine, tmp_path / "c", length=9)
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(DataError, match="convert it first"):
        prepare([tmp_path / "a.docx"], engine, tmp_path / "c", length=9)
    (tmp_path / "d").mkdir()
    with pytest.raises(MissingFileError, match="holds none of"):
        prepare([tmp_path / "d"], engine, tmp_path / "c", length=9)
    (tmp_path / "d" / "b.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match=r"b\.parquet cannot be read"):
        prepare([tmp_path / "d"], engine, tmp_path / "c", length=9)
    (tmp_path / "e.jsonl").write_text('{"text": ""}\n{')
    with pytest.raises(DataError, match=r"no document was found.*'empty': 1, 'malformed': 1"):
        prepare([tmp_path / "e.jsonl"], engine, tmp_path / "c", length=9)
    (tmp_path / "f.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"f\.txt cannot be read"):
        prepare([tmp_path / "f.txt"], engine, tmp_path / "c", length=9)
    with pytest.raises(UsageError, match="rows of 1 token;"):
        prepare([written(tmp_path, ".jsonl")], engine, tmp_path / "c", length=1)


def test_a_document_without_tokens_is_listed_and_the_others_keep_their_names(tmp_path):
    engine = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "d": 3}, []))
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["ab", "\u65e5\u672c", "cd", "dd"]))
    corpus = prepare([path], engine, tmp_path / "out", length=4)
    assert corpus.manifest["notes"] == {"no token": 1}
    assert "c.jsonl:2" in (tmp_path / "out" / NOTES).read_text()
    assert corpus.names()["id"].to_pylist() == ["c.jsonl:1", "c.jsonl:3", "c.jsonl:4"]
    assert corpus.metadata()["id"].to_pylist() == corpus.names()["id"].to_pylist()
    assert corpus.documents([0, 1, 2]) == ["ab", "cd", "dd"]


def test_documents_are_tokenised_in_parts_of_bounded_size(monkeypatch):
    from uimjax.corpora import preparing
    from uimjax.corpora.texts import Text

    monkeypatch.setattr(preparing, "CHARACTERS", 10)
    block = [Text(f"d{k}", "s", "x" * size) for k, size in enumerate((3, 3, 5, 40, 1, 9, 2))]
    parts = list(preparing._together(block))
    assert [its for few in parts for its in few] == block
    assert [[len(its.text) for its in few] for few in parts] == [[3, 3, 5], [40], [1, 9], [2]]


def test_files_of_one_name_are_told_apart(tmp_path, engine):
    """Shards of several folders are often called alike; a document's name must lead to its file."""
    for folder in ("en", "de"):
        (tmp_path / "shards" / folder).mkdir(parents=True)
        (tmp_path / "shards" / folder / "0.jsonl").write_text(json.dumps({"text": f"{folder} text"}) + "\n")
    (tmp_path / "shards" / "1.jsonl").write_text(json.dumps({"text": "one more"}) + "\n")
    held = prepare([tmp_path / "shards"], engine, tmp_path / "out", length=8)
    names = held.names().to_pydict()
    assert names["id"] == ["1.jsonl:1", "de/0.jsonl:1", "en/0.jsonl:1"]
    assert names["source"] == ["1.jsonl", "de/0.jsonl", "en/0.jsonl"]
