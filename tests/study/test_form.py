"""The form in a real browser: filled, saved, imported; hostile outputs run nothing and ask for nothing."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from tests.test_browser import BROWSER, ITS_OWN, PROBE, QUIET
from tests.test_page import HOSTILE
from uimjax.study.outputs import Output, write_outputs
from uimjax.study.sheets import Design
from uimjax.workflow import studying

MOVED = """
import fcntl, os, sys
there, answers = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(there, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Chromium by its debugging pipe: commands in on one, answers out on another, JSON ended by a zero."""

    def __init__(self, folder):
        there, self.out = os.pipe()
        self.back, answers = os.pipe()
        command = [BROWSER, *QUIET, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", "about:blank"]
        # by a process in between: this one holds threads of JAX, and must not fork to move its descriptors
        start = [sys.executable, "-c", MOVED, str(there), str(answers), *command]
        self.process = subprocess.Popen(start, pass_fds=(there, answers), stderr=subprocess.DEVNULL)
        os.close(there)
        os.close(answers)
        self.number, self.held, self.asked = 0, b"", []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        self.call("Network.enable", page=True)
        self.call("Page.enable", page=True)
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def call(self, method, page=False, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | (
            {"sessionId": self.session} if page else {}
        )
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.held:
                self.held += os.read(self.back, 1 << 16)
            line, self.held = self.held.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("method") == "Network.requestWillBeSent":
                self.asked.append(answer["params"]["request"]["url"])
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path):
        self.call("Page.navigate", page=True, url=path.as_uri())
        while self.run("document.readyState") != "complete":
            time.sleep(0.05)

    def run(self, code):
        return self.call("Runtime.evaluate", page=True, expression=code, returnByValue=True)["result"].get("value")

    def close(self):
        self.call("Browser.close")
        self.process.wait(30)
        os.close(self.out)
        os.close(self.back)


@pytest.fixture
def browser(tmp_path):
    if BROWSER is None:
        pytest.skip("no Chromium here: the form cannot be filled")
    made = Browser(tmp_path)
    yield made
    made.close()


FILL = """(() => {
  document.querySelector("input[name=consent]").click();
  for (const row of document.querySelectorAll("fieldset")) {
    const texts = Array.from(row.querySelectorAll("article pre"), (x) => x.textContent);
    const said = texts[0].match(/^Please choose (.) here/);
    const side = said ? said[1] : "AB"[texts.findIndex((text) => text.startsWith("fine"))];
    row.querySelector(`input[value=${side}]`).click();
    row.querySelector("input[type=text]").value = "a <b>remark</b>";
    row.querySelector("input[type=text]").dispatchEvent(new Event("change", { bubbles: true }));
  }
  document.querySelector("select").value = "expert";
  document.querySelector("select").dispatchEvent(new Event("change", { bubbles: true }));
})()"""


def test_filled_saved_and_imported(browser, tmp_path):
    texts = [PROBE, "</pre></article></fieldset><script>document.documentElement.setAttribute('ran','yes')</script>",
             "<img src=x onerror=\"document.documentElement.setAttribute('ran','yes')\">", *HOSTILE]  # fmt: skip
    made = [
        Output(f"{text[:20]}{k}", text, "", {"before": text, "traced": f"fine {text}"}) for k, text in enumerate(texts)
    ]
    write_outputs(tmp_path / "outputs.jsonl", made)
    out = tmp_path / "study"
    studying.export(tmp_path / "outputs.jsonl", out, Design(raters=2, groups=("expert", "lay"), question="Which <b>?"))
    for number in (1, 2):
        saved = tmp_path / f"rater-0{number}.json"
        browser.open(out / "sheets" / f"rater-0{number}.html")
        rows = len(texts) + 3
        assert browser.run("document.getElementById('told').textContent") == f"0 of {rows} answered"
        browser.run("document.getElementById('save').click()")
        assert "agree to it first" in browser.run("document.getElementById('told').textContent")
        browser.run(FILL)
        assert browser.run("document.getElementById('told').textContent") == f"{rows} of {rows} answered"
        if number == 1:  # opened again, what was answered is there
            browser.open(out / "sheets" / "rater-01.html")
            assert browser.run("document.getElementById('told').textContent") == f"{rows} of {rows} answered"
        browser.run("document.getElementById('save').click()")
        for _ in range(200):
            if saved.exists() and saved.stat().st_size:
                break
            time.sleep(0.05)
        assert browser.run("document.documentElement.getAttribute('ran')") is None, "hostile text ran a script"
        assert browser.run("document.querySelectorAll('script').length") == 1
        assert browser.run("document.querySelectorAll('article img, article script, b').length") == 0
    asked = {url for url in browser.asked if not ITS_OWN.match(url) and not url.startswith(("file:", "data:", "blob:"))}
    assert asked == set()
    found = studying.collect(out, [tmp_path / "rater-01.json", tmp_path / "rater-02.json"])
    assert found["effects"]["traced"]["value"] == 1.0
    assert found["raters"] == 2
    assert found["left_out"] == []
    assert found["groups"]["expert"]["raters"] == 2
    assert found["comments"] == 2 * rows
    page = (out / "report.html").read_text()
    assert not re.search(r"<(script|iframe|object|img)\b", page)
