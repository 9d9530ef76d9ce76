"""Corpora that were kept as tokens: the same rows as from text, every token with its characters."""

import struct

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from uimjax.corpora.preparing import prepare
from uimjax.corpora.pretokenised import Raw
from uimjax.errors import CorruptError, MismatchError, MissingFileError, OutputError, UnknownNameError, UsageError

TEXTS = ["one fish two fish", "ein Fisch, é🐟 zwei", "red fish blue fish " * 4]
END = 256


@pytest.fixture
def engine():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({letter: k for k, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    made.add_special_tokens(["<end>"])
    return made


def ids(engine, texts=TEXTS):
    return [[*engine.encode(text).ids, END] for text in texts]


def megatron(folder, documents, dtype=np.uint16, code=8, split=()):
    """As Megatron-LM's builder writes them; `split`: documents of two sequences."""
    sequences, firsts = [], [0]
    for number, tokens in enumerate(documents):
        sequences += [tokens[:5], tokens[5:]] if number in split else [tokens]
        firsts.append(len(sequences))
    flat = np.concatenate([np.asarray(its, dtype) for its in sequences])
    flat.tofile(folder / "part.bin")
    sizes = np.array([len(its) for its in sequences], np.int32)
    places = np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.int64) * np.dtype(dtype).itemsize
    head = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, len(sizes), len(firsts))
    index = head + sizes.tobytes() + places.tobytes() + np.array(firsts, np.int64).tobytes()
    (folder / "part.idx").write_bytes(index)
    return folder / "part.bin"


def made(engine, path, out, **raw):
    return prepare([path], engine, out, length=16, raw=Raw(**raw))


def kept(engine, folder, kind):
    """(the file, how it is read)."""
    flat = np.concatenate(ids(engine))
    if kind == "plain":
        flat.astype(np.uint16).tofile(folder / "plain.bin")
        return folder / "plain.bin", {"dtype": "uint16", "end": END}
    if kind == "named":
        np.save(folder / "named.npy", flat.astype(np.int32))
        return folder / "named.npy", {"end": END}
    return megatron(folder, ids(engine), *((np.int32, 4, (0, 2)) if kind == "of several sequences" else ())), {}


@pytest.mark.parametrize("kind", ["megatron", "of several sequences", "plain", "named"])
def test_rows_are_the_tokens_that_were_kept_and_find_their_characters(engine, tmp_path, kind):
    path, raw = kept(engine, tmp_path, kind)
    corpus = made(engine, path, tmp_path / "out", **raw)
    assert corpus.manifest["documents"] == 3
    rows, table = corpus.rows, corpus.metadata()
    whole = [row[: int(n)] for row, n in zip(rows["tokens"], rows["counted"].sum(1), strict=True)]
    for number, want in enumerate(ids(engine)):
        mine = [row for row, owner in zip(whole, table["document"].to_pylist(), strict=True) if owner == number]
        assert np.concatenate(mine).tolist() == want
        assert max(map(len, mine)) <= 16
    texts = corpus.documents([0, 1, 2])
    assert texts[0] == TEXTS[0]
    assert texts[2] == TEXTS[2]
    assert table["id"].to_pylist()[0] == f"{path.name}:1"
    spelled = corpus.spelled(range(len(whole)), engine)
    said = corpus.texts(range(len(whole)))
    for piece, text, tokens in zip(spelled, said, whole, strict=True):
        assert list(piece.tokens) == tokens.tolist()
        said_by = "".join(text[a - piece.start : b - piece.start] for a, b in piece.places)
        assert said_by == text.rstrip("\ufffd"), "but for a character over the border of two rows"
        assert len(piece.places) == len(tokens)
        if text.isascii():
            words = [engine.decode([token]) for token in tokens.tolist()]
            assert [text[a - piece.start : b - piece.start] for a, b in piece.places] == words


def test_what_cannot_be_read_is_said(engine, tmp_path):
    path = megatron(tmp_path, ids(engine))
    index = (tmp_path / "part.idx").read_bytes()

    def refused(error, words, **raw):
        with pytest.raises(error, match=words):
            made(engine, path, tmp_path / "out", **raw)

    (tmp_path / "part.idx").write_bytes(index[:-3])
    refused(CorruptError, "is cut short")
    (tmp_path / "part.idx").write_bytes(b"XX" + index[2:])
    refused(CorruptError, "is no index of Megatron")
    head, odd = index[:-32], np.frombuffer(index[-32:], np.int64)
    assert odd.tolist() == [0, 1, 2, 3]
    for firsts in ([1, 2, 3, 3], [0, 1, 2, 9], [0, 2, 1, 3]):
        (tmp_path / "part.idx").write_bytes(head + np.array(firsts, np.int64).tobytes())
        refused(CorruptError, "its documents do not cover its 3 sequences in order")
    (tmp_path / "part.idx").write_bytes(index)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(CorruptError, "no whole number of uint16; it is cut short")
    path.write_bytes(whole)
    path.write_bytes(path.read_bytes()[:-8])
    refused(CorruptError, r"tokens, and part\.idx places some beyond")
    (tmp_path / "part.idx").unlink()
    refused(UsageError, "a plain array, of a dtype that it does not say")
    refused(MissingFileError, "does not say where a document ends", dtype="uint16")
    path.write_bytes(path.read_bytes()[:-1])
    refused(CorruptError, "no whole number of uint16", dtype="uint16", end=END)
    with pytest.raises(UnknownNameError, match="Did you mean 'uint16'"):
        Raw(dtype="unit16")
    np.array([3, 9000, END], np.uint16).tofile(path)
    refused(MismatchError, "holds token 9000, and the tokenizer has 257 words", dtype="uint16", end=END)
    np.save(tmp_path / "wide.npy", np.zeros((2, 2), np.int32))
    with pytest.raises(UsageError, match=r"token ids \[N\] were wanted"):
        made(engine, tmp_path / "wide.npy", tmp_path / "out", end=END)
    (tmp_path / "text.txt").write_text("one fish")
    with pytest.raises(UsageError, match="holds tokens and"):
        prepare([path, tmp_path / "text.txt"], engine, tmp_path / "out", length=16)


def test_empty_documents_are_listed_and_what_follows_the_last_end_is_one(engine, tmp_path):
    np.array([1, 2, END, END, 3], np.uint16).tofile(tmp_path / "a.bin")
    corpus = made(engine, tmp_path / "a.bin", tmp_path / "out", dtype="uint16", end=END)
    assert corpus.manifest["documents"] == 3, "an end alone is a document of one token"
    path = megatron(tmp_path, [[1, 2], [], [3]])
    other = made(engine, path, tmp_path / "two")
    assert other.manifest["documents"] == 2
    assert other.manifest["notes"] == {"empty": 1}
    assert other.metadata()["id"].to_pylist() == ["part.bin:1", "part.bin:3"]


def test_another_tokenizer_is_refused(engine, tmp_path):
    corpus = made(engine, megatron(tmp_path, ids(engine)), tmp_path / "out")
    engine.add_special_tokens(["<more>"])
    with pytest.raises(MismatchError, match="prepared with another tokenizer"):
        corpus.spelled([0], engine)


def test_an_index_that_changed_is_another_corpus(engine, tmp_path):
    path = megatron(tmp_path, ids(engine))
    made(engine, path, tmp_path / "out")
    megatron(tmp_path, [[token for its in ids(engine) for token in its]])
    with pytest.raises(OutputError, match="other files or choices"):
        made(engine, path, tmp_path / "out")
