"""`uimjax scaling` in processes of its own: from a table to a law, its use, a sweep, and what is refused."""

import json

import numpy as np
import pytest
import yaml

from tests.conftest import command_line
from tests.understand.scaling.test_fits import TRUE, literal, made
from uimjax.cli import parser
from uimjax.commands.scaling import scaling
from uimjax.errors import UimError, UnknownNameError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("law")
    table = made("chinchilla", noise=0.01)
    lines = [f"{n!r},{d!r},{y!r}" for n, d, y in zip(*(table[k].tolist() for k in ("N", "D", "score")), strict=True)]
    (at / "runs.csv").write_text("\n".join(["params,tokens,loss", *lines]) + "\n")
    few = ("--holdout", "largest", "--starts", "64", "--draws", "100")
    done = command_line("scaling", "fit", "runs.csv", *few, "--out", "law", "--json", cwd=at)
    assert done.returncode == 0, done.stderr
    (at / "answer.json").write_text(done.stdout)
    return at


def test_a_table_becomes_a_law_with_all_that_a_reader_wants(folder):
    answer = json.loads((folder / "answer.json").read_text())
    for name, (low, high) in answer["intervals"].items():
        assert low <= answer["parameters"][name] <= high
    assert low < TRUE["chinchilla"]["beta"] < high
    assert answer["columns"] == {"loss": "loss", "N": "params", "D": "tokens"}
    assert answer["optima"][0]["share_of_starts"] > 0.9
    assert len(answer["holdout"]["runs"]) == 1
    assert answer["holdout"]["fitted_to"] == 59
    assert {path.name for path in (folder / "law").iterdir()} >= {"law.json", "law.svg", "law.csv", "law.txt"}
    assert "the run held out" in (folder / "law" / "law.txt").read_text()


def called(folder, monkeypatch, *args):
    monkeypatch.chdir(folder)
    given = parser(args).parse_args(["scaling", *args])
    return scaling(given, [])


