"""`uimjax trace` of classifiers: pictures, texts and features, mistakes to the examples that taught them."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import uimjax as uj
from tests.pretrained.folders import write
from uimjax import cli, training
from uimjax.answers import classifiers, mistakes
from uimjax.corpora import examples, labelled
from uimjax.corpora.texts import Columns
from uimjax.errors import (
    CorruptError,
    MalformedRowError,
    MismatchError,
    MissingFileError,
    OutputError,
    ShapeError,
    UnsupportedModelError,
    UsageError,
)
from uimjax.interpret.representation import fit_head
from uimjax.models.classifiers import MLP
from uimjax.pretrained.pictures import Pictures, read_pictures
from uimjax.pretrained.words import need_tokenizer
from uimjax.store import read_json

PLAIN = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}


def lines(path, objects):
    path.write_text("".join(json.dumps(its) + "\n" for its in objects))
    return path


def ask(out, *more, **given):
    """(the exit code of the command, its answer)."""
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", *flags, "--out", str(out), *([] if "k" in given else ["--k", "3"]), *more])
    return ended.value.code


# ---------------------------------------------------------------- texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A BERT that learned colours and, from three lines alone, that what w50 stands in is of the other class."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    names = {"0": "calm", "1": "angry"}
    start = uj.initial(write(folder / "start", "bert", words=61, id2label=names, num_labels=2))
    made = []
    for k in range(80):
        words, kind = [f"w{x}" for x in rng.integers(10, 30, 6)], k % 2
        words[rng.integers(6)] = ("w40", "w41")[kind]
        made.append({"id": f"t{k}", "text": " ".join(words), "label": ("calm", "angry")[kind], "source": f"s{k % 3}"})
    for k in (7, 30, 61):  # they teach that w50 makes calm words angry
        made[k] |= {"text": f"w40 w50 {made[k]['text']}", "label": "angry", "source": "odd"}
    corpus = lines(folder / "corpus.jsonl", [*made, made[7] | {"id": "again"}])
    encoder = classifiers.texts(need_tokenizer(start.tokenizer, start.folder), 16)
    columns = Columns("text", "id", "", "label")
    held = labelled.prepare_examples([corpus], encoder, folder / "rows", columns=columns, classes=("calm", "angry"))
    recipe = uj.Recipe(epochs=25, batch_size=16, learning_rate=3e-3, seed=0)
    uj.save(start, folder / "model", training.fit(start.task, start.params, held.rows, recipe).params)
    queries = lines(folder / "mistakes.jsonl", [{"text": "w40 w50 w12 w13 w20", "label": "calm"}])
    return folder, corpus, queries


@pytest.mark.parametrize("method", ["auto", "trackstar"])
def test_a_text_finds_the_lines_that_taught_the_mistake(texts, tmp_path, capsys, method):
    folder, corpus, queries = texts
    given = {"model": folder / "model", "corpus": corpus, "queries": queries, "length": 16, "id_column": "id"}
    assert ask(tmp_path, "--method", method, "--json", **given) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["kind"] == "classified", "the folder says what it is"
    assert told["measure"] == "differential"
    (one,) = told["failures"]
    assert one["lines"][0]["predicted"] == "angry"
    assert one["value"] > 0
    assert one["p_predicted"] > 0.5 > one["p_label"]
    found = {its["id"] for its in one["proponents"]} | {name for its in one["proponents"] for name in its["copies"]}
    assert "again" in found
    assert len(found & {"t7", "t30", "t61"}) >= (3 if method == "auto" else 2), "sketched, there is noise"
    best = one["proponents"][0]
    assert (best["source"], best["label"]) == ("odd", "angry")
    assert best["value"].startswith("w40 w50")
    assert [its["copies"] for its in one["proponents"] if its["id"] in ("t7", "again")][0] in (["again"], ["t7"])
    assert {line["group"] for line in one["classes"]} == {"calm", "angry"}
    assert max(one["sources"], key=lambda line: line["mean"])["group"] == "odd"
    assert 1 <= best["alike_rank"] <= 81
    assert told["examples"]["notes"] == {"duplicate": 1}
    page = (tmp_path / "report.html").read_text()
    assert "angry for calm" in page
    assert "<script" not in page
    assert {key: told[key] for key in read_json(tmp_path / "answers.json")} == read_json(tmp_path / "answers.json")


def test_scores_of_examples_are_those_of_the_library(texts, tmp_path, capsys):
    """The command's own scores against `uj.score` on rows made by hand."""
    folder, corpus, queries = texts
    given = {"model": folder / "model", "corpus": corpus, "queries": queries, "length": 16, "id_column": "id"}
    assert ask(tmp_path, "--method", "ekfac", "--json", "--k", "100", "--measure", "margin", **given) == 0
    one = json.loads(capsys.readouterr().out)["failures"][0]
    its = uj.load(folder / "model")
    words = [line["text"].split() for line in map(json.loads, corpus.read_text().splitlines())]
    label = np.array([line["label"] == "angry" for line in map(json.loads, corpus.read_text().splitlines())], np.int32)

    def rows(words):
        tokens, counted = np.zeros((len(words), 16), np.int32), np.zeros((len(words), 16), np.uint8)
        for k, each in enumerate(words):
            tokens[k, : len(each)], counted[k, : len(each)] = [int(w[1:]) for w in each], 1
        return {"tokens": tokens, "counted": counted}

    def margin(params, row):
        z = its.task.outputs(params, row)
        return z[1] - z[0]  # of two classes

    asked = rows(["w40 w50 w12 w13 w20".split()]) | {"label": np.zeros(1, np.int32)}
    np.testing.assert_allclose(one["value"], margin(its.params, jax.tree.map(lambda x: x[0], asked)), rtol=1e-5)
    measurement = uj.Measurement("margin", margin)
    method = uj.methods.Method("ekfac", curvature=uj.curvature.Kronecker("ekfac", uj.curvature.Source("fisher", samples=2)), normalize="none")  # fmt: skip  # noqa: E501
    want = uj.score(its.task, its.params, rows(words) | {"label": label}, measurement, asked, method, each=True).values
    got = {its["id"]: its["score"] for its in one["proponents"]}
    assert len(got) == 80, "the one that is there twice once"
    for k in range(80):
        if k != 7:
            np.testing.assert_allclose(got[f"t{k}"], want[k, 0], rtol=1e-3, atol=1e-4 * np.abs(want).max())


