"""The risk register and the page in plain words: numbers, both languages, human verdicts, hostile names."""

import json
import re
import string
from pathlib import Path

import pytest
import yaml

from tests.test_browser import browse  # noqa: F401  # a fixture
from tests.test_page import HOSTILE, Parsed, made_run
from uimjax import cli
from uimjax.errors import MissingFileError, UnknownNameError
from uimjax.report import bundle, explained, findings, modelcard, register
from uimjax.report.findings import WEAKNESSES, Finding
from uimjax.report.phrases import PHRASES
from uimjax.report.verdicts import judged
from uimjax.store import digest_file, place
from uimjax.study.outputs import Output, write_outputs

SUITE = Path(__file__).parent.parent / "benchmarks" / "results" / "suite.json"


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def same_shape(one, two, at=""):
    assert type(one) is type(two), at
    if isinstance(one, dict):
        if at not in ("titles",):
            assert list(one) == list(two), at
        for key in one.keys() & two.keys():
            same_shape(one[key], two[key], key)
    elif isinstance(one, list):
        assert len(one) == len(two), at
    else:
        assert fields(one) == fields(two), f"{at}: the same fields are filled in"


def test_both_languages_say_the_same():
    same_shape(PHRASES["en"], PHRASES["zh"])
    assert set(PHRASES["en"]["weaknesses"]) == {*WEAKNESSES, "failure"} == set(register.SEVERITY)
    assert all(re.search("[\u4e00-\u9fff]", str(its["event"])) for its in PHRASES["zh"]["weaknesses"].values())


def test_levels_are_products():
    for severity in range(1, 6):
        for likely in range(1, 6):
            product = severity * likely
            want = 0 if product <= 4 else 1 if product <= 9 else 2 if product <= 16 else 3
            assert register.level(severity, likely) == want
    assert register.level(3, None) is None
    (row,) = register.rows([Finding("privacy", "x", 0.2, "20%", p_after=0.001, fix="npo", rows=3, fixed=True)])
    assert (row["severity"], row["likelihood"], row["level"]) == ("5 critical", "possible", "high")
    assert row["residual"] == "moderate"
    assert row["owner"] == ""
    (row,) = register.rows([Finding("values", "x", None, "-3.1")])
    assert (row["likelihood"], row["level"], row["residual"]) == ("not measured",) * 3
    assert row["evidence"] == "automatic evidence only"


def human(says, value, folder):
    path = folder / "outputs.jsonl"
    write_outputs(path, [Output("q", "?", "", {"before": "a", "traced": "b"})])
    its = {"value": value, "low": value - 0.1, "high": value + 0.1, "raters": 7, "says": says}
    (folder / "human.json").write_text(
        json.dumps(
            {
                "kind": "pairwise",
                "arms": ["before", "traced"],
                "effects": {"traced": its},
                "outputs": digest_file(place(path)),
            }
        )
    )


def test_what_people_say_enters_the_verdict(tmp_path):
    run = made_run(tmp_path / "run", ["calm"] * 10)
    said = lambda: Parsed((bundle.write_all(run, run / "report.html")).read_text()).text  # noqa: E731
    assert "automatic evidence only" in " ".join(said())
    human("better", 0.8, run / "secret")
    text = " ".join(said())
    assert "7 raters find it better than before (80%, 70% to 90%)" in text
    assert "fixed" in text
    human("worse", 0.2, run / "secret")
    assert "not fixed: people find what it says now worse than before" in " ".join(said())
    plain = Parsed((run / "explained.html").read_text())
    assert "The failure is not fixed: people find what it says now worse than before." in " ".join(plain.text)
    assert "0 fixed, 1 not fixed" in " ".join(plain.text)
    (row,) = json.loads((run / "register.json").read_text())
    assert row["evidence"].startswith("automatic and human: 7 raters find it worse")
    write_outputs(run / "secret" / "outputs.jsonl", [Output("q", "?", "", {"before": "a", "traced": "c"})])
    assert "automatic evidence only" in " ".join(said()), "of other outputs people said nothing"