def test_the_law_predicts_and_splits_compute(folder, monkeypatch, capsys):
    called(folder, monkeypatch, "predict", "law", "--at", "N=1e9,7e10", "D=2e10,1.4e12", "--json")
    rows = json.loads(capsys.readouterr().out)["predictions"]
    p = json.loads((folder / "answer.json").read_text())["parameters"]
    for row in rows:
        said = p["E"] + p["A"] / row["N"] ** p["alpha"] + p["B"] / row["D"] ** p["beta"]
        assert row["value"] == pytest.approx(said, rel=1e-9)
        assert row["run"][0] < row["law"][0] < row["value"] < row["law"][1] < row["run"][1]
    called(folder, monkeypatch, "predict", "law", "--at", "N=1e9", "D=2e10")
    assert "a further run [" in capsys.readouterr().out
    called(folder, monkeypatch, "allocate", "law", "--compute", "1e22", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["value"] * found["tokens"]["value"] * 6 == pytest.approx(1e22, rel=1e-6)
    called(folder, monkeypatch, "allocate", "law", "--compute", "1e22")
    assert "C = 6 N D" in capsys.readouterr().out


def test_the_best_sizes_of_budgets(tmp_path, monkeypatch, capsys):
    p, rows = TRUE["chinchilla"], ["params,flops,bits"]
    for compute in (1e18, 1e19, 1e20):
        g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
        for size in g * (compute / 6) ** (p["beta"] / (p["alpha"] + p["beta"])) * np.geomspace(0.5, 2, 7):
            loss = p["E"] + p["A"] / size ** p["alpha"] + p["B"] / (compute / 6 / size) ** p["beta"]
            rows.append(f"{float(size)!r},{compute!r},{float(loss)!r}")
    (tmp_path / "runs.csv").write_text("\n".join(rows) + "\n")
    given = ("isoflop", "runs.csv", "--loss", "bits", "--draws", "50")
    called(tmp_path, monkeypatch, *given, "--out", "iso", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["exponent"] == pytest.approx(p["beta"] / (p["alpha"] + p["beta"]), abs=2e-3)
    assert [budget["runs"] for budget in found["budgets"]] == [7, 7, 7]
    assert {path.name for path in (tmp_path / "iso").iterdir()} >= {"isoflop.json", "isoflop.svg", "isoflop.csv"}
    called(tmp_path, monkeypatch, *given, "--out", "iso")
    assert "N* grows as C^" in capsys.readouterr().out
    higher = [f"{size},1e21,{3 - k / 10}" for k, size in enumerate((1e8, 2e8, 4e8, 8e8))]  # it falls to the last size
    (tmp_path / "runs.csv").write_text("\n".join([*rows, *higher]) + "\n")
    called(tmp_path, monkeypatch, *given, "--out", "iso")
    assert "none between" in capsys.readouterr().out
    assert json.loads((tmp_path / "iso" / "isoflop.json").read_text())["budgets"][3]["best_size"] is None
    with pytest.raises(UnknownNameError, match="bitz"):
        called(tmp_path, monkeypatch, "isoflop", "runs.csv", "--loss", "bitz")


def test_a_score_through_the_loss(tmp_path, monkeypatch, capsys):
    table = made("chinchilla", noise=0.01)
    accuracy = literal("sigmoid", TRUE["sigmoid"], {"loss": table["score"]})
    lines = zip(*(x.tolist() for x in (table["N"], table["D"], table["score"], accuracy)), strict=True)
    (tmp_path / "runs.csv").write_text("N,D,loss,acc\n" + "".join(",".join(map(repr, row)) + "\n" for row in lines))
    few = ("--starts", "64", "--draws", "50", "--at", "N=1e9,1e10", "D=1e11,1e12")
    called(tmp_path, monkeypatch, "score", "runs.csv", "--score", "acc", *few, "--json")
    found = json.loads(capsys.readouterr().out)
    for row, n, d in zip(found["predictions"], (1e9, 1e10), (1e11, 1e12), strict=True):
        truth = literal(
            "sigmoid", TRUE["sigmoid"], {"loss": literal("chinchilla", TRUE["chinchilla"], {"N": n, "D": d})}
        )
        assert row["value"] == pytest.approx(float(truth), abs=0.01)
        assert row["run"][0] <= row["law"][0] <= row["value"] <= row["law"][1] <= row["run"][1]
    assert set(found["steps"]) == {"loss", "score"}
    called(tmp_path, monkeypatch, "score", "runs.csv", "--score", "acc", *few)
    assert "a further run [" in capsys.readouterr().out
    with pytest.raises(UnknownNameError, match="'accuracy'"):
        called(tmp_path, monkeypatch, "score", "runs.csv", "--score", "accuracy", *few)


def test_a_sweep_of_one_command_ends_in_a_law_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    config = {"kind": "sweep", "axes": {"width": [8], "data": [100, 200, 400, 800], "epochs": [4], "seed": [0, 1],
                                        "corruption": [0.0, 0.4], "learning_rate": [1e-2]},
              "starts": 64, "draws": 50, "out": "s"}  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(config))
    called(tmp_path, monkeypatch, "sweep", "sweep.yaml", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["left_out"]) == (16, 0)
    assert found["law"]["form"] == "corrupted"
    assert np.isfinite(found["law"]["parameters"]["kappa"])
    before = (tmp_path / "s" / "runs.csv").read_bytes()
    called(tmp_path, monkeypatch, "sweep", "sweep.yaml")
    assert "16 runs in s/runs.parquet" in capsys.readouterr().out
    assert (tmp_path / "s" / "runs.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (("fit", "none.csv"), 3, "is not a file"),
        (("fit", "runs.csv", "--loss", "los"), 2, "Did you mean 'loss'"),
        (("fit", "runs.csv", "--columns", "N"), 2, "NAME=VALUE was wanted"),
        (("fit", "runs.csv", "--fix", "alpha=x"), 2, "'x' is no number"),
        (("fit", "runs.csv", "--form", "chinchila"), 2, "Did you mean 'chinchilla'"),
        (("predict", "nowhere", "--at", "N=1"), 3, "uimjax scaling fit"),
        (("predict", "law", "--at", "N=1e9,2e9", "D=1e9"), 2, "as many of each input"),
        (("allocate", "law", "--compute", "5"), 2, "leave no room"),
        (("sweep", "runs.csv"), 2, "mapping of settings"),
    ],
)
def test_wrong_input_ends_with_its_code_and_its_cure(folder, monkeypatch, args, code, match):
    with pytest.raises(UimError, match=match) as caught:
        called(folder, monkeypatch, *args)
    assert caught.value.exit_code == code