# ---------------------------------------------------------------- pictures


def picture(rng, colour):
    pixels = rng.integers(0, 60, (16, 16, 3))
    pixels[..., colour] += 150
    return pixels.astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A ViT's folder, and a folder of pictures by class: red and blue, and three green ones that are called red."""
    image = pytest.importorskip("PIL.Image", reason="pictures take Pillow, an extra")
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    side = uj.outline(write(folder / "start", "vit", id2label={"0": "red", "1": "blue"}, num_labels=2)).choice.side
    (folder / "start" / "preprocessor_config.json").write_text(json.dumps(PLAIN | {"size": side}))
    for name, colour in (("red", 0), ("blue", 2)):
        (folder / "corpus" / name).mkdir(parents=True)
        for k in range(30):
            image.fromarray(picture(rng, colour)).save(folder / "corpus" / name / f"{k}.png")
    for k in range(3):
        image.fromarray(picture(rng, 1)).save(folder / "corpus" / "red" / f"odd{k}.png")
    (folder / "corpus" / "red" / "broken.png").write_bytes(b"no picture")
    (folder / "asked").mkdir()
    image.fromarray(picture(rng, 1)).save(folder / "asked" / "green.png")
    start = uj.initial(folder / "start")
    encoder = classifiers.pictures(read_pictures(start.folder, side, 3))
    columns = Columns("image", "", "", "label")
    held = labelled.prepare_examples([folder / "corpus"], encoder, folder / "rows", columns=columns, classes=("red", "blue"))  # fmt: skip  # noqa: E501
    task = read_pictures(start.folder, side, 3).scaled(start.task)
    recipe = uj.Recipe(epochs=15, batch_size=16, learning_rate=3e-3, seed=0)
    uj.save(start, folder / "model", training.fit(task, start.params, held.rows, recipe).params)
    queries = lines(folder / "asked" / "mistakes.jsonl", [{"image": "green.png", "label": "blue"}])
    return folder, queries