def test_the_report_of_a_run_comes_with_its_pages(tmp_path, capsys):
    run = made_run(tmp_path / "run", ["calm"] * 10)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["report", str(run)])
    capsys.readouterr()
    page = Parsed((run / "report.html").read_text())
    hrefs = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    links = {value for value in hrefs if not value.startswith("#")}
    assert links == {"explained.html", "explained.zh.html"}
    assert all((run / link).exists() for link in links)
    assert "Residual risk" in page.text
    card = (run / modelcard.CARD).read_text()
    assert yaml.safe_load(card.split("---")[1]) == {"tags": ["uimjax"]}
    assert "## Bias, Risks, and Limitations" in card
    assert "| Leaked secret | the people and organisations whom the data is about | 5 critical |" in card
    zh = Parsed((run / "explained.zh.html").read_text())
    assert ("html", "lang", "zh-Hans") in zh.attributes
    text = "".join(zh.text)
    told = ["秘密泄露", "测得暴露度为 9.0 bits", "200 条训练样本中找出 2 条（1.0%）", "仅有自动化证据", "（待指定）"]
    for said in told:
        assert said in text, said
    with pytest.raises(SystemExit, match="0"):
        cli.main(["explain", str(run), "--lang", "zh", "--json", "--out", str(tmp_path / "x.html")])
    assert json.loads(capsys.readouterr().out)["page"] == str(tmp_path / "x.html")
    english = " ".join(Parsed((run / "explained.html").read_text()).text)
    told = ["9.0 bits of exposure", "1.0 bits", "2 of 200 training examples (1.0%)", "retain_cos", "npo", "1.2 bits"]
    for said in (*told, "8.9 bits", "+0.2%", "People were not asked."):
        assert said in english, said


@pytest.mark.parametrize("lang", list(PHRASES))
def test_of_the_whole_suite_each_weakness_is_told(tmp_path, lang):
    (tmp_path / "suite.json").write_text(SUITE.read_text())
    found = findings.of_folder(tmp_path)
    assert len(found) == 14
    assert {one.weakness for one in found} == set(WEAKNESSES)
    rows = register.rows(found, lang)
    by = {(one.weakness, one.title): row for one, row in zip(found, rows, strict=True)}
    (shortcut,) = [row for (name, title), row in by.items() if name == "generalization" and "text" in title]
    assert shortcut["fixed"] is False
    assert sum(bool(row["fixed"]) for row in rows) == 11, "as its closing note says: 7 of 8 and 4 of 6"
    for one, row in zip(found, rows, strict=True):
        text = " ".join(s for _, said in explained.sections(one, row, PHRASES[lang]) for s in said)
        assert not re.search(r"[{}]", text), text
        anew = PHRASES[lang]["page"]["retrained"]
        assert (anew in text) == (one.weakness == "dynamics"), "of all other fixes it is said that nothing began anew"
        assert one.before in text
    bundle.write_all(tmp_path, tmp_path / "report.html")
    assert "Risk register" in (tmp_path / "report.html").read_text()


CARD = {"value": 0.7, "low": 0.6, "high": 0.8, "reference": 0.5, "says": "alarm", "cannot": "why"}
FOLDERS = {
    "audit.json": {
        "model": "m", "failures": 1, "weaknesses": {"bias": CARD, "parity by sex": CARD | {"says": "no alarm"},
                                                "adversary": CARD | {"says": "told, not judged"}},
    },
    "mended.json": {
        "method": "npo", "edit": {"rows": 4}, "before": {"failures": [3.0, 1.0]}, "cost": 0.01, "says": "mended: x",
        "after": {"traced": [{"failures": [-1.0, -1.0]}], "random": [{"failures": [2.0, 2.0]}]},
    },
    "answers.json": {
        "method": "ekfac",
        "failures": [{"proponents": [{"id": "a"}, {"id": "b"}]}, {"proponents": [{"id": "a"}]}],
    },
    "card.json": {
        "documents": 10, "personal_documents": 2, "copies": {"repeat": 1}, "people": {"findings": []},
        "contamination": [{"contaminated": 3, "items": 4}], "labels": None,
    },
}  # fmt: skip
TITLES = {
    "audit.json": ["bias", "parity by sex", "adversary"],
    "mended.json": ["The failures that were traced"],
    "answers.json": ["Failures of the reader's own"],
    "card.json": ["Personal data in the corpus", "Near copies in the corpus", "Evaluation items in the corpus"],
}


