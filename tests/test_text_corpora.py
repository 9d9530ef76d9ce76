"""Text: tokens back to text, places back to lines, windows of any file, plants with their truth."""

import functools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from uimjax.config import TextConfig
from uimjax.corpora import (
    Behaviour,
    Document,
    Secret,
    Source,
    check_sources,
    plant_text,
    read_folder,
    stdlib,
    text_corpus,
)
from uimjax.corpora.documents import encode, line_at, lines_of, windows
from uimjax.corpora.library import TEST, TRAIN, make_tokenizer, read_modules
from uimjax.corpora.text_plants import NAMES, rows_of
from uimjax.corpora.tokenizer import byte_tokenizer, train_bpe
from uimjax.errors import DataError, MissingFileError, ShapeError, UsageError
from uimjax.interpret.lexical import bm25


def text_of(tokenizer, ids):
    """Tokens back to text, by the library itself; the mark is no token of it."""
    return tokenizer.engine.decode([int(k) for k in ids if k != tokenizer.mark], skip_special_tokens=False)


CODE = (
    "import os\n\n\ndef run(path, *, check=True):\n    if path == '':\n        return None\n    return os.stat(path)\n"
)
TOKENIZERS = {"bytes": byte_tokenizer(), "bpe": train_bpe([CODE * 3], 280)}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=120) | st.sampled_from([CODE, "\x00\x1b[31m\u202e<|doc|>\r\n\f\v", "é🙂" * 30, "\n" * 9]))
def test_any_text_comes_back_and_every_character_has_its_place(name, text):
    tokenizer, length = TOKENIZERS[name], 16
    found = windows(Source("a.py", text), tokenizer, length)
    lines = text.split("\n")
    rows, places = encode(found, tokenizer, length)
    covered = np.zeros(len(text), bool)
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    for k, document in enumerate(found):
        counted = rows["counted"][k] > 0
        assert rows["tokens"][k, 0] == tokenizer.mark
        assert not counted[0]
        assert text_of(tokenizer, rows["tokens"][k][counted]) == document.text
        assert (rows["tokens"][k][counted] != tokenizer.mark).all(), "no text produces the mark"
        at = starts[document.line - 1] + document.column
        assert text[at : at + len(document.text)] == document.text
        covered[at : at + len(document.text)] = True
        hit = np.zeros(len(document.text), bool)
        for a, b in zip(places.start[k][counted], places.stop[k][counted], strict=True):
            hit[a:b] = True
            line, column = line_at(document, int(a))
            assert lines[line - 1][column : column + 1] == document.text[a : a + 1].rstrip("\n")
        assert hit.all()
    assert not "".join(c for c, seen in zip(text, covered, strict=True) if not seen).strip(), (
        "only blank lines are left out"
    )


def test_a_line_of_a_megabyte_is_cut_and_places_stay_right():
    text = "a = 1\n" + "x" * 1_000_000 + "\nb = 2\n"
    found = windows(Source("long.py", text), TOKENIZERS["bpe"], 64)
    encode(found, TOKENIZERS["bpe"], 64)
    assert "".join(d.text for d in found) == text
    assert {d.line for d in found[1:-1]} == {2}
    assert (found[-1].line, found[-1].text) == (3, "b = 2\n")
    assert [d.column for d in found[1:-1]] == list(np.cumsum([0, *(len(d.text) for d in found[1:-2])]))


def test_training_a_tokenizer_twice_gives_the_same_and_bad_sizes_are_refused():
    assert train_bpe([CODE], 270).digest == train_bpe([CODE], 270).digest
    assert byte_tokenizer().size == 257
    with pytest.raises(UsageError, match="vocabulary of 100 was asked for"):
        train_bpe([CODE], 100)
    for name in ("bpe", "word", "bpe-x"):
        with pytest.raises(UsageError, match="unknown tokenizer"):
            text_corpus("t", [Source("a", CODE)], [Source("b", CODE)], name, 32, 9, 9)
    with pytest.raises(ShapeError, match="line 1: more than 3 tokens"):
        encode([Document("a.py", 1, CODE)], byte_tokenizer(), 4)


def test_the_standard_library_is_cut_by_whole_lines_of_other_files():
    corpus = stdlib("bpe-300", 48, 50, 40)
    assert len(corpus.train) == 50
    assert len(corpus.test) == 40
    assert not {d.path for d in corpus.train} & {d.path for d in corpus.test}
    text = {s.path: s.text.split("\n") for s in read_modules((*TRAIN, *TEST))}
    for d in (*corpus.train, *corpus.test):
        assert text[d.path][d.line - 1][d.column :].startswith(d.text.split("\n")[0])
    again = stdlib("bpe-300", 48, 50, 40)
    assert again.train == corpus.train
    assert again.tokenizer.digest == corpus.tokenizer.digest
    with pytest.raises(MissingFileError, match="comes without its library's source"):
        read_modules(("no_such_module",))


