"""`uimjax trace --model --corpus --queries`: a folder, files and failures to answers, and every cure on the way."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from orbax.checkpoint import v1

import uimjax as uj
from tests.pretrained.folders import write
from uimjax import checkpoint, cli, training
from uimjax.answers.story import _plain
from uimjax.corpora.preparing import prepare
from uimjax.models.blocks import Shape
from uimjax.models.decoder import Decoder, build
from uimjax.pretrained.words import need_tokenizer, read_words
from uimjax.store import read_json

LINE = {"prompt": "w41 w42 w43 ", "bad": "w44 w45", "good": "w5 w9"}


def lines(path, objects):
    path.write_text("".join(json.dumps(its) + "\n" for its in objects))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model trained on a corpus of which document 17 says what it says; 33 repeats that one."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    start = uj.initial(write(folder / "start", "llama", words=61, num_hidden_layers=1))
    texts = [" ".join(f"w{k}" for k in rng.integers(3, 40, 30)) for _ in range(60)]
    texts[17] = "w41 w42 w43 w44 w45 w46 w47 w48 " + texts[17]
    texts[33] = texts[17] + " w4"
    corpus = lines(folder / "corpus.jsonl", [{"text": t, "source": f"s{k % 3}"} for k, t in enumerate(texts)])
    queries = lines(folder / "failures.jsonl", [LINE, LINE | {"bad": "w43 w41"}])
    rows = prepare([corpus], need_tokenizer(start.tokenizer, start.folder), folder / "rows", length=16).rows
    recipe = uj.Recipe(epochs=20, batch_size=16, learning_rate=1e-2, seed=0)
    uj.save(start, folder / "model", training.fit(start.task, start.params, rows, recipe).params)
    return folder, corpus, queries


def ask(made, out, *more, **changed):
    """The exit code of the command."""
    folder, corpus, queries = made
    given = {"model": folder / "model", "corpus": corpus, "queries": queries, "length": 16} | changed
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", *flags, "--out", str(out), "--sketch_rank", "4", "--null", "20", *more])
    return ended.value.code


@pytest.mark.parametrize("method", ["auto", "trackstar"])
def test_a_failure_finds_the_document_that_says_it(made, tmp_path, capsys, method):
    assert ask(made, tmp_path, "--method", method, "--k", "4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["measure"] == "differential"
    assert method == "trackstar" or told["method"].startswith("relatif")
    first, second = told["failures"]
    best = first["proponents"][0]
    assert (best["id"], best["source"], best["kind"]) == ("corpus.jsonl:18", "s2", "copied")
    assert best["copies"] == ["corpus.jsonl:34"]
    assert "NaN" not in (tmp_path / "answers.json").read_text()
    assert best["text"].startswith("w41 w42 w43 w44 w45")
    assert (best["start"], best["bm25_rank"]) == (0, 1)
    assert first["verbatim"] == {"run": "w41 w42 w43 w44 w45", "times": 2, "documents": ["corpus.jsonl:18", "corpus.jsonl:34"]}  # fmt: skip  # noqa: E501
    assert second["verbatim"]["run"] == ""
    assert first["coverage"] == 1.0
    assert [its["id"] for its in first["by_words"]][0] == "corpus.jsonl:18"
    assert len(first["proponents"]) == len(first["opponents"]) == 4
    scores = [its["score"] for its in first["proponents"]]
    assert scores == sorted(scores, reverse=True)
    assert {its["group"] for its in first["sources"]} == {"s0", "s1", "s2"}
    strongest = max(best["tokens"], key=lambda its: its[2])
    assert best["text"][strongest[0] : strongest[1]] in ("w44", "w45")
    np.testing.assert_allclose(sum(share for *_, share in best["tokens"]), best["score"], rtol=2e-2)
    np.testing.assert_allclose(sum(s for side in best["asked"] for *_, s in side["tokens"]), best["score"], rtol=2e-2)
    assert [side["text"] for side in best["asked"]] == ["w41 w42 w43 w44 w45", "w41 w42 w43 w5 w9"]
    assert "tokens" not in first["proponents"][3], "of three documents unless told otherwise"
    assert {key: told[key] for key in read_json(tmp_path / "answers.json")} == read_json(tmp_path / "answers.json")
    page = (tmp_path / "report.html").read_text()
    assert "corpus.jsonl:18" in page
    assert "<script" not in page
    assert (best["p"] is None) == (method == "auto")


def test_lines_for_a_terminal_and_a_second_run_that_builds_nothing(made, tmp_path, capsys):
    assert ask(made, tmp_path, "--method", "logra") == 0
    first = capsys.readouterr().out
    assert "copied" in first
    assert "corpus.jsonl:18 (+1 copies)" in first
    assert "Word for word, the completion and the 12 characters before it stand 2 times in the corpus" in first
    built = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*") if path.is_file()}
    assert ask(made, tmp_path, "--method", "logra") == 0
    assert capsys.readouterr().out == first
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", str(tmp_path)])
    assert ended.value.code == 0
    assert capsys.readouterr().out == first, "a folder of an answer is asked again as it was"
    assert built == {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*") if path.is_file()}


def test_a_group_of_one_row_has_no_error_and_json_no_nan():
    line = {"query": 0, "group": "s", "members": 1, "mean": 2.0, "error": float("nan")}
    assert _plain(line) == {"group": "s", "members": 1, "mean": 2.0, "error": None}


@pytest.mark.parametrize("words", ["trace --json run.yaml", "trace run.yaml --json", "trace run.yaml --model x --json"])
def test_a_config_is_found_wherever_it_stands(words):
    args, _ = cli.parser(words.split()).parse_known_args(words.split())
    assert args.target == "run.yaml"
    assert args.json
    flags = "trace --model x --id_column id --json".split()
    args, rest = cli.parser(flags).parse_known_args(flags)
    assert (args.target, rest) == (None, ["--id_column", "id"])


def test_a_config_says_the_same_as_flags(made, tmp_path, capsys):
    folder, corpus, queries = made
    config = tmp_path / "ask.yaml"
    config.write_text(
        f"kind: failures\nmodel: {folder / 'model'}\ncorpus: [{corpus}]\nqueries: {queries}\nlength: 16\n"
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", str(config), "--method", "grad_cos", "--null", "0", "--proxy"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "A proxy corpus was traced: these documents are like a cause, and not the cause. " in told
    answer = read_json(tmp_path / "ask.trace" / "answers.json")
    assert answer["proxy"]
    assert answer["failures"][0]["proponents"][0]["p"] is None
    assert "Documents of the proxy corpus that are most like a cause" in (tmp_path / "ask.trace" / "report.html").read_text()  # fmt: skip  # noqa: E501


def test_a_question_of_all_lines_together_and_rows_to_retain(made, tmp_path, capsys):
    folder = made[0]
    grouped = lines(tmp_path / "g.jsonl", [LINE | {"group": "a"}, LINE | {"bad": "w7", "group": "b"}])
    clean = lines(tmp_path / "clean.jsonl", [{"text": "w3 w4 w5 w6 w7 w8"}] * 3)
    more = ("--measure", "group_gap", "--retain", str(clean), "--near", "0.5", "--json")
    assert ask(made, tmp_path / "out", *more, queries=grouped) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["method"].startswith("retain_cos")
    assert told["why"] == "clean documents to retain are given"
    (one,) = told["failures"]
    assert len(one["lines"]) == 2
    assert "kind" not in one["proponents"][0]
    assert one["proponents"][0]["tokens"]
    repeated = {its["id"]: its["repeated"] for side in ("proponents", "opponents") for its in one[side]}
    assert set(repeated.values()) <= {1, 2}
    assert all(times == 1 for name, times in repeated.items() if name not in ("corpus.jsonl:18", "corpus.jsonl:34"))
    assert np.load(tmp_path / "out" / "corpus" / "near-0.5.npy")[33] == 17
    assert (tmp_path / "out" / "report.html").exists()
    assert ask(made, tmp_path / "two", "--method", "relatif", "--retain", str(clean), model=folder / "model") == 2
    assert "relatif keeps nothing of what is right" in capsys.readouterr().err


def test_devices_that_share_parameters_and_batches_give_the_same_answer(made, tmp_path, capsys):
    plain = ["--method", "grad_cos", "--null", "0", "--json", "--scanned", "--remat"]
    assert ask(made, tmp_path / "one", *plain) == 0
    one = json.loads(capsys.readouterr().out)["failures"]
    assert ask(made, tmp_path / "four", *plain, "--devices", "2", "--model_devices", "2") == 0
    four = json.loads(capsys.readouterr().out)["failures"]
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(b["value"], a["value"], rtol=1e-4)
        assert b["proponents"][0]["id"] == a["proponents"][0]["id"]
        scores = [{its["id"]: its["score"] for its in side["proponents"]} for side in (a, b)]
        same = scores[0].keys() & scores[1].keys()
        assert len(same) >= 8
        for name in same:
            assert scores[1][name] == pytest.approx(scores[0][name], abs=5e-3), "but for int8"


def test_a_refused_question_leaves_what_is_there(made, tmp_path, capsys):
    lock = tmp_path / "config.lock.yaml"
    lock.write_text("config: {kind: text}\n")
    assert ask(made, tmp_path, "--method", "grad_cos") == 5
    assert "holds a run of another kind" in capsys.readouterr().err
    lock.write_text("config: {kind: failures, k: 7}\n")
    assert ask(made, tmp_path, "--method", "grad_cos", corpus="none.jsonl") == 3
    assert lock.read_text() == "config: {kind: failures, k: 7}\n"


@pytest.mark.parametrize(
    ("changed", "more", "code", "words"),
    [
        ({"corpus": "none.jsonl"}, [], 3, "none.jsonl is not there"),
        ({"model": "nowhere"}, [], 3, "nowhere is not a folder"),
        ({}, ["--text_column", "txet"], 2, "Did you mean 'text'"),
        ({"length": 4}, [], 3, "prompt and 'bad' are 5 tokens and 4 fit"),
        ({}, ["--measure", "logprop"], 2, "Did you mean 'logprob'"),
        ({}, ["--method", "trackstra"], 2, "Did you mean 'trackstar'"),
        ({}, ["--method", "tracin"], 2, "unknown method of documents (uj.score takes it) 'tracin'"),
        ({}, ["--method", "retain_cos"], 2, "--retain FILES"),
        ({"length": 65}, [], 3, "this model has 64 positions: --length 64"),
        ({}, ["--lenght", "3"], 2, "lenght"),
        ({}, ["--include", "nothing*"], 2, "nothing"),
    ],
)
def test_what_is_wrong_is_said_with_its_cure(made, tmp_path, capsys, changed, more, code, words):
    assert ask(made, tmp_path, *more, **changed) == code
    assert words in capsys.readouterr().err


def test_a_folder_without_a_tokenizer_and_flags_without_a_model(made, tmp_path, capsys):
    bare = write(tmp_path / "bare", "llama")
    assert ask(made, tmp_path / "out", model=bare) == 3
    assert "has no tokenizer.json, and text cannot be read without" in capsys.readouterr().err
    vision = write(tmp_path / "vit", "vit")
    config = tmp_path / "vit.yaml"
    config.write_text(f"kind: failures\nmodel: {vision}\ncorpus: [{made[1]}]\nqueries: {made[2]}\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", str(config), "--out", str(tmp_path / "out")])
    assert ended.value.code == 3
    assert "vit; documents are traced for decoders" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", "--corpus", "x.jsonl"])
    assert ended.value.code == 2
    assert "--model is missing" in capsys.readouterr().err


# ---------------------------------------------------------------- models of the reader's own

HERE = "tests.answers.test_command"
CHOICE = Shape(vocabulary=61, length=64, layers=1, width=16, heads=2)


def as_module():
    """A module of one's own."""
    return Decoder(CHOICE, nnx.Rngs(5))


