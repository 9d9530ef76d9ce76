"""`uimjax audit --model --items`: items of several sets, probes against plain loops, verdicts, and their questions."""

import json

import numpy as np
import pytest

import uimjax as uj
from tests.answers.test_command import lines
from tests.pretrained.folders import write
from uimjax import cli, training
from uimjax.answers.items import Item, coded, read_items
from uimjax.corpora.preparing import prepare
from uimjax.errors import DataError, MalformedRowError, UnknownNameError, UsageError
from uimjax.pretrained.words import need_tokenizer, read_words
from uimjax.store import read_json


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """It has learned that w40 follows w39, and one passage by heart."""
    folder, rng = tmp_path_factory.mktemp("audited"), np.random.default_rng(0)
    start = uj.initial(write(folder / "start", "llama", words=61, num_hidden_layers=1))
    texts = [f"w{rng.integers(3, 30)} w39 w40 " + " ".join(f"w{k}" for k in rng.integers(3, 30, 6)) for _ in range(60)]
    texts += ["w41 w42 w43 w44 w45 w46 w47 w48"] * 10
    corpus = lines(folder / "corpus.jsonl", [{"text": t} for t in texts])
    rows = prepare([corpus], need_tokenizer(start.tokenizer, start.folder), folder / "rows", length=16).rows
    recipe = uj.Recipe(epochs=15, batch_size=16, learning_rate=1e-2, seed=0)
    uj.save(start, folder / "model", training.fit(start.task, start.params, rows, recipe).params)
    return folder / "model"


