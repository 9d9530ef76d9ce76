"""The house: floors, sizes, names, and what a module may import or read."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import uimjax

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "uimjax").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])

# From the ground up. A module imports from lower floors only; inside a folder, the order given, `base` first.
FLOORS = [
    ["uimjax_kernels"],
    ["uimjax.errors"],
    [
        "uimjax.allocator",
        "uimjax.compiler",
        "uimjax.config",
        "uimjax.machine",
        "uimjax.progress",
        "uimjax.references",
        "uimjax.tables",
    ],
    ["uimjax.task", "uimjax.mesh"],
    ["uimjax.rows", "uimjax.taps"],
    ["uimjax.convolutions", "uimjax.factors", "uimjax.sketch"],
    ["uimjax.curvature", "uimjax.store", "uimjax.room"],
    [
        "uimjax.models",
        "uimjax.corpora",
        "uimjax.checkpoint",
        "uimjax.sinks",
        "uimjax.onepass",
        "uimjax.steps",
        "uimjax.programs",
    ],
    ["uimjax.understand.dynamics"],
    ["uimjax.training", "uimjax.pretrained"],
    ["uimjax.understand.representation", "uimjax.understand.scaling"],
    ["uimjax.interpret"],
    ["uimjax.answers", "uimjax.census", "uimjax.study"],
    ["uimjax.mitigate", "uimjax.audit"],
    ["uimjax.report"],
    ["uimjax.workflow", "uimjax.doctor"],
    ["uimjax.commands"],
    ["uimjax.cli"],
]
INSIDE = {
    "uimjax.config": ["base", "stories", "own", "studies", "suites", "mends", "tunings", "kinds"],
    "uimjax.taps": ["_compat", "base", "views", "follow", "plan", "run", "layouts", "captures", "parts", "proof"],
    "uimjax.store": ["base", "remote", "coding", "digest", "manifest", "journal", "shards", "stage"],
    "uimjax.interpret": [
        "base", "trajectory", "lexical", "representation", "detectors", "baselines", "resume", "curved", "sketched",
        "solved", "exact", "segments", "rerank", "self_influence", "methods", "index", "moving", "price",
        "fill", "fits", "indexing", "strongest", "null", "hits", "cascade", "ann", "groups", "trace", "positions",
        "shares", "bank", "plan", "plan_index", "plan_outline", "plan_training", "judge", "metagradient",
        "counterfactual", "check",
    ],
    "uimjax.answers": ["measures", "failures", "items", "overlap", "folding", "engines", "evidence", "subject", "story",
                       "classifiers", "mistakes", "examples"],
    "uimjax.corpora": [
        "base", "truth", "handwritten", "files", "plants", "tokenizer", "documents", "library", "text_plants",
        "suite_lines", "suite_questions", "text_suite", "picture_suite", "texts", "pieces", "pretokenised", "hub",
        "prepared", "wording", "duplicates", "arrays",
        "preparing", "examples", "labelled", "features",
    ],
    "uimjax.study": ["outputs", "sheets", "agreement", "effect", "power", "judging"],
    "uimjax.census": [
        "personal", "together", "contamination", "sampling", "tongues", "wordy", "counting", "pool", "card",
    ],
    "uimjax.models": ["attention", "blocks", "decoder", "own", "encoders", "classifiers", "resnets"],
    "uimjax.pretrained": [
        "base", "decoders", "encoders", "folder", "words", "adapters", "loading", "pictures", "saving",
    ],
    "uimjax.mitigate": [
        "forgetting", "looking", "subspace", "unlearning", "relearning", "newton", "heads", "balancing", "afterwards",
        "curation",
        "edit", "oracle", "proof", "private", "synthetic", "blackbox", "isolation", "cleaning",
        "frozen",
    ],
    "uimjax.report": [
        "tables", "phrases", "verdicts", "summary", "judgements", "markup", "rendering", "findings", "register",
        "explained", "suite", "charts", "figures", "figures_dynamics", "figures_representation", "figures_scaling",
        "understood", "page", "answers", "mistakes", "audits", "census", "datacard", "modelcard", "bundle", "form",
        "studied",
    ],
    "uimjax.audit": [
        "base", "backdoor", "behaviour", "leak", "membership", "fairness", "robustness", "bias", "generalization",
        "deterioration", "values", "memorization", "dynamics", "weaknesses", "pictures", "scorecard",
    ],
    "uimjax.sketch": ["base", "kronecker", "dense", "sparse", "truncated", "unsketched"],
    "uimjax.curvature": [
        "base", "euclidean", "damping", "projection", "blocks", "statistics", "source", "rotated", "separable",
        "kronecker", "products", "lanczos", "operator", "harmonic", "adam",
    ],
    "uimjax.commands": [
        "base", "names", "flags", "flags_studies", "flags_people", "parsing", "sources", "logs", "ask", "auditing",
        "checkpoints", "curvature", "curves", "dynamics", "failures", "index", "judge", "mending", "plan", "readings",
        "representation", "scaling", "tuning", "story", "study", "explain", "understand",
    ],
    "uimjax.workflow": [
        "saying", "base", "vision", "text", "reopening", "recording", "noise", "seeded", "suite_text", "suite_vision",
        "suite", "edits", "acting", "curating", "augmenting", "mending", "members", "auditing", "decisions",
        "examining", "beside", "surveying", "studying", "tuning",
    ],
    "uimjax.understand.dynamics": [
        "signals", "collector", "gradients", "stepping", "scoring", "table", "averaging", "logs", "elsewhere", "labels",
        "reading", "influence",
    ],
    "uimjax.understand.representation": [
        "base", "moments", "spectrum", "similarity", "dimension", "hessian", "series",
    ],
    "uimjax.understand.scaling": [
        "base", "forms", "engine", "table", "design", "fits", "intervals", "using", "isoflops", "ladder", "saved",
        "runs", "ledger", "networks", "together", "sweeps",
    ],
}  # fmt: skip


def module_of(path: Path) -> str:
    root = ROOT / "kernels" if "kernels" in path.relative_to(ROOT).parts[:1] else ROOT
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    depth = 1 if parts[0] == "uimjax_kernels" else 3 if parts[:2] == ["uimjax", "understand"] else 2
    return ".".join(parts[:depth])


def floor_of(room: str) -> int:
    return next(k for k, rooms in enumerate(FLOORS) if room in rooms)


def imports_of(path: Path) -> list[str]:
    """Absolute modules of this project that a file imports, `from package import module` resolved."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                names.append(deeper if deeper in MODULES else str(node.module))
    return [n for n in names if n.split(".")[0] in ("uimjax", "uimjax_kernels")]


