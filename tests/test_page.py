"""The page: harmless whatever the training text holds, offline, masked, and saying what the run found."""

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
import yaml

from uimjax.config import LOCK, TextConfig
from uimjax.errors import MissingFileError, OutputError
from uimjax.report import markup, page, tables

HOSTILE = [
    "</pre></article><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>",
    "{{ 7*7 }} {% raw %} {{ config }}", "\x1b[31mred\x1b]8;;http://x\x07", "\u202eevil\u2066\u2069", "nul\x00byte",
    "a\u2028b\u2029c\x85d", "[/b] [bold]", "=HYPERLINK(\"http://x\")", "]]><!--", "\"'`><", "\ud800 lone",
    "\ufeff\u200b\u00ad",
    "<link rel=stylesheet href=//x>", "<base href=//x>", "<meta http-equiv=refresh content=0;url=//x>",
    "javascript:alert(1)", "&lt;script&gt;&#x3c;", "x" * 1_000_000,
]  # fmt: skip
TAGS = set(
    "html head meta title style body header p h1 h2 h3 h4 div table thead tbody tr th td a span section figure img "
    "figcaption details summary article pre ul li code br".split()
)
ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "class", "id", "href", "src", "alt", "title"}


class Parsed(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


SECRET = "k3y0fth3b4nk"


def made_run(folder, texts, path="mod.py"):
    """A finished text run's files, as the workflow leaves them."""
    hits = []
    for k, text in enumerate(texts):
        tokens = [[a, min(a + 3, len(text)), (-1) ** a * a / 50] for a in range(0, min(len(text), 300), 3)]
        place = {"path": path, "line": 3, "column": 0, "at": [3, 1]}
        hits.append({"row": k, "score": 0.5 - k / 100, **place, "text": text, "tokens": tokens})
    result = {
        "method": "retain_cos", "draws": 1, "seconds": 1.0, "probe": "bits", "utility": "loss on clean held-out text",
        "probe_clean_twin": 1.0, "probe_before": 9.0, "utility_before": 4.0, "base_rate": 0.01,
        "trace_ap": {"retain_cos": 0.97, "bm25": 0.5, "random": 0.01}, "trace_recall": {}, "trace_ap_by_draw": [0.97],
        "probe_without_planted_rows": 1.0, "mitigation": "npo", "verdict": "fixed", "probe_after_traced": 1.2,
        "probe_after_oracle": 1.1, "probe_after_random": 8.9, "closed_traced": 0.97, "closed_oracle": 0.98,
        "closed_random": 0.01, "spread": 0.1, "utility_after": 4.01, "utility_cost": 0.0025, "other_mitigations": {},
        "extraction_before": 1.0, "extraction_after_traced": 0.0,
    }  # fmt: skip
    at = folder / "secret"
    at.mkdir(parents=True)
    arms = {arm: [{"probe": 1.0 + s, "utility": 4.0} for s in range(3)] for arm in ("traced", "oracle", "random")}
    trace = {
        "method": "retain_cos, rank-16 sketch",
        "sign": "s",
        "unit": "relative",
        "rows": 200,
        "sensitive": [SECRET],
    }
    (at / "trace.json").write_text(json.dumps(trace | {"proponents": hits[:8], "opponents": hits[-2:]}))
    (at / "outcomes.json").write_text(json.dumps({"npo": arms}))
    (at / "edit-traced.json").write_text(json.dumps({"rows": [1, 2]}))
    rng = np.random.default_rng(0)
    scores = {name: rng.normal(size=200) for name in result["trace_ap"]}
    tables.write_scores(at / "scores.parquet", scores, 200)
    tables.write_scores(at / "null.parquet", {f"null-{k}": rng.normal(size=200) for k in range(3)}, 200)
    lock = {"config": TextConfig().model_dump(mode="json"), "corpus": {"train": "d1"}, "made_with": {"jax": "0"}}
    (folder / LOCK).write_text(yaml.safe_dump(lock))
    (folder / "text.json").write_text(json.dumps({"secret": result}))
    return folder


def rendered(folder, **more):
    return page.write_page(folder, folder / "report.html", **more).read_text(encoding="utf-8")


def test_hostile_training_text_is_only_text(tmp_path):
    calm = Parsed(rendered(made_run(tmp_path / "a", ["calm"] * 10)))
    for start in range(0, len(HOSTILE), 8):
        some = (HOSTILE[start : start + 8] * 3)[:10]
        source = rendered(made_run(tmp_path / f"b{start}", some, path="<b>/" + some[0][:30]))
        found = Parsed(source)
        assert set(found.tags) <= TAGS
        assert {name for _, name, _ in found.attributes} <= ATTRIBUTES
        same = [t for t in found.tags if t not in ("span",)]
        assert same == [t for t in calm.tags if t not in ("span",)], "nothing changes but the rendered text"
        for tag, name, value in found.attributes:
            if name == "src":
                assert re.match(r"data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+$", value)
            if name == "href":
                assert (tag, value) == ("a", "#secret")
            assert not name.startswith("on")
        assert not [c for c in source if ord(c) < 32 and c not in "\n\t"], "no raw control character"
        assert not set("\u202e\u2066\u2069\u2028\x85\x7f\ud800\u200b") & set(source)
        assert len(source.encode()) < 5e6


def test_what_was_hostile_can_still_be_read(tmp_path):
    text = " ".join(Parsed(rendered(made_run(tmp_path / "a", HOSTILE[:10]))).text)
    plain = re.sub(r"\s+", "", text)
    assert "</pre></article><script>alert(1)</script>" in plain
    assert "{{7*7}}" in plain
    assert "[U+001B][31mred[U+001B]" in plain
    assert "[U+202E]evil" in plain
    assert "nul[U+0000]byte" in plain


def test_the_policy_forbids_everything_but_its_own_style_and_pictures(tmp_path):
    source = rendered(made_run(tmp_path / "a", ["calm"] * 10))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', source)[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    style = re.search(r"<style>(.*?)</style>", source, re.S)[1]
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in html.unescape(policy)
    assert "<script" not in source
    assert " style=" not in source, "the policy would drop it"
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", source)


def test_secrets_are_masked_in_the_file_unless_revealed(tmp_path):
    """The tokens' spans cut the secret into pieces, so what counts is the text that a reader sees."""
    texts = [f'x = 1\nAPI = "{SECRET}"  # {SECRET}\n'] * 10
    folder = made_run(tmp_path / "a", texts, path=f"{SECRET}.py")
    summary = json.loads((folder / "text.json").read_text())
    (folder / "text.json").write_text(json.dumps(summary | {"behaviour": summary["secret"]}))
    shutil.copytree(folder / "secret", folder / "behaviour")
    other = json.loads((folder / "behaviour" / "trace.json").read_text())
    (folder / "behaviour" / "trace.json").write_text(json.dumps(other | {"sensitive": []}))
    hidden, shown = ("".join(Parsed(rendered(folder, reveal=reveal)).text) for reveal in (False, True))
    hits = 2 * 10 * 3  # failures, rows, and twice in each text and once in its path
    assert (hidden.count(SECRET), shown.count(SECRET)) == (0, hits)
    assert hidden.count(markup.MASK) == hits


def test_the_page_says_what_the_run_found(tmp_path):
    folder = made_run(tmp_path / "a", ["def f():\n    return 1\n"] * 10)
    text = re.sub(r"\s+", " ", " ".join(Parsed(rendered(folder)).text))
    for words in (
        "the secret is exposed by 9.0 bits (clean twin: 1.0)", "fixed", "random rows (control)", "bm25",
        "positive = proponent", "mod.py:3", "relative", "d1", "kind: text", "dashed: the 2 rows of the edit",
    ):  # fmt: skip
        assert words.lower() in text.lower(), words


def test_a_cause_is_named_only_where_the_retraining_shows_it(tmp_path):
    folder = made_run(tmp_path / "a", ["calm"] * 10)
    assert "they are the cause" in rendered(folder)
    result = json.loads((folder / "text.json").read_text())
    result["secret"]["probe_without_planted_rows"] = 8.5
    (folder / "text.json").write_text(json.dumps(result))
    assert "they are not shown to be the whole cause" in rendered(folder)


def test_a_baseline_that_does_as_well_is_named(tmp_path):
    folder = made_run(tmp_path / "a", ["calm"] * 10)
    assert "does as well" not in rendered(folder)
    result = json.loads((folder / "text.json").read_text())
    result["secret"]["trace_ap"]["bm25"] = 0.98
    (folder / "text.json").write_text(json.dumps(result))
    assert "bm25 (0.98) does as well or better" in rendered(folder)


def test_an_unfinished_run_and_a_bad_place_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match="holds no finished run; `uimjax run"):
        page.write_page(tmp_path, tmp_path / "r.html")
    folder = made_run(tmp_path / "a", ["calm"] * 10)
    with pytest.raises(OutputError, match="choose another place with --out"):
        page.write_page(folder, tmp_path / "no" / "r.html")


