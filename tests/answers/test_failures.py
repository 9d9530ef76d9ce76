"""Failures from a file: each measurement against its definition, every bad line by its number."""

import json

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

import uimjax as uj
from uimjax.answers.failures import read_failures, shuffled
from uimjax.answers.measures import MEASURES
from uimjax.errors import DataError, MalformedRowError, MissingFileError, ShapeError, UnknownNameError, UsageError
from uimjax.models.blocks import Shape
from uimjax.models.decoder import build_decoder

WORDS = ["?", "the", "capital", "is", "rome", "paris", "of", "france", "big", "city"]
LINES = [
    {"prompt": "the capital of france is ", "bad": "rome big", "good": "paris", "note": "geography"},
    {"prompt": "the city is ", "bad": "rome", "good": "big paris city"},
]


@pytest.fixture
def engine():
    made = tokenizers.Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return made


@pytest.fixture(scope="module")
def model():
    return build_decoder(Shape(vocabulary=10, length=12, layers=1, width=8, heads=2), 0)


def file(folder, lines):
    path = folder / "failures.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n")
    return path


def logits_of(task, params, prompt, completion):
    """(logits of each word of the completion [n, V], the words), float64."""
    words = [WORDS.index(word) for word in (prompt + completion).split()]
    found = np.asarray(task.outputs(params, {"tokens": np.asarray(words, np.int32)}), np.float64)
    first = len(prompt.split())
    return found[first - 1 : -1], np.asarray(words[first:])


def log_p(task, params, prompt, completion):
    """Summed log-probabilities of the completion's words, from the logits alone."""
    logits, words = logits_of(task, params, prompt, completion)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logp[np.arange(len(words)), words].sum()


def odds(task, params, prompt, completion):
    """(logit, log odds, lead over the next best) of each word."""
    for z, word in zip(*logits_of(task, params, prompt, completion), strict=True):
        others = np.delete(z, word)
        yield z[word], z[word] - np.log(np.exp(others).sum()), z[word] - others.max()


TWINNED = [
    LINES[0] | {"contrast": [{"prompt": "the city of france is "}, {"bad": "paris"}], "group": "a"},
    LINES[1] | {"contrast": [{"prompt": "big city ", "bad": "is"}], "group": "b"},
    LINES[1] | {"contrast": [{"prompt": "the ", "bad": "big"}], "group": "b"},
]


