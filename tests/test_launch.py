"""The launch examples: well-formed, run with stand-ins for the clusters' own commands; flags that there are."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from uimjax import cli

FOLDER = Path(__file__).parent.parent / "configs" / "launch"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
STAND_INS = {
    "srun": 'exec "${@:2}"',
    "scontrol": 'echo "scontrol $*" >> "$LOG"',
    "gcloud": 'for word; do case "$word" in --command=*) exec bash -c "${word#--command=}";; esac; done',
    "uimjax": 'printf "%s\\n" "$@" >> "$LOG"; exit "$CODE"',
}


@pytest.fixture
def cluster(tmp_path):
    """Runs a script; gives its exit code and the lines that the stand-ins wrote."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"

    def run(script, *args, code=0):
        log.write_text("")
        path = f"{tmp_path}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "LOG": str(log), "CODE": str(code), "SLURM_JOB_ID": "7"}
        done = subprocess.run([str(FOLDER / script), *args], env=env, capture_output=True, text=True)
        return done.returncode, log.read_text().splitlines()

    return run


def checked(words):
    """A command of an index that there is; its settings are keys of the config."""
    args, rest = cli.parser().parse_known_args(words)
    assert (args.command, args.action, args.limit) == ("index", "build", 900)
    assert rest[0] == "--devices"
    assert int(rest[1]) > 1
    return args


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed(path):
    lint = ["shellcheck", str(path)] if shutil.which("shellcheck") else ["bash", "-n", str(path)]
    done = subprocess.run(lint, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_slurm_starts_a_lost_job_again_and_no_other(cluster, monkeypatch):
    code, words = cluster("slurm.sh", "a b.yaml", "/shared/my.index")
    args = checked(words)
    assert (code, args.target, args.out) == (0, "a b.yaml", "/shared/my.index")
    code, words = cluster("slurm.sh", "i.yaml", "/o", code=75)
    assert (code, words[-1]) == (75, "scontrol requeue 7")
    code, words = cluster("slurm.sh", "i.yaml", "/o", code=137)  # killed
    assert (code, words[-1]) == (137, "scontrol requeue 7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "20")  # and killed each time
    assert "scontrol requeue 7" not in cluster("slurm.sh", "i.yaml", "/o", code=137)[1]
    code, words = cluster("slurm.sh", "i.yaml", "/o", code=3)
    assert code == 3
    assert not any("scontrol" in word for word in words)
    assert cluster("slurm.sh")[0] != 0


def test_a_pod_of_tpus_gets_names_with_blanks_whole(cluster):
    code, words = cluster("tpu_pod.sh", "pod", "zone", "a b.yaml", "/mnt/my index")
    args = checked(words)
    assert (code, args.target, args.out) == (0, "a b.yaml", "/mnt/my index")


def test_a_jobset_gives_each_pod_its_number():
    job = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
    index = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = index["template"]["spec"]["containers"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["command"]]
    assert words[0] == "uimjax"
    args = checked(words[1:])
    assert (args.processes, args.process) == (index["parallelism"], 3) == (index["completions"], 3)
    assert container["env"][0]["name"] == "JOB_COMPLETION_INDEX"
    assert index["template"]["spec"]["restartPolicy"] == "Never"