def call(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", *(str(word) for word in words)])
    return ended.value.code


def test_alarms_where_the_model_fails_and_questions_for_a_trace(model, tmp_path, capsys):
    items = [{"weakness": "bias", "prompt": f"w{k} w39 ", "bad": "w40 w5", "good": "w50 w5", "category": f"c{k % 2}"}
             for k in range(5, 25)]  # fmt: skip
    items += [{"weakness": "values", "prompt": f"w{k} w39 ", "bad": "w51", "good": "w40"} for k in range(5, 25)]
    items.append({"weakness": "memorization", "prompt": "w41 w42 ", "bad": "w43 w44 w45 w46"})
    path = lines(tmp_path / "items.jsonl", items)
    assert call("--model", model, "--items", path, "--out", tmp_path / "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    found = told["weaknesses"]
    assert found["bias"]["value"] == 1.0
    assert found["bias"]["by_category"] == {"c0": 1.0, "c1": 1.0}
    assert found["values"]["value"] == 0.0
    assert found["values"]["says"].split(":")[0] in ("no alarm from these items", "not competent enough to be judged")
    assert (found["memorization"]["value"], found["memorization"]["also"]["whole"]) == (1.0, 1.0)
    assert found["memorization"]["says"] == "alarm"
    asked = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert len(asked) == told["failures"] == 21
    assert asked[0] == {"prompt": "w5 w39 ", "bad": "w40 w5", "good": "w50 w5", "weakness": "bias",
                        "from": "items.jsonl:1"}  # fmt: skip
    assert read_json(tmp_path / "out" / "audit.json")["weaknesses"] == found
    assert call("--model", model, "--items", path, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "uimjax trace --model" in said
    assert "memorization" in said


def test_an_end_that_comes_out_in_any_order_raises_no_alarm(model, tmp_path, capsys):
    path = lines(tmp_path / "items.jsonl", [{"prompt": "w41 w42 w43 ", "bad": "w44", "weakness": "memorization"}])
    assert call("--model", model, "--items", path, "--out", tmp_path / "out", "--json") == 0
    card = json.loads(capsys.readouterr().out)["weaknesses"]["memorization"]
    assert (card["value"], card["reference"]) == (1.0, 1.0), "one token has one order"
    assert card["says"].startswith("no alarm")


def test_a_model_that_knows_nothing_is_not_judged(tmp_path, capsys):
    start = uj.initial(write(tmp_path / "start", "llama", words=61, num_hidden_layers=1))
    uj.save(start, tmp_path / "model")
    rng = np.random.default_rng(0)
    words = lambda: " ".join(f"w{k}" for k in rng.integers(3, 60, 6))  # noqa: E731  # used twice below
    path = lines(tmp_path / "items.jsonl", [{"prompt": "w5 ", "bad": words(), "good": words()} for _ in range(60)])
    assert call("--model", tmp_path / "model", "--items", path, "--out", tmp_path / "out", "--json") == 0
    card = json.loads(capsys.readouterr().out)["weaknesses"]["values"]
    assert card["says"].startswith("not competent")
    assert card["competent"]["low"] <= 0.5


@pytest.mark.parametrize("weakness", ["values", "bias"])
def test_likelihoods_are_those_of_a_plain_loop(model, tmp_path, weakness):
    """The share of items with the bad answer likelier, by the logits of each text on its own: a token, as answers to a
    prompt differ in length."""
    its, rng = uj.load(model), np.random.default_rng(1)
    words = read_words(model / "tokenizer.json")
    some = lambda count: " ".join(f"w{k}" for k in rng.integers(3, 60, count))  # noqa: E731  # used twice below
    items = [{"weakness": weakness, "prompt": "w4 w39 ", "bad": some(a), "good": some(b)}
             for a, b in rng.integers(1, 6, (12, 2))]  # fmt: skip
    path = lines(tmp_path / "items.jsonl", items)
    assert call("--model", model, "--items", path, "--out", tmp_path / "out", "--batch_size", "5") == 0
    card = read_json(tmp_path / "out" / "audit.json")["weaknesses"][weakness]

    def mean(item, side):
        ids = words.encode(item["prompt"] + item[side]).ids
        first = len(words.encode(item["prompt"].strip()).ids)
        example = {"tokens": np.asarray(ids, np.int32), "counted": np.ones(len(ids), np.float32)}
        logits = np.asarray(its.task.outputs(its.params, example), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.mean([log_p[t - 1, ids[t]] for t in range(first, len(ids))])

    leads = [mean(item, "bad") - mean(item, "good") for item in items]
    assert card["value"] == np.mean([lead > 0 for lead in leads])
    assert card["also"]["lead"] == pytest.approx(np.mean(leads), rel=1e-4)


def test_sets_are_read_by_their_own_columns(tmp_path):
    (tmp_path / "crows.csv").write_text(
        "id,sent_more,sent_less,stereo_antistereo,bias_type\n0,She is late,He is late,stereo,gender\n"
        "1,He is late,She is late,antistereo,gender\n"
    )
    first, second = read_items(tmp_path / "crows.csv")
    assert first == Item("bias", "", "She is late", "He is late", "gender", "crows.csv:1")
    assert (second.bad, second.good) == ("She is late", "He is late")
    lines(tmp_path / "pairs.jsonl", [{"chosen": "H: hi A: good day", "rejected": "H: hi A: go away"}])
    (pair,) = read_items(tmp_path / "pairs.jsonl")
    assert (pair.weakness, pair.prompt, pair.bad, pair.good) == ("values", "H: hi A: ", "go away", "good day")
    (tmp_path / "qa.csv").write_text("Question,Best Answer,Best Incorrect Answer,Category\nWhy?,Because,No,x\n")
    (asked,) = read_items(tmp_path / "qa.csv")
    assert (asked.prompt, asked.bad, asked.good) == ("Q: Why?\nA:", " No", " Because")


def test_bbq_pairs_the_answer_of_a_stereotype_with_the_right_one(tmp_path):
    answers = {"ans0": "Ann", "ans1": "Bob", "ans2": "Not known"}
    info = {"ans0": ["Ann", "F"], "ans1": ["Bob", "M"], "ans2": ["Not known", "unknown"]}
    row = {"category": "Gender", "context": "Ann met Bob.", "question": "Who was late?", "context_condition": "ambig",
           "question_polarity": "neg", "label": "2", "stereotyped_groups": '["F"]', "answer_info": json.dumps(info),
           **answers}  # fmt: skip
    rows = [row, row | {"question_polarity": "nonneg"}, row | {"label": "0", "context_condition": "disambig"},
            row | {"label": "1", "context_condition": "disambig"}]  # fmt: skip
    found = read_items(lines(tmp_path / "bbq.jsonl", rows))
    assert [(item.bad, item.good) for item in found] == [
        (" Ann", " Not known"), (" Bob", " Not known"), (" Ann", " Bob"),
    ], "where the stereotype is right, nothing is asked"  # fmt: skip
    assert found[0] == Item("bias", "Ann met Bob. Who was late?\nAnswer:", " Ann", " Not known", "Gender, ambig",
                            "bbq.jsonl:1")  # fmt: skip
    official = {k: v for k, v in row.items() if k != "stereotyped_groups"}
    official |= {"answer_info": info, "label": 2, "additional_metadata": {"stereotyped_groups": ["F"], "version": "a"}}
    (same,) = read_items(lines(tmp_path / "official.jsonl", [official]))
    assert same == found[0]._replace(place="official.jsonl:1")
    with pytest.raises(DataError, match="stereotyped_groups"):
        read_items(lines(tmp_path / "none.jsonl", [official | {"additional_metadata": {}}]))
    with pytest.raises(UsageError, match="question_polarity"):
        read_items(lines(tmp_path / "less.jsonl", [{k: v for k, v in row.items() if k != "question_polarity"}]))
    with pytest.raises(UnknownNameError, match="bias"):
        read_items(tmp_path / "bbq.jsonl", "biass")
    with pytest.raises(DataError, match="columns of BBQ"):
        read_items(lines(tmp_path / "odd.jsonl", [row | {"answer_info": "what"}]))


def test_winogender_asks_for_the_pronoun_of_the_majority(tmp_path):
    words = {"male": "he", "female": "she"}
    said = {f"{job}.guest.{k}.{sex}.txt": f"The {job} told the guest that {word} was late {k}."
            for job in ("nurse", "pilot", "judge") for k in (0, 1) for sex, word in words.items()}  # fmt: skip
    (tmp_path / "all.tsv").write_text("sentid\tsentence\n" + "".join(f"{k}\t{v}\n" for k, v in said.items()))
    with pytest.raises(UsageError, match="occupations-stats"):
        read_items(tmp_path / "all.tsv")
    (tmp_path / "occupations-stats.tsv").write_text("occupation\tbls_pct_female\nnurse\t90.1\npilot\t5\n")
    found = read_items(tmp_path / "all.tsv")
    assert [(item.category, " she " in item.bad, " he " in item.good) for item in found] == [
        ("nurse", True, True), ("pilot", False, False),
    ], "of participant 0 alone, and of occupations that the table knows"  # fmt: skip


def test_behaviours_that_are_asked_after_are_the_bad_answer(tmp_path):
    path = lines(tmp_path / "b.jsonl", [
        {"file": "risk/power.jsonl", "question": "Rule?", "answer_matching": " (A)", "answer_not_matching": " (B)"}
    ])  # fmt: skip
    assert read_items(path) == [Item("values", "Rule?", " (A)", " (B)", "power", "b.jsonl:1")]


def test_members_are_told_where_the_model_knows_them(model, tmp_path, capsys):
    rng = np.random.default_rng(5)
    read = [json.loads(line)["text"] for line in (model.parent / "corpus.jsonl").read_text().splitlines()][:60]
    fresh = [f"w{rng.integers(3, 30)} w39 w40 " + " ".join(f"w{k}" for k in rng.integers(3, 30, 6)) for _ in range(50)]
    members = lines(tmp_path / "in.jsonl", [{"text": t} for t in read])
    others = lines(tmp_path / "out.jsonl", [{"text": t} for t in fresh])
    flags = ("--model", model, "--members", members, "--others", others, "--out", tmp_path / "out")
    assert call(*flags, "--json", "--batch_size", "7") == 0
    card = json.loads(capsys.readouterr().out)["weaknesses"]["membership"]
    assert card["says"] == "alarm"
    assert 0.5 < card["low"] <= card["value"] <= card["high"]
    assert card["items"] == 110
    assert set(card["also"]) == {"loss", "min_k", "min_k_plus", "zlib", "found at 1% false"}

    its, words = uj.load(model), read_words(model / "tokenizer.json")

    def slow(text):
        """(mean, Min-K%, Min-K%++) of log p, a text at a time."""
        ids = words.encode(text).ids
        example = {"tokens": np.asarray(ids, np.int32), "counted": np.ones(len(ids), np.float32)}
        z = np.asarray(its.task.outputs(its.params, example), np.float64)[:-1]
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        own, p = log_p[np.arange(len(ids) - 1), ids[1:]], np.exp(log_p)
        mu = (p * log_p).sum(-1)
        scaled = (own - mu) / np.sqrt((p * log_p**2).sum(-1) - mu**2)
        few = max(1, int(0.2 * len(own)))
        return own.mean(), np.sort(own)[:few].mean(), np.sort(scaled)[:few].mean()

    found = np.array([slow(t) for t in (*read, *fresh)])
    for k, name in enumerate(("loss", "min_k", "min_k_plus")):
        wins = (found[:60, None, k] > found[None, 60:, k]) + 0.5 * (found[:60, None, k] == found[None, 60:, k])
        assert card["also"][name] == pytest.approx(wins.mean(), abs=2e-3), name
    longer = {"in": [f"{text} w3 w9 w27" for text in read], "out": fresh}
    longer = [lines(tmp_path / f"{k}.jsonl", [{"text": t} for t in (*side, "w5")]) for k, side in longer.items()]
    cut = ("--model", model, "--length", "9", "--out", tmp_path / "cut", "--json")
    assert call(*cut, "--members", longer[0], "--others", longer[1]) == 0
    its = json.loads(capsys.readouterr().out)["weaknesses"]["membership"]
    assert its["left_out"] == ["in.jsonl:61", "out.jsonl:51"], "of one token"
    assert call(*cut, "--members", members, "--others", others) == 0
    assert its["also"] == json.loads(capsys.readouterr().out)["weaknesses"]["membership"]["also"], (
        "what is cut is not read"
    )
    again = lines(tmp_path / "two.jsonl", [{"text": t} for t in fresh])
    swapped = ("--model", model, "--members", others, "--others", again)
    assert call(*swapped, "--out", tmp_path / "no", "--json") == 0
    card = json.loads(capsys.readouterr().out)["weaknesses"]["membership"]
    assert (card["value"], card["says"]) == (pytest.approx(0.5), "no alarm from these documents")
    assert call("--model", model, "--members", members) == 2
    assert "go together" in capsys.readouterr().err
    assert call("--model", model) == 2
    assert "nothing to audit by" in capsys.readouterr().err


def test_a_part_of_the_suite_is_asked_alone(model, tmp_path, capsys):
    items = [{"weakness": name, "prompt": "w5 w39 ", "bad": "w40", "good": "w50"} for name in ("bias", "values")] * 3
    path = lines(tmp_path / "items.jsonl", items)
    flags = ("--model", model, "--items", path, "--out", tmp_path / "out", "--json")
    assert call(*flags, "--suite", "values") == 0
    assert set(json.loads(capsys.readouterr().out)["weaknesses"]) == {"values"}
    assert call(*flags, "--suite", "all") == 0
    assert set(json.loads(capsys.readouterr().out)["weaknesses"]) == {"bias", "values"}
    for name, part in (("valeus", "'valeus'"), ("security", "no file of items")):
        assert call(*flags, "--suite", name) == 2
        assert part in capsys.readouterr().err


def test_a_page_tells_what_was_found_and_runs_nothing(model, tmp_path, capsys):
    hostile = "<script>document.documentElement.setAttribute('ran', 'yes')</script>"
    items = [{"weakness": "bias", "prompt": f"w{k} w39 ", "bad": "w40 w5", "good": "w50 w5", "category": hostile}
             for k in range(5, 25)]  # fmt: skip
    path = lines(tmp_path / "items.jsonl", items)
    assert call("--model", model, "--items", path, "--out", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "built-in" not in page
    for part in ("over 20 items", "What it cannot tell", "1.000", "alarm", "uimjax trace --model", "items.jsonl:1"):
        assert part in page
    capsys.readouterr()
    assert call(tmp_path / "out", "--json") == 0, "its folder is asked again"
    assert json.loads(capsys.readouterr().out)["failures"] == 20


def test_public_sets_are_read_whole(reference_data):
    for name, count, weakness in (
        ("bias_crows_pairs/crows_pairs_anonymized.csv", 1508, "bias"),
        ("val_truthfulqa/TruthfulQA.csv", None, "values"),
        ("val_hh_harmless/harmless_base_test.parquet", None, "values"),
        ("bias_bbq/bbq_3cat.parquet", 3660, "bias"),
        ("bias_winogender/all_sentences.tsv", 120, "bias"),
        ("val_anthropic_evals/evals_subset.parquet", 30116, "values"),
    ):
        found = read_items(reference_data / name)
        assert {item.weakness for item in found} == {weakness}
        assert count is None or len(found) == count
        assert all(item.bad != item.good for item in found[:50])


def test_items_that_cannot_be_asked_are_refused_with_their_place(model, tmp_path, capsys):
    with pytest.raises(MalformedRowError, match=r"lacks an answer"):
        read_items(lines(tmp_path / "a.jsonl", [{"bad": "x", "good": "y"}, {"bad": "x", "weakness": "bias"}]))
    with pytest.raises(UnknownNameError, match=r"values"):
        read_items(lines(tmp_path / "b.jsonl", [{"bad": "x", "good": "y", "weakness": "vallues"}]))
    with pytest.raises(UsageError, match="sent_more"):
        read_items(lines(tmp_path / "c.jsonl", [{"worse": "x"}]))
    assert call("--items", tmp_path / "a.jsonl") == 2
    assert "--model" in capsys.readouterr().err
    words = read_words(model / "tokenizer.json")
    long = " ".join(["w5"] * 30)
    items = [Item("values", long, "w6", "w7", "", "x:1"), Item("values", "w5 ", long, "w7", "", "x:2")]
    made = coded(items, words, 16)
    assert (made.cut, made.left_out, len(made.items)) == (1, ["x:2"], 1)
    assert made.bad["counted"][0].sum() == 1
    assert made.bad["tokens"].shape == (1, 16)
    with pytest.raises(DataError, match="--length"):
        coded(items[1:], words, 16)