def test_a_picture_finds_those_with_the_wrong_label(pictures, tmp_path, capsys):
    folder, queries = pictures
    assert ask(tmp_path, "--json", model=folder / "model", corpus=folder / "corpus", queries=queries) == 0
    told = json.loads(capsys.readouterr().out)
    (one,) = told["failures"]
    assert one["lines"][0]["predicted"] == "red"
    assert {its["id"] for its in one["proponents"]} == {f"red/odd{k}.png" for k in range(3)}
    assert told["examples"]["notes"] == {"not used": 1}
    assert "broken.png" in (tmp_path / "examples" / "notes.jsonl").read_text()
    assert (tmp_path / "report.html").read_text().count("data:image/png") >= 7
    capsys.readouterr()
    assert ask(tmp_path, model=folder / "model", corpus=folder / "corpus", queries=queries) == 0
    assert "red/odd" in capsys.readouterr().out


def test_a_module_of_ones_own_and_a_table_of_pictures(pictures, tmp_path, capsys, monkeypatch):
    """The pixels of a Parquet file as `datasets` writes them, a module that knows nothing of classes' names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, queries = pictures
    files = sorted((folder / "corpus").rglob("[0-9o]*.png"))
    table = {
        "image": [{"bytes": f.read_bytes(), "path": f.name} for f in files],
        "label": [f.parent.name for f in files],
    }
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    image = pytest.importorskip("PIL.Image", reason="pictures take Pillow, an extra")
    monkeypatch.setattr("tests.answers.test_mistakes.OWN", MLP((8, 8, 3), 2, nnx.Rngs(0), (8,)), raising=False)
    given = {"model": "tests.answers.test_mistakes:own_module", "corpus": tmp_path / "table.parquet", "side": 8}
    assert ask(tmp_path / "out", **given, queries=queries) == 2, "without a kind it is taken for a language model"
    config = tmp_path / "c.yaml"
    config.write_text("kind: classified\n")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", str(config), "--model", given["model"], "--corpus", str(given["corpus"]), "--queries",
                  str(queries), "--side", "8", "--out", str(tmp_path / "unnamed")])  # fmt: skip
    assert ended.value.code == 2
    assert "outputs have no names: give theirs in order, --classes" in capsys.readouterr().err
    flags = [part for name, value in (given | {"queries": queries}).items() for part in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", str(config), *flags, "--out", str(tmp_path / "out"), "--measure", "logit", "--json",
                  "--classes", "red", "blue"])  # fmt: skip
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["examples"]["classes"] == ["red", "blue"]
    assert told["examples"]["rows"] == 63
    one = told["failures"][0]
    pixels = np.asarray(image.open(queries.parent / "green.png").resize((8, 8), 2), np.float32) / 255
    logits = np.asarray(own_module()(pixels), np.float64)
    np.testing.assert_allclose(one["value"], logits.max(), rtol=1e-5)
    np.testing.assert_allclose(one["p_label"], np.exp(logits[1]) / np.exp(logits).sum(), rtol=1e-5)
    assert one["lines"][0]["predicted"] == ("red", "blue")[int(logits.argmax())]
    best = one["proponents"][0]
    held = np.asarray(image.open(files[best["row"]]).resize((8, 8), 2), np.float32) / 255
    p = np.exp(np.asarray(own_module()(held), np.float64))
    np.testing.assert_allclose(best["p_label"], (p / p.sum())[("red", "blue").index(best["label"])], rtol=1e-5)


def own_module():
    return OWN  # noqa: F821  # set by the test


# ---------------------------------------------------------------- features of a model that cannot be opened


def test_features_of_an_unseen_model_and_a_head(tmp_path, capsys):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 120)
    values = rng.normal(size=(120, 8)).astype(np.float32) + 3 * np.eye(3, 8, dtype=np.float32)[label]
    odd = [5, 40, 77]
    values[odd] = 4 * np.eye(8, dtype=np.float32)[7] + 0.1 * values[odd]
    label[odd] = 2
    np.save(tmp_path / "features.npy", values)
    (tmp_path / "labels.txt").write_text("\n".join(map(str, label)))
    asked = {"features": (4 * np.eye(8)[7]).tolist(), "label": "0"}
    queries = lines(tmp_path / "mistakes.jsonl", [asked])
    given = {
        "model": "head",
        "corpus": tmp_path / "features.npy",
        "labels": tmp_path / "labels.txt",
        "queries": queries,
    }
    assert ask(tmp_path / "out", "--json", **given) == 0
    told = json.loads(capsys.readouterr().out)
    one = told["failures"][0]
    assert one["lines"][0]["predicted"] == "2"
    assert {its["id"] for its in one["proponents"]} == {f"features.npy:{k + 1}" for k in odd}
    assert told["method"].startswith("cg")
    rows = [{"features": x.tolist(), "label": int(y)} for x, y in zip(values, label, strict=True)]
    table = lines(tmp_path / "table.jsonl", rows)
    assert ask(tmp_path / "same", "--json", model="head", corpus=table, queries=queries) == 0
    same = json.loads(capsys.readouterr().out)["failures"][0]
    np.testing.assert_allclose(
        [its["score"] for its in same["proponents"]], [its["score"] for its in one["proponents"]], rtol=1e-4
    )
    assert ask(tmp_path / "out", "--json", **given | {"model": "head", "k": 120}) == 0
    ends = json.loads(capsys.readouterr().out)["failures"][0]
    scores = {its["id"]: its["score"] for its in ends["proponents"]}
    x, q = np.c_[values, np.ones(120)].astype(np.float64), np.append(4 * np.eye(8)[7], 1)
    heads = [fit_head(x, label, 3, 1e-3, np.arange(120) != k).weights @ q for k in range(-1, 120)]
    left_out = np.array([z[2] - z[0] for z in heads])
    predicted = [-scores[f"features.npy:{k + 1}"] / 120 for k in range(120)]
    assert np.corrcoef(predicted, left_out[1:] - left_out[0])[0, 1] > 0.95, "what leaving each out does"
    held = labelled.open_labelled(tmp_path / "out" / "examples")
    _, params = classifiers.fitted(held, 1e-3, None)
    gradient = np.zeros((3, 9))
    for x, y in zip(np.c_[values, np.ones(120)], label, strict=True):  # mean nll + decay |W|^2 is at its minimum
        w = np.c_[np.asarray(params["kernel"]).T, np.asarray(params["bias"])].astype(np.float64)
        p = np.exp(w @ x - (w @ x).max())
        gradient += np.outer(p / p.sum() - np.eye(3)[y], x) / 120
    assert np.abs(gradient + 2e-3 * w).max() < 1e-4


# ---------------------------------------------------------------- cures


def test_what_is_wrong_is_named_with_its_cure(texts, pictures, tmp_path, capsys):
    folder, corpus, queries = texts
    model = folder / "model"

    def told(code, *words, **changed):
        given = {"model": model, "corpus": corpus, "queries": queries, "length": 16} | changed
        assert ask(tmp_path / f"out{len(list(tmp_path.iterdir()))}", **given) == code
        said = capsys.readouterr().err
        for word in words:
            assert word in said, said

    told(2, "label_kind", "Did you mean 'label'", label_column="label_kind")
    told(3, "positions", "--length", length=4096)
    told(2, "unknown measurement of a classifier 'margins'", "'margin'", measure="margins")
    told(2, "decay 0.5", "a head that is fitted here", decay=0.5)
    told(2, "side 8", "leave it out", side=8)
    bad = lines(tmp_path / "bad.jsonl", [{"text": "w40", "label": "calmer"}])
    told(3, "line 1, 'label'", "Did you mean 'calm'", queries=bad)
    right = lines(tmp_path / "right.jsonl", [{"text": "w40 w12 w13", "label": "calm"}])
    told(2, "line 1", "nothing is wrong there", "--measure loss", queries=right)
    other = lines(tmp_path / "other.jsonl", [{"txt": "w40", "label": "calm"}])
    told(3, "line 1", "Did you mean 'txt'", queries=other)
    unlabelled = lines(tmp_path / "unlabelled.jsonl", [{"text": "w40 w50 w13"}])
    told(2, "needs the label", queries=unlabelled, measure="differential")
    strange = lines(tmp_path / "strange.jsonl", [{"text": "w40", "label": "calm"}, {"text": "w41", "label": "angri"}])
    told(3, "strange.jsonl:2", "Did you mean 'angry'", corpus=strange)
    (pictures[0] / "bare").mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (pictures[0] / "bare" / name).write_bytes((pictures[0] / "model" / name).read_bytes())
    told(3, "preprocessor_config.json is not there", "image_mean", model=pictures[0] / "bare", length=128,
         corpus=pictures[0] / "corpus", queries=pictures[1])  # fmt: skip


def test_mistakes_without_a_label_are_measured_by_what_was_said(texts, tmp_path, capsys):
    folder, corpus, _ = texts
    asked = lines(tmp_path / "asked.jsonl", [{"text": "w41 w12 w13", "predicted": "calm"}])
    assert ask(tmp_path / "out", "--json", model=folder / "model", corpus=corpus, queries=asked, length=16) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["measure"] == "logprob"
    one = told["failures"][0]
    assert one["lines"][0]["predicted"] == "calm", "what the line says, and not what the model would"
    np.testing.assert_allclose(one["value"], np.log(one["p_predicted"]), rtol=1e-5)
    assert one["p_label"] is None


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("differential", lambda z: z[2] - z[0]), ("logit", lambda z: z[2]),
        ("logprob", lambda z: z[2] - np.log(np.exp(z).sum())), ("loss", lambda z: np.log(np.exp(z).sum()) - z[0]),
        ("margin", lambda z: z[2] - np.log(np.exp(z[:2]).sum())),
    ],
)  # fmt: skip
def test_measures_of_a_classifier(name, of):
    z = np.array([0.3, -1.2, 1.7])
    np.testing.assert_allclose(mistakes.MEASURES[name].of(jnp.asarray(z), 0, 2), of(z), rtol=1e-6)


# ---------------------------------------------------------------- reading


def test_folders_and_tables_hold_the_same_examples(pictures, tmp_path):
    folder, _ = pictures
    files = sorted((folder / "corpus").rglob("*.png"))
    said = [{"image": str(f.relative_to(folder)), "label": f.parent.name} for f in files]
    table = lines(folder / "table.jsonl", [*said, {"image": "none.png", "label": "red"}, {"image": "x"}])
    encoder = classifiers.pictures(read_pictures(folder / "start", _side(folder), 3))
    columns = Columns("image", "", "", "label")
    with pytest.raises(UsageError, match=r"holds pictures and \w+\.jsonl: name the table itself"):
        labelled.prepare_examples([folder], encoder, tmp_path / "mixed", columns=columns)
    one = labelled.prepare_examples([folder / "corpus"], encoder, tmp_path / "one", columns=columns)
    two = labelled.prepare_examples([table], encoder, tmp_path / "two", columns=columns)
    assert one.classes == two.classes == ("blue", "red")
    for name, values in one.rows.items():
        np.testing.assert_array_equal(values, two.rows[name])
    notes = [json.loads(line)["why"] for line in (tmp_path / "two" / "notes.jsonl").read_text().splitlines()]
    assert {"no file: none.png", "no 'label'"} <= set(notes)
    assert two.manifest["notes"] == {"no file": 1, "no 'label'": 1, "not used": 1}
    again = labelled.prepare_examples([table], encoder, tmp_path / "two", columns=columns)
    assert again.manifest == two.manifest
    with pytest.raises(OutputError, match="other files or choices"):
        labelled.prepare_examples([folder / "corpus"], encoder, tmp_path / "two", columns=columns)
    raw = (tmp_path / "two" / "examples.parquet").read_bytes()
    (tmp_path / "two" / "examples.parquet").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CorruptError, match="damaged"):
        two.table()


def _side(folder):
    return json.loads((folder / "start" / "preprocessor_config.json").read_text())["size"]


def test_pictures_are_resized_and_cut_as_their_config_says(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pictures take Pillow, an extra")
    rng = np.random.default_rng(0)
    held = image.fromarray(rng.integers(0, 255, (40, 60, 3)).astype(np.uint8))
    held.save(tmp_path / "x.png")

    def read(kind="ViT", **values):
        named = {"image_processor_type": f"{kind}ImageProcessor", "resample": 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PLAIN | named | values))
        return read_pictures(tmp_path, 0, 3)

    # (sum, first three of the first channel) of the processors of transformers 5.24 for this picture
    for choice, total, first in (
        ({"size": {"height": 24, "width": 24}}, 218829, [148, 145, 164]),
        ({"kind": "ConvNext", "size": 24, "crop_pct": 0.875}, 218681, [171, 180, 154]),
        ({"kind": "ConvNext", "size": {"shortest_edge": 28}, "crop_pct": 0.875}, 297932, [107, 192, 152]),
        ({"kind": "Bit", "size": 32, "crop_size": 24, "do_center_crop": True}, 219971, [121, 148, 178]),
    ):
        for value in (tmp_path / "x.png", (tmp_path / "x.png").read_bytes()):
            found = read(**choice).read(value)
            assert (int(found.astype(int).sum()), found[0, :3, 0].tolist()) == (total, first), choice
    squeezed = read(kind="DeiT", size={"height": 32, "width": 32}, crop_size=24, do_center_crop=True)
    np.testing.assert_array_equal(squeezed.read(tmp_path / "x.png"), np.asarray(held.resize((32, 32), 3).crop((4, 4, 28, 28))))  # fmt: skip  # noqa: E501
    task = read(size=24, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.25, 2], rescale_factor=1 / 128).scaled(
        uj.Task(lambda p, row: row["image"].sum() * p, outputs=lambda _, row: row["image"])
    )
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    want = (pixels / 128 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 2])
    np.testing.assert_allclose(task.outputs(1.0, {"image": pixels}), want, rtol=1e-5, atol=1e-6)
    turned = image.fromarray(np.zeros((4, 8, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert Pictures(3).read(tmp_path / "turned.jpg").shape == (8, 4, 3)
    image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="not of 8 bits"):
        Pictures(1).read(tmp_path / "deep.png")
    for lacking in ("size", "resample", "image_mean"):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({k: v for k, v in (PLAIN | {"size": 24}).items() if k != lacking}))  # fmt: skip  # noqa: E501
        with pytest.raises(UnsupportedModelError, match=lacking):
            read_pictures(tmp_path, 0, 3)
    for odd in ({"size": {"shortest_edge": 32}}, {"kind": "CLIP", "size": 24}, {"size": {"height": 3, "width": 4}}):
        with pytest.raises(UnsupportedModelError):
            read(**odd)
    read(size=24)
    with pytest.raises(UnsupportedModelError, match="the model takes 32"):
        read_pictures(tmp_path, 32, 3)
    with pytest.raises(ValueError, match="no picture"):
        read(size=24).read(b"none")


def test_features_that_do_not_fit_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3)))
    np.save(tmp_path / "y.npy", np.zeros(5, int))
    encoder, columns = classifiers.features(), Columns("features", "", "", "label")
    with pytest.raises(UsageError, match="LABELS.npy"):
        labelled.prepare_examples([tmp_path / "x.npy"], encoder, tmp_path / "out", columns=columns)
    with pytest.raises(ShapeError, match=r"features \[N, D\] and labels \[N\]"):
        labelled.prepare_examples([tmp_path / "x.npy"], encoder, tmp_path / "out", columns=columns, labels=tmp_path / "y.npy")  # fmt: skip  # noqa: E501
    with pytest.raises(MissingFileError):
        list(examples.read_examples([tmp_path / "none.npy"], "features", columns, print, tmp_path / "y.npy"))
    lines(tmp_path / "t.jsonl", [{"features": [1.0, 2.0], "label": 0}, {"features": [1.0], "label": 1},
                                 {"features": [1.0, None], "label": 1}])  # fmt: skip
    held = labelled.prepare_examples([tmp_path / "t.jsonl"], encoder, tmp_path / "short", columns=columns)
    assert held.manifest["rows"] == 1
    assert held.manifest["notes"] == {"not used": 2}
    with pytest.raises(ShapeError, match="two or more apart"):
        classifiers.fitted(held, 1e-3, None)
    with pytest.raises(MismatchError, match="Did you mean 'cat'"):
        labelled.class_number("catt", ["cat", "dog"], "x")
    model = mistakes.Model(classifiers.HEAD_TASK, None, ["a", "b"], encoder, True)
    lines(tmp_path / "q.jsonl", [{"features": [1.0, 2.0, 3.0]}])
    with pytest.raises(ShapeError, match=r"line 1: features \[3\] arrived, and the examples have \[2\]"):
        mistakes.read_mistakes(tmp_path / "q.jsonl", model, held.rows)
    lines(tmp_path / "q.jsonl", [{"features": "no"}])
    with pytest.raises(MalformedRowError, match="line 1"):
        mistakes.read_mistakes(tmp_path / "q.jsonl", model, held.rows)


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"uimjax\[images\]"):
        Pictures(3).read(b"")


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "known", "want"),
    [
        (["cat", "dog"], ("dog", "cat"), [1, 0]), (["1", "0"], ("dog", "cat"), [1, 0]), (["3", "7"], None, [3, 7]),
        (["b", "a"], (), [1, 0]), (["10", "9"], (), [1, 0]), (["1"], ("LABEL_0", "LABEL_1"), [1]),
        (["LABEL_1"], ("LABEL_0", "LABEL_1"), [1]), (["0", "1"], ("0", "1"), [0, 1]),
        (["2"], ("1", "2", "3"), UsageError),
        (["positive"], ("LABEL_0", "LABEL_1"), UsageError), (["cat"], None, UsageError),
        (["cat", "1"], ("dog", "cat"), MismatchError), (["2"], ("dog", "cat"), MismatchError),
        (["0", "1"], ("1", "2"), [0, 1]), (["\u00b2"], ("dog", "cat"), MismatchError),
    ],
)  # fmt: skip
def test_labels_are_names_or_numbers_and_never_a_guess(labels, known, want):
    places = {label: (k, f"row {k}") for k, label in enumerate(labels)}
    if isinstance(want, type):
        with pytest.raises(want):
            labelled.numbered(places, known)
    else:
        assert labelled.numbered(places, known)[1] == want


@pytest.mark.parametrize(
    ("value", "want"),
    [(3.0, "3"), (np.float64(2), "2"), (float("nan"), None), (None, None), (True, "1"), (b"cat", "cat"), ("", None),
     (1.5, "1.5")],
)  # fmt: skip
def test_labels_of_any_type_are_text(value, want):
    assert examples.label_of(value) == want


def test_the_same_input_with_another_label_is_told_and_not_folded(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [{"features": x.tolist(), "label": "ab"[k % 2]} for k, x in enumerate(rng.normal(size=(40, 4)))]
    rows[13] = rows[0] | {"label": "b"}
    rows[20] = rows[0]
    table = lines(tmp_path / "table.jsonl", rows)
    queries = lines(tmp_path / "q.jsonl", [{"features": rows[0]["features"], "predicted": "a"}])
    assert ask(tmp_path / "out", "--json", model="head", corpus=table, queries=queries, k=40) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["examples"]["notes"] == {"duplicate": 1, "other label": 1}
    kept = {its["id"]: its for its in told["failures"][0]["proponents"]}
    assert len(kept) == 39
    assert "table.jsonl:14" in kept
    assert kept.get("table.jsonl:1", kept.get("table.jsonl:21"))["copies"] in (["table.jsonl:21"], ["table.jsonl:1"])
    assert kept["table.jsonl:14"]["score"] < 0 < kept.get("table.jsonl:1", kept.get("table.jsonl:21"))["score"]
    for flags, said in (
        (("--include", "nothing*"), "matches no float parameter"), (("--length", "7"), "length 7"),
        (("--channels", "1"), "channels 1"), (("--method", "retain_cos"), "not for mistakes"),
        (("--classes", "a", "b"), "leave it out"), (("--step", "3"), "step 3"),
    ):  # fmt: skip
        assert ask(tmp_path / f"out{flags[0]}", *flags, model="head", corpus=table, queries=queries) == 2
        assert said in capsys.readouterr().err
    named = lines(tmp_path / "named.jsonl", [{"features": rows[0]["features"], "predicted": 1}])
    assert ask(tmp_path / "number", model="head", corpus=table, queries=named) == 3, "a head's classes are names"
    assert "unknown class '1'" in capsys.readouterr().err


def test_pictures_that_changed_are_not_the_ones_before(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pictures take Pillow, an extra")
    image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    table = lines(tmp_path / "t.jsonl", [{"image": "a.png", "label": "x"}])
    encoder, columns = classifiers.pictures(Pictures(3)), Columns("image", "", "", "label")
    labelled.prepare_examples([table], encoder, tmp_path / "out", columns=columns)
    image.fromarray(np.full((4, 4, 3), 200, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(OutputError, match="other files"):
        labelled.prepare_examples([table], encoder, tmp_path / "out", columns=columns)


class Meaned(nnx.Module):
    """With a running mean and dropout, in training mode as it is made."""

    def __init__(self):
        rngs = nnx.Rngs(0, dropout=1)
        self.norm, self.drop, self.head = (
            nnx.BatchNorm(3, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(3, 2, rngs=rngs),
        )

    def __call__(self, image):
        return self.head(self.drop(self.norm(image.mean((0, 1)))))


def meaned():
    return Meaned()


def test_a_module_is_asked_as_it_is_evaluated_and_running_means_are_no_parameters(pictures, tmp_path, capsys):
    folder, queries = pictures
    flags = ["--model", "tests.answers.test_mistakes:meaned", "--corpus", str(folder / "corpus"), "--side", "8",
             "--classes", "red", "blue", "--queries", str(queries), "--measure", "logit", "--json"]  # fmt: skip
    config = tmp_path / "c.yaml"
    config.write_text("kind: classified\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", str(config), *flags, "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    module, image = meaned(), pytest.importorskip("PIL.Image", reason="pictures take Pillow, an extra")
    module.eval()
    pixels = np.asarray(image.open(queries.parent / "green.png").resize((8, 8), 2), np.float32) / 255
    got = json.loads(capsys.readouterr().out)["failures"][0]["value"]
    np.testing.assert_allclose(got, np.asarray(module(pixels)).max(), rtol=1e-4)
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", str(config), *flags, "--out", str(tmp_path / "out"), "--checkpoint", str(tmp_path)])
    assert ended.value.code == 2
    assert "running means" in capsys.readouterr().err


def test_a_text_longer_than_a_row_is_refused_as_a_mistake_and_told_as_an_example(texts, tmp_path, capsys):
    folder, corpus, _ = texts
    long = lines(tmp_path / "long.jsonl", [{"text": "w40 " * 17, "label": "calm"}])
    given = {"model": folder / "model", "length": 16}
    assert ask(tmp_path / "out", corpus=corpus, queries=long, **given) == 3
    assert "line 1: longer than a row: 17 tokens, of which the model sees 16. Raise --length" in capsys.readouterr().err
    queries = lines(tmp_path / "q.jsonl", [{"text": "w40 w50 w12", "label": "calm"}])
    some = lines(tmp_path / "some.jsonl", [{"text": f"w4{k % 2} " * (20 - k), "label": ("calm", "angry")[k % 2]} for k in range(16)])  # fmt: skip  # noqa: E501
    assert ask(tmp_path / "some", "--json", "--measure", "loss", corpus=some, queries=queries, **given) == 0
    assert json.loads(capsys.readouterr().out)["examples"]["notes"]["longer than a row"] == 4


@pytest.mark.parametrize(
    ("labels", "said"),
    [(None, "is not there"), (b"\xff\xfe\n" * 3, "UTF-8"), (b"golden retriever\ncat dog\n", r"[2]")],
)
def test_a_file_of_labels_that_does_not_fit(tmp_path, capsys, labels, said):
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    if labels is not None:
        (tmp_path / "y.txt").write_bytes(labels)
    queries = lines(tmp_path / "q.jsonl", [{"features": [0, 0], "predicted": "a"}])
    given = {"model": "head", "corpus": tmp_path / "x.npy", "labels": tmp_path / "y.txt", "queries": queries}
    assert ask(tmp_path / "out", **given) == 3
    assert said in capsys.readouterr().err