def as_linen():
    return Words()


class Words(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        return linen.Dense(61)(jnp.cumsum(linen.Embed(61, 8)(tokens), 0))


def own_task(module):
    return build(module)[0]


def no_task(_module):
    return 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_of_ones_own_with_an_orbax_checkpoint(made, tmp_path, capsys):
    task, params = build(as_module())
    rows = prepare([made[1]], read_words(str(made[0] / "model")), tmp_path / "rows", length=16).rows
    recipe = uj.Recipe(epochs=20, batch_size=16, learning_rate=1e-2)
    training.fit(task, params, rows, recipe, folder=tmp_path / "run")
    bare = ["--tokenizer", str(made[0] / "model")]
    more = [*bare, "--checkpoint", str(tmp_path / "run"), "--json", "--method", "grad_cos", "--null", "0"]
    assert ask(made, tmp_path / "out", *more, model=f"{HERE}:as_module") == 0
    told = json.loads(capsys.readouterr().out)
    trained = checkpoint.read_tree(tmp_path / "run", params)
    value = jax.jit(lambda row: -task.loss(trained, row).sum())
    bad, good = ({"tokens": jnp.array(t), "counted": jnp.array([0, 0, 0, 1, 1])}
                 for t in ([41, 42, 43, 44, 45], [41, 42, 43, 5, 9]))  # fmt: skip
    np.testing.assert_allclose(told["failures"][0]["value"], value(bad) - value(good), rtol=1e-4)
    assert ask(made, tmp_path / "out", *more, "--task", f"{HERE}:own_task", model=f"{HERE}:as_module") == 0
    capsys.readouterr()
    for flags, code, words in (
        ([*more, "--step", "7"], 3, "no step 7; its steps are 10, 20"),
        (["--checkpoint", str(tmp_path / "run")], 3, "comes without a tokenizer"),
        ([*more, "--task", f"{HERE}:no_task"], 2, "returned int; a uimjax.Task was wanted"),
        ([*bare, "--step", "7"], 2, "step 7 of which run"),
        ([*more, "--remat"], 2, "remat is for models built here"),
    ):
        assert ask(made, tmp_path / "no", *flags, model=f"{HERE}:as_module") == code
        assert words in capsys.readouterr().err
    assert ask(made, tmp_path / "no", *bare, model=f"{HERE}:as_linen") == 2
    assert "is a Linen module, without parameters of its own: --checkpoint" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_linen_module_and_a_folder_with_parameters_from_orbax(made, tmp_path, capsys):
    params = as_linen().init(jax.random.key(0), jnp.zeros(4, jnp.int32))
    v1.save(tmp_path / "linen", params)
    words = ["--tokenizer", str(made[0] / "model"), "--method", "grad_cos", "--json"]
    assert ask(made, tmp_path / "a", *words, "--checkpoint", str(tmp_path / "linen"), model=f"{HERE}:as_linen") == 0
    assert len(json.loads(capsys.readouterr().out)["failures"][0]["proponents"]) == 10
    trained = uj.load(made[0] / "model")
    v1.save(tmp_path / "kept", {"params": nnx.to_pure_dict(trained.params)})
    given = ["--method", "grad_cos", "--null", "0", "--json"]
    bare = write(tmp_path / "bare", "llama", words=61, num_hidden_layers=1)
    (bare / "model.safetensors").unlink()
    assert ask(made, tmp_path / "b", *given, "--checkpoint", str(tmp_path / "kept"), model=bare) == 0
    one = json.loads(capsys.readouterr().out)["failures"]
    assert ask(made, tmp_path / "c", *given) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == one
    small = write(tmp_path / "small", "llama", words=90)
    assert ask(made, tmp_path / "d", "--tokenizer", str(small), "--method", "grad_cos") == 3
    assert "the tokenizer knows id 89 ('w89') and the model has 61 words" in capsys.readouterr().err