def test_shares_become_levels_on_the_right_characters():
    lines = markup.highlight("ab\ncd\n", 7, [[0, 1, 1.0], [1, 3, -0.5], [3, 5, 0.01]], [])
    assert [line.number for line in lines] == [7, 8]
    assert [(p.text, p.css) for p in lines[0].pieces] == [("a", "p5"), ("b", "n3")]
    assert [(p.text, p.css) for p in lines[1].pieces] == [("cd", "")]
    hidden = markup.highlight("ab\n", 1, [[0, 2, 1.0]], ["b"])
    assert [(p.text, p.css) for p in hidden[0].pieces] == [("a", "p5"), (markup.MASK, "p5 masked")]
    assert markup.level(0.05) == ""
    assert markup.level(-1.0) == "n5"


def test_a_masked_secret_tells_neither_its_length_nor_its_tokens():
    (line,) = markup.highlight("k = abcdef\n", 1, [[0, 4, 0.1], [4, 6, -0.4], [6, 7, 1.0], [7, 10, 0.2]], ["abcdef"])
    assert [p for p in line.pieces if "masked" in p.css] == [markup.Piece(markup.MASK, "p5 masked", "")]
    assert markup.masked("abcdef x abcdefabcdef", ["abcdef"]) == f"{markup.MASK} x {markup.MASK}"