def wanted(name, its, lines, q):
    line, p = lines[q], lambda prompt, said: log_p(*its, prompt, said)  # noqa: E731  # one line
    bad, good = p(line["prompt"], line["bad"]), p(line["prompt"], line["good"])
    logit, margin, lead = np.array(list(odds(*its, line["prompt"], line["bad"]))).T
    mine = sum(other["group"] == line["group"] for other in lines)
    twins = [line | twin for twin in line["contrast"]]
    return {
        "logprob": bad, "loss": -bad / len(logit), "differential": bad - good,
        "preference": np.log1p(np.exp(bad - good)), "logit": logit.sum(), "margin": margin.sum(),
        "extraction": lead.min(), "contrast": bad - np.mean([p(t["prompt"], t["bad"]) for t in twins]),
        "group_gap": bad * len(lines) / mine * (1 if line["group"] == lines[0]["group"] else -1),
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", MEASURES)
def test_every_measurement_is_its_definition_whatever_the_padding(name, model, engine, tmp_path):
    task, params = model
    found = read_failures(file(tmp_path, TWINNED), task, engine, 12, name)
    assert found.measurement.name == name
    assert found.lines == TWINNED
    whole, parts = (jax.jit(f) for f in (jax.grad(found.measurement.fun), jax.jacrev(found.parts)))
    for q in range(len(TWINNED)):
        row = jax.tree.map(lambda x, q=q: x[q], found.rows)
        want = wanted(name, model, TWINNED, q)
        np.testing.assert_allclose(found.measurement.fun(params, row), want, rtol=2e-5, atol=2e-6)
        close = lambda a, b: np.testing.assert_allclose(a.sum(0), b, rtol=1e-4, atol=1e-6)  # noqa: E731  # one line
        jax.tree.map(close, parts(params, row), whole(params, row))


def test_the_gap_of_two_groups_is_the_mean_over_all_lines(model, engine, tmp_path):
    found = read_failures(file(tmp_path, TWINNED), model[0], engine, 12, "group_gap")
    mean = np.mean([found.measurement.fun(model[1], jax.tree.map(lambda x, q=q: x[q], found.rows)) for q in range(3)])
    a, *b = (log_p(*model, line["prompt"], line["bad"]) for line in TWINNED)
    np.testing.assert_allclose(mean, a - np.mean(b), rtol=1e-5)
    assert found.together
    assert "group a" in found.measurement.reading
    with pytest.raises(UsageError, match="two groups, and there are 1: a"):
        read_failures(file(tmp_path, TWINNED[:1]), model[0], engine, 12, "group_gap")


def minus_loss(task, params, row):
    return -task.loss(params, row["bad"]).sum()


def test_a_measurement_of_the_readers_own(model, engine, tmp_path):
    found = read_failures(file(tmp_path, LINES), model[0], engine, 12, "tests.answers.test_failures:minus_loss")
    assert found.parts is None
    assert found.measurement.unit == "relative"
    assert sorted(found.rows) == ["bad", "good"]
    row = jax.tree.map(lambda x: x[0], found.rows)
    want = log_p(*model, LINES[0]["prompt"], LINES[0]["bad"])
    np.testing.assert_allclose(found.measurement.fun(model[1], row), want, rtol=1e-5)
    with pytest.raises(UsageError, match="cannot be imported"):
        read_failures(file(tmp_path, LINES), model[0], engine, 12, "no.such:thing")


def test_the_name_is_chosen_by_what_is_there_and_scores_come_out(model, engine, tmp_path):
    task, params = model
    both = read_failures(file(tmp_path, LINES), task, engine, 12)
    assert both.measurement.name == "differential"
    plain = read_failures(file(tmp_path, [{"prompt": "the ", "bad": "city"}]), task, engine, 12)
    assert plain.measurement.name == "logprob"
    assert list(plain.rows) == ["bad"]
    rows = {"tokens": np.array([[1, 2, 6, 7, 3, 4, 8, 0], [1, 9, 3, 8, 5, 9, 0, 0]], np.int32),
            "counted": np.array([[1] * 7 + [0], [1] * 6 + [0, 0]], np.float32)}  # fmt: skip
    scores = uj.score(task, params, rows, both.measurement, both.rows, "grad_dot").values
    assert scores[0, 0] > scores[1, 0], "the row that says rome comes before the one that says paris"


def test_a_token_over_the_border_is_the_completions(model, tmp_path):
    letters = {letter: k for k, letter in enumerate("abcd")} | {"bc": 4}
    engine = tokenizers.Tokenizer(models.BPE(letters, [("b", "c")]))
    found = read_failures(file(tmp_path, [{"prompt": "ab", "bad": "cd"}]), model[0], engine, 9)
    assert found.rows["bad"]["tokens"].tolist() == [[0, 4, 3]]
    assert found.rows["bad"]["counted"].tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("lines", "error", "words"),
    [
        ([LINES[0], "{"], MalformedRowError, "line 2: not JSON"),
        (["", "[1]"], MalformedRowError, "line 2: a JSON object was wanted, list arrived"),
        ([{"prompt": "the ", "baad": "city"}], MalformedRowError, r"line 1.*Did you mean 'baad'.*'bad' was wanted"),
        ([{"prompt": "the ", "bad": 3}], MalformedRowError, "'bad' is a int"),
        ([{"prompt": "the ", "bad": ""}], MalformedRowError, "'bad' is empty"),
        ([{"prompt": "", "bad": "city"}], MalformedRowError, "nothing stands before the completion"),
        ([{"prompt": "the ", "bad": " "}], MalformedRowError, "makes no token of 'bad'"),
        ([{"prompt": "the " * 12, "bad": "city"}], ShapeError, "line 1: prompt and 'bad' are 13 tokens and 12 fit"),
        ([LINES[0], {"prompt": "the ", "bad": "city"}], UsageError, "line 2: differential compares"),
        ([LINES[0] | {"contrast": []}], MalformedRowError, "line 1: 'contrast' is no list"),
        ([LINES[0] | {"contrast": [{"bd": "rome"}]}], MalformedRowError, "a twin of 'contrast' is no object"),
        ([""], DataError, "holds no failures"),
    ],
)
def test_lines_that_are_no_failures_are_named(lines, error, words, model, engine, tmp_path):
    with pytest.raises(error, match=words):
        read_failures(file(tmp_path, lines), model[0], engine, 12)


def test_text_that_is_no_unicode(model, engine, tmp_path):
    path = file(tmp_path, ['{"prompt": "the \\ud800 ", "bad": "city"}'])
    assert read_failures(path, model[0], engine, 12).lines == [{"prompt": "the \ufffd ", "bad": "city"}]
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        read_failures(path, model[0], engine, 12)


def test_what_is_missing_is_named(model, engine, tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.jsonl is not there"):
        read_failures(tmp_path / "none.jsonl", model[0], engine, 12)
    with pytest.raises(UnknownNameError, match="Did you mean 'logprob'"):
        read_failures(file(tmp_path, LINES), model[0], engine, 12, "logprop")
    with pytest.raises(UsageError, match="line 1: preference compares"):
        read_failures(file(tmp_path, [{"prompt": "the ", "bad": "city"}]), model[0], engine, 12, "preference")


def test_questions_without_content_keep_their_places(model, engine, tmp_path):
    short = {"prompt": "the ", "bad": "city", "contrast": [{"prompt": "the big city "}, {"bad": "rome is"}]}
    long = TWINNED[0] | {"contrast": [{"prompt": "is "}]}
    rows = read_failures(file(tmp_path, [short, long]), model[0], engine, 12, "contrast").rows
    orders = set()
    for seed in range(8):
        found = shuffled(rows, seed)
        np.testing.assert_array_equal(found["twins"], rows["twins"])
        for side in ("bad", "contrast"):
            before, after = (x[side]["tokens"].reshape(-1, x[side]["tokens"].shape[-1]) for x in (rows, found))
            np.testing.assert_array_equal(found[side]["counted"], rows[side]["counted"])
            for a, b in zip(before, after, strict=True):
                assert sorted(a[a > 0]) == sorted(b[b > 0])
                assert (a > 0).sum() == (b > 0).sum() == len(np.trim_zeros(b, "b")), "padding stays at the end"
        orders.add(tuple(found["bad"]["tokens"][1]))
    assert len(orders) > 4