def test_of_other_folders(tmp_path):
    for name, document in FOLDERS.items():
        at = tmp_path / name[:4]
        at.mkdir()
        (at / name).write_text(json.dumps(document))
        assert [one.title for one in findings.of_folder(at)] == TITLES[name]
        assert "What was found, in plain words" in bundle.write_all(at, at / "r.html").read_text()
        for lang in PHRASES:
            text = explained.write_page(at, at / "e.html", lang).read_text()
            assert "{" not in Parsed(text).text[-1]
    (bias, parity, _) = findings.of_folder(tmp_path / "audi")
    assert (bias.weakness, bias.alarm, parity.weakness, parity.alarm) == ("bias", True, "bias", False)
    assert (bias.p, parity.p) == (0.7, None), "a gap is no rate"
    assert len(register.rows([bias, parity])) == 1, "what found nothing is no risk"
    explained.write_page(tmp_path / "audi", tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "Tests that found nothing beyond chance: parity by sex." in text
    assert "Tests without a verdict: adversary." in text
    (trace,) = findings.of_folder(tmp_path / "answ")
    assert (trace.rows, trace.method) == (2, "ekfac")
    explained.write_page(tmp_path / "card", tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text()
    assert "No model was looked at" in text
    assert "The model gives away" not in text
    assert all(row["likelihood"] == "not measured" for row in register.rows(findings.of_folder(tmp_path / "card")))
    (own,) = findings.of_folder(tmp_path / "mend")
    assert (own.before, own.after, own.random, own.fixed) == ("2.00", "-1.00", "2.00", True)
    with pytest.raises(MissingFileError, match="holds no finished run, mitigation, audit"):
        explained.write_page(tmp_path, tmp_path / "x.html")
    with pytest.raises(UnknownNameError, match="unknown language 'de'"):
        explained.write_page(tmp_path / "mend", tmp_path / "x.html", "de")


def test_which_answers_people_compared_matters():
    its = {"value": 0.2, "low": 0.1, "high": 0.3, "raters": 7, "says": "worse"}
    said = lambda arms, arm, its=its: judged(  # noqa: E731  # one line, used thrice
        "fixed", True, {"kind": "pairwise", "arms": arms, "effects": {arm: its}}, PHRASES["en"]
    )
    assert said(["before", "traced"], "traced")[2] is False
    verdict, rests, fixed = said(["traced", "before"], "before")
    assert (verdict, fixed) == ("fixed", True), "that before is worse than now is praise"
    assert "better than before (80%, 70% to 90%)" in rests
    assert said(["oracle", "traced"], "traced") == ("fixed", "automatic evidence only", True), "before was not shown"


def test_a_secret_that_is_hardly_exposed_is_no_certain_leak(tmp_path):
    run = made_run(tmp_path / "run", ["calm"] * 10)
    (one,) = findings.of_folder(run)
    assert one.p == pytest.approx(1.0), "9 bits of 512 candidates"
    assert one.p_after == pytest.approx(2 ** (1.2 - 9))
    result = json.loads((run / "text.json").read_text())
    result["secret"]["probe_before"] = 2.0
    (run / "text.json").write_text(json.dumps(result))
    (one,) = findings.of_folder(run)
    assert one.p == pytest.approx(2 ** (2.0 - 9))


def test_an_accuracy_is_turned_round():
    worst = CARD | {"value": 0.98, "worse": "low"}
    (one,) = findings.of_audit({"weaknesses": {"worst group by sex": worst}})
    assert one.p == pytest.approx(0.02)
    (area,) = findings.of_audit({"weaknesses": {"membership": CARD}})
    assert area.p is None


def test_hostile_names_run_nothing(tmp_path, browse):  # noqa: F811  # the fixture
    cruel = {f"{text[:60]}{k}": CARD | {"cannot": text[:500]} for k, text in enumerate(HOSTILE)}
    (tmp_path / "audit.json").write_text(json.dumps({"model": "m", "failures": 1, "weaknesses": cruel}))
    path = explained.write_page(tmp_path, tmp_path / "e.html")
    elements, asked = browse(path)
    assert "<script" not in elements
    assert {url for url in asked if not url.startswith(("file:", "data:"))} == set()
    modelcard.write(register.rows(findings.of_folder(tmp_path)), HOSTILE[0], tmp_path)
    assert not re.search(r"<(script|img|svg)", (tmp_path / modelcard.CARD).read_text())