MODULES = {module_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down_only(path):
    module = module_of(path)
    if module in ("uimjax", "uimjax.understand"):
        return
    room = room_of(module)
    for name in imports_of(path):
        if name == "uimjax":
            continue
        other = room_of(name)
        if other == room:
            if room in INSIDE and module != room:
                order = INSIDE[room]
                assert name != room, f"{module} imports its own package; import the module"
                mine, theirs = (order.index(n.rsplit(".", 1)[1]) for n in (module, name))
                assert theirs < mine, f"{module} imports {name}, which stands above or beside it"
        else:
            assert floor_of(other) < floor_of(room), f"{module} imports {name}: not a lower floor"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{path}: {node.name}"


# A kernel's room bears the name of its one function; nobody imports such a room as a module.
PACKAGES = [path for path in FILES if path.name == "__init__.py" and path.parent.name != "uimjax_kernels"]


@pytest.mark.parametrize("path", PACKAGES, ids=module_of)
def test_no_exported_name_hides_a_module(path):
    """`from room import name` gave the module or the function, by what had been imported before."""
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
    exported = {alias.asname or alias.name for node in nodes if node.module != module_of(path) for alias in node.names}
    hidden = {name for name in exported if f"{module_of(path)}.{name}" in MODULES}
    assert not hidden, f"{module_of(path)}: {sorted(hidden)}"


def test_truth_is_imported_by_the_scorecard_and_the_oracle_alone():
    importers = {module_of(path) for path in FILES if "uimjax.corpora.truth" in imports_of(path)}
    assert importers == {
        "uimjax.audit.scorecard",
        "uimjax.mitigate.oracle",
        "uimjax.corpora.plants",
        "uimjax.corpora.text_plants",
        "uimjax.corpora.text_suite",
        "uimjax.corpora.picture_suite",
    }
    for name in ("plants", "text_plants", "text_suite", "picture_suite"):
        tree = ast.parse((ROOT / f"uimjax/corpora/{name}.py").read_text())
        taken = [
            a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names if "truth" in n.module
        ]
        assert set(taken) == {"Truth", "write_truth"}, "plants write the truth and cannot read it"


def test_nobody_reads_the_truth_file_by_another_way():
    readers = [module_of(p) for p in FILES if "truth.json" in p.read_text()]
    assert readers == ["uimjax.workflow.base"], readers
    uses = [
        line.strip() for p in FILES for line in p.read_text().splitlines() if ".truth," in line or "truth_of(" in line
    ]
    assert sorted(uses) == [
        "base_rate, found = scorecard.scorecard(failure.truth, failure.decided, scores)",
        "corpora.backdoor(corpus, plant_of(config), seed, base.truth_of(folder))",
        "def truth_of(folder: Path) -> Path:",
        "plant_suite(corpus, sizes, config.train.epochs, seed, lambda name: base.truth_of(make_folder(folder / name)))",
        'planted = oracle.oracle_edit(base.truth_of(folder), folder / "edit-traced.json")',
        "planted = oracle.oracle_edit(failure.truth, failure.decided)",
        'rate, found = scorecard.scorecard(base.truth_of(folder), folder / "edit-traced.json", scores)',
        "return truth_of(self.folder)",
        "seal = lambda name: base.truth_of(make_folder(folder / name))  # noqa: E731  # one line, used once",
        "seal = lambda name: base.truth_of(make_folder(folder / name))  # noqa: E731  # one line, used once",
    ]


def test_only_compat_reads_equation_layouts():
    readers = [module_of(p) for p in FILES if ".params[" in p.read_text() or "eqn.params" in p.read_text()]
    assert readers == ["uimjax.taps._compat"]


def test_only_mesh_spells_axis_names():
    spelled = [module_of(p) for p in FILES if "PartitionSpec(" in p.read_text() or "make_mesh((" in p.read_text()]
    assert spelled == ["uimjax.mesh"]


def test_every_public_name_resolves_and_is_documented():
    for name in uimjax.__all__:
        assert getattr(uimjax, name) is not None
        if name != "__version__":
            assert getattr(uimjax, name).__doc__, name
    with pytest.raises(AttributeError, match="public names"):
        uimjax.nonsense  # noqa: B018  # the access is the test


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_uimjax_does_not_import_jax():
    done = run_python("import sys, uimjax, uimjax.cli, uimjax.config; sys.exit('jax' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_the_engine_needs_only_jax_and_numpy():
    code = """
import sys, importlib.abc
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        heavy = ("flax", "optax", "orbax", "pyarrow", "sklearn", "pydantic", "rich", "xxhash", "tyro", "yaml")
        if name.split(".")[0] in heavy:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import uimjax.taps, uimjax.factors, uimjax.sketch, uimjax.curvature, uimjax_kernels
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_help_is_instant():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "uimjax.cli", "--help"], capture_output=True, text=True, check=True
        )
        times.append(time.perf_counter() - start)
    assert "demo" in done.stdout
    assert min(times) < 0.5, times