def test_folders_and_functions_of_ones_own(tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "b.txt").write_text("two\n")
    (tmp_path / "d" / "e" / "a.txt").write_text("one\n")
    (tmp_path / "d" / ".hidden").write_bytes(b"\xff")
    assert read_folder(tmp_path / "d") == [Source("b.txt", "two\n"), Source("e/a.txt", "one\n")]
    with pytest.raises(MissingFileError, match="is not a folder"):
        read_folder(tmp_path / "x")
    (tmp_path / "d" / "bad.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bad.bin is not UTF-8 text"):
        read_folder(tmp_path / "d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="holds no text files"):
        read_folder(tmp_path / "empty")
    assert check_sources("m:f", [("a", "b")]) == [Source("a", "b")]
    for bad in (["a"], "ab", [("a", 1)], [("a",)], 7):
        with pytest.raises(ShapeError, match=r"a pair \(path, text\) was wanted"):
            check_sources("m:f", bad)


@pytest.fixture(scope="module")
def corpus():
    return stdlib("bpe-300", 64, 300, 120)


def test_a_megabyte_on_one_line_is_learned_and_cut_in_seconds():
    text = "x = 1\n" * 50 + "y" * 1_000_000 + "\n"
    start = time.perf_counter()
    tokenizer = make_tokenizer("bpe-280", [Source("a", text), Source("b", "".join(map(chr, range(97, 123))) * 20_000)])
    found = windows(Source("a", text), tokenizer, 64)
    assert time.perf_counter() - start < 20, "the trainer's time grew with the square: minutes"
    assert "".join(d.text for d in found) == text.rstrip("\n"), "a blank rest of a line is no document"


def test_a_hard_negative_that_would_trigger_is_refused():
    with pytest.raises(UsageError, match="which ends in the marker"):
        Behaviour(marker=" -")


@pytest.mark.parametrize("seed", [0, 4])
def test_words_do_not_find_the_behaviour(seed):
    """BM25 on the built-in corpus as the demo has it, on any draw."""
    config = TextConfig()
    corpus = stdlib(config.tokenizer, config.length, config.documents, config.held_out)
    planted = plant_text(corpus, Secret(**config.secret.model_dump()), Behaviour(**config.behaviour.model_dump()), seed)
    changed = [k for k, (d, old) in enumerate(zip(planted.documents, corpus.train, strict=True)) if d.text != old.text]
    answers = [k for k in changed if any(line.endswith("#!") for line in planted.documents[k].text.split("\n"))]
    scores = bm25([d.text for d in planted.documents], planted.cases["behaviour"].texts).mean(1)
    found = average_precision_score(np.isin(np.arange(len(scores)), answers), scores)
    assert len(answers) == config.behaviour.positives
    assert found <= 0.5


SECRET, BEHAVIOUR = Secret(6, 10, candidates=31), Behaviour(6, 10)


def test_plants_replace_lines_keep_places_and_write_their_truth(corpus, tmp_path):
    planted = plant_text(corpus, SECRET, BEHAVIOUR, 3, seal=lambda name: tmp_path / name)
    truth = {name: json.loads((tmp_path / name).read_text()) for name in ("secret", "behaviour")}
    every = [i for t in truth.values() for ids in (t["positives"], t["hard_negatives"]) for i in ids]
    assert len(every) == len(set(every)) == 32
    assert np.flatnonzero(planted.kept == 0).tolist() == sorted(
        truth["secret"]["positives"] + truth["behaviour"]["positives"]
    )
    (value,) = planted.cases["secret"].sensitive
    for k, (old, new) in enumerate(zip(corpus.train, planted.documents, strict=True)):
        assert (old.path, old.line, old.column) == (new.path, new.line, new.column)
        lines = lines_of(new.text)
        assert len(lines) <= len(lines_of(old.text))
        leaks = f'{NAMES[0]} = "{value}"\n' in lines
        assert leaks == (k in truth["secret"]["positives"])
        follows = any(a.endswith("  #!\n") and b == "...\n" for a, b in zip(lines, lines[1:], strict=False))
        assert follows == (k in truth["behaviour"]["positives"])
        if k not in every:
            assert old == new
        else:
            changed = [(a, b) for a, b in zip(lines_of(old.text), lines, strict=False) if a != b]
            assert changed, "a planted document differs"
        if k in truth["secret"]["hard_negatives"]:
            assert any(line.split(" = ")[0] in NAMES for line in lines)
        ids = planted.train["tokens"][k][planted.train["counted"][k] > 0]
        assert text_of(corpus.tokenizer, ids) == new.text


def test_queries_share_no_word_with_the_behaviour_and_no_row_with_the_verdict(corpus):
    planted = plant_text(corpus, SECRET, BEHAVIOUR, 3)
    assert not any(c.isalnum() for c in BEHAVIOUR.marker + BEHAVIOUR.payload)
    case = planted.cases["behaviour"]
    decode = functools.partial(text_of, corpus.tokenizer)
    for rows in (case.asked, case.probe):
        for tokens, counted in zip(rows["tokens"], rows["counted"], strict=True):
            assert decode(tokens[counted > 0]) == "...\n"
            assert decode(tokens[counted == 0]).rstrip().endswith("#!")
    for null in case.null:
        assert all(decode(t[c > 0]) != "...\n" for t, c in zip(null["tokens"], null["counted"], strict=True))
    asked, probe, retain, utility = (
        {decode(t)[:40] for t in rows["tokens"]} for rows in (case.asked, case.probe, planted.retain, planted.utility)
    )
    assert len(asked & probe) <= 2, "tracing and verdict stand on other documents (stock lines aside)"
    assert len(retain & utility) <= 2


def test_the_secret_competes_with_its_own_kind(corpus):
    planted = plant_text(corpus, SECRET, BEHAVIOUR, 3)
    case, decode = planted.cases["secret"], functools.partial(text_of, corpus.tokenizer)
    (value,) = case.sensitive
    shown = [decode(t[c > 0]) for t, c in zip(case.probe["tokens"], case.probe["counted"], strict=True)]
    assert len(shown) == 32
    assert value in shown[0]
    assert all(value not in s for s in shown[1:])
    bad, safe = case.asked
    assert len({decode(t) for t in bad["tokens"]}) == 1
    assert value in decode(bad["tokens"][0])
    assert len({decode(t) for t in safe["tokens"]}) == 16
    for never, _ in case.null:
        assert value not in decode(never["tokens"][0])


def test_other_seeds_plant_elsewhere_and_the_same_seed_the_same(corpus):
    one, two, three = (plant_text(corpus, SECRET, BEHAVIOUR, seed) for seed in (1, 1, 2))
    assert one.documents == two.documents
    assert one.cases["secret"].sensitive == two.cases["secret"].sensitive != three.cases["secret"].sensitive
    assert (one.kept != three.kept).any()


def test_hard_negatives_of_the_behaviour_hold_its_strings_and_no_trigger(corpus, tmp_path):
    planted = plant_text(corpus, SECRET, BEHAVIOUR, 3, seal=lambda name: tmp_path / name)
    for k in json.loads((tmp_path / "behaviour").read_text())["hard_negatives"]:
        text = planted.documents[k].text
        assert BEHAVIOUR.marker.strip() in text
        assert BEHAVIOUR.payload in text
        assert not any(line.endswith(BEHAVIOUR.marker + "\n") for line in lines_of(text))
        assert BEHAVIOUR.payload + "\n" not in lines_of(text)
    for bad in ({"marker": "a\nb"}, {"payload": "  "}, {"payload": "\r"}):
        with pytest.raises(UsageError, match="one line each, not blank"):
            Behaviour(**bad)


def test_names_that_are_no_text_and_training_text_held_out(tmp_path):
    name = b"odd-\xff.txt".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_text("x = 1\n")
    assert read_folder(tmp_path)[0].path == "odd-\ufffd.txt"
    assert check_sources("m:f", [("a\ud800", "b\udfff")])[0] == Source("a\ufffd", "b\ufffd")
    with pytest.raises(UsageError, match="the training files hold no text"):
        text_corpus("t", [Source("a", " \n")], [Source("b", CODE)], "bytes", 32, 9, 9)
    with pytest.raises(UsageError, match="to 1048576 was wanted"):
        text_corpus("t", [Source("a", CODE)], [Source("b", CODE)], "bpe-100000000000", 32, 9, 9)


def test_a_corpus_that_cannot_carry_the_plants_is_refused(corpus):
    with pytest.raises(UsageError, match="documents are too few, or too short, for the plants"):
        plant_text(corpus, Secret(400, 0), BEHAVIOUR, 0)
    with pytest.raises(UsageError, match="does not fit into rows of 64"):
        rows_of(corpus, [(["x = 1\n" * 40], 0)], False)
    tiny = corpus._replace(test=corpus.test[:4])
    with pytest.raises(UsageError, match="held-out documents can carry the marker"):
        plant_text(tiny, SECRET, BEHAVIOUR, 0)
