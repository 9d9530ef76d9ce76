"""The README's snippets and commands are carried out as they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import lds_table

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)
SESSION = re.findall(r"^\$ (.*)$", re.search(r"```console\n(.*?)```", README, re.S)[1], re.M)


def environment() -> dict[str, str]:
    return dict(os.environ, JAX_NUM_CPU_DEVICES="2")


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_example_is_about_ten_lines():
    assert len([line for line in SNIPPETS[0].splitlines() if line.strip()]) <= 11


def test_the_session_runs_in_order(tmp_path):
    outputs = {}
    for line in SESSION:
        program, *args = shlex.split(line)
        assert program == "uimjax"
        command = [sys.executable, "-m", "uimjax.cli", *args]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment())
        assert done.returncode == 0, f"{line}: {done.stderr}"
        outputs[args[0]] = done.stdout
    assert "ok" in outputs["doctor"]
    assert "Verdict" in outputs["run"]
    assert "every byte is right" in outputs["index"]


def test_the_two_commands_are_the_ones_that_ci_and_the_demo_test_run():
    commands = re.findall(r"^    (pip install uv && .*)$", README, re.M)
    assert commands == ["pip install uv && uv run uimjax demo", "pip install uv && uv run pytest"]
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    assert "uv run pytest" in ci


def test_other_inline_commands_exist():
    for page in [README, *(p.read_text() for p in (Path(__file__).parent.parent / "uimjax/docs").glob("*.md"))]:
        for name in set(re.findall(r"(?:`|^    |&& uv run )uimjax ([a-z]+)", page, re.M)):
            command = [sys.executable, "-m", "uimjax.cli", name, "--help"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, name


def test_the_commands_page_names_every_command():
    from uimjax.cli import parser

    page = (Path(__file__).parent.parent / "uimjax/docs/commands.md").read_text()
    actions = next(a for a in parser()._actions if a.dest == "command")
    for name in actions.choices:
        assert re.search(rf"(uimjax|\|) {name}\b", page), name


def test_the_table_of_methods_is_what_was_measured():
    found, page = lds_table.gathered(), lds_table.PAGE.read_text()
    assert lds_table.put(page, lds_table.table(found)) == page
    assert set(found) == set(lds_table.TITLES)
    for its in found.values():
        assert {"ekfac", "trak", "source", "random"} <= set(its["methods"])
        assert all(row["low"] <= row["lds"] <= row["high"] for row in its["methods"].values() if "error" not in row)