def test_a_file_name_is_one_short_line_without_a_secret():
    shown = markup.file_name("a\nVerdict: fixed\t\x1b[31m/k3y/" + "b" * 700_000 + ".py", ["k3y"])
    assert shown.startswith(f"a[U+000A]Verdict: fixed[U+0009][U+001B][31m/{markup.MASK}/bbb")
    assert shown.endswith("bbb.py")
    assert len(shown) < 300


def test_a_half_finished_demo_gets_no_page(tmp_path):
    made_run(tmp_path / "demo" / "text", ["calm"] * 10)
    (tmp_path / "demo" / "vision").mkdir()
    shutil.copy(tmp_path / "demo" / "text" / LOCK, tmp_path / "demo" / "vision" / LOCK)
    with pytest.raises(MissingFileError, match="1 of its 2 parts are; `uimjax run .*demo` finishes it"):
        page.write_page(tmp_path / "demo", tmp_path / "r.html")


def test_large_pictures_are_thinned_out():
    address = markup.png(np.random.default_rng(0).integers(256, size=(384, 300, 3)).tolist())
    assert len(address) < 40_000


def test_pictures_are_png_of_the_same_bytes():
    import base64
    import struct
    import zlib

    for channels, kind in ((1, 0), (3, 2)):
        picture = np.random.default_rng(0).integers(256, size=(4, 5, channels))
        raw = base64.b64decode(markup.png(picture.tolist()).split(",")[1])
        width, height, depth, colour = struct.unpack(">IIBB", raw[16:26])
        assert (width, height, depth, colour) == (5, 4, 8, kind)
        size = struct.unpack(">I", raw[33:37])[0]
        rows = np.frombuffer(zlib.decompress(raw[41 : 41 + size]), np.uint8).reshape(4, 1 + 5 * channels)
        np.testing.assert_array_equal(rows[:, 1:].reshape(4, 5, channels), picture)
