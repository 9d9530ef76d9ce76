"""The page in a real browser, where one is installed: no script runs, no request leaves, it fits a phone."""

import json
import re
import shutil
import subprocess

import pytest

from tests.test_page import HOSTILE, made_run, rendered

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
)  # fmt: skip
ITS_OWN = re.compile(r"(chrome|devtools|https?://[a-z0-9.]*(google|googleapis|gstatic)\.com/)")  # at every start


@pytest.fixture
def browse(tmp_path):
    """(the page's elements after loading, addresses that were asked for)"""
    if BROWSER is None:
        pytest.skip("no Chromium here: the page cannot be opened")

    def opened(path, *more):
        log = tmp_path / "net.json"
        own = (f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", *more)
        command = [BROWSER, *QUIET, *own, "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, {url for url in re.findall(r'"url":"([^"]*)"', log.read_text()) if not ITS_OWN.match(url)}

    return opened


PROBE = """<script>document.documentElement.setAttribute("ran", "yes")</script>
<img src="http://127.0.0.1:9/asked">"""


def test_the_browser_would_show_a_script_and_a_request(browse, tmp_path):
    """The control: without the page's escaping and policy, this test would see both."""
    path = tmp_path / "bare.html"
    path.write_text(f"<!doctype html><html><body>{PROBE}</body></html>")
    elements, asked = browse(path)
    assert 'ran="yes"' in elements
    assert any("127.0.0.1:9/asked" in url for url in asked)


@pytest.mark.parametrize("start", range(0, len(HOSTILE), 7))
def test_hostile_text_runs_nothing_and_asks_for_nothing(browse, tmp_path, start):
    texts = [PROBE, *HOSTILE[start : start + 7]]  # eight proponents are shown
    folder = made_run(tmp_path / "a", (texts * 10)[:10], path=PROBE.replace("\n", ""))
    rendered(folder)
    elements, asked = browse(folder / "report.html")
    assert "document.documentElement.setAttribute" in re.sub(r"<[^>]*>", "", elements), "the text is there to be read"
    assert 'ran="yes"' not in elements
    assert not re.search(r"<(script|iframe|object|link|base)\b", elements)
    assert {url for url in asked if not url.startswith(("file:", "data:"))} == set()


def test_the_policy_alone_would_stop_it_too(browse, tmp_path):
    """Had a text come through unescaped, the policy would still let nothing run or leave."""
    folder = made_run(tmp_path / "a", ["calm"] * 10)
    rendered(folder)
    path = folder / "report.html"
    path.write_text(path.read_text().replace("<section", PROBE + "<section", 1))
    elements, asked = browse(path)
    assert 'ran="yes"' not in elements
    assert not [url for url in asked if url.startswith("http")]


def test_nothing_but_code_and_tables_is_wider_than_a_phone(browse, tmp_path):
    folder = made_run(tmp_path / "a", ["x = 1\n" * 3 + "y" * 900 + "\n"] * 10, path="a/" * 60 + "b.py")
    rendered(folder)
    measure = tmp_path / "measure.html"
    measure.write_text(
        f"""<iframe id=f src="{(folder / "report.html").as_uri()}" width=390 height=800 style="border:0"></iframe>
<script>onload = () => {{ const d = f.contentDocument.documentElement;
document.body.dataset.found = JSON.stringify([d.scrollWidth, d.clientWidth]); }}</script>"""
    )
    elements, _ = browse(measure, "--allow-file-access-from-files")
    scroll, client = json.loads(re.search(r'data-found="([^"]*)"', elements)[1])
    assert 300 < client <= 390
    assert scroll <= client
