"""The arrows between modules go one way, and importing the package has no side effects."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhf_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = {file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): file for file in FILES}

MATHS = {"algorithms"}
DISK = {"parallel", "runs"}
TOKENS = {"tokenization"}
MAY_IMPORT = {
    "parallel": set(),
    "algorithms": set(),
    "runs": {"parallel"},
    "tokenization": {"runs"},
    "models": MATHS | DISK | TOKENS,
    "data": MATHS | DISK | TOKENS,
    "curation": {"data", *DISK},
    "generation": {"models", *MATHS, *DISK, *TOKENS},
    "modules": {"generation", "models", "parallel", *MATHS, *TOKENS},
    "training": {"generation", "models", "data", *MATHS, *DISK, *TOKENS},
    "evaluation": {"generation", "models", "data", *MATHS, *DISK, *TOKENS},
    "labeling": {"data", "evaluation", *DISK},
    "checks": {"training", "modules", "generation", "models", "data", "parallel", *MATHS, *TOKENS},
    "sandbox": {"data", "evaluation", *MATHS, *TOKENS},
    "reproduce": {"cli", "recipe", "data", "evaluation", "runs", "sandbox"},
    "chat": {"generation", "runs"},
    "push": {"runs"},
    "cli": {"recipe", "evaluation", *DISK},
    "compat": set(),
    "arguments": set(),
    "__main__": {"cli"},
}
"""What each folder may import of the package, besides itself and `ANYWHERE`; `recipe` brings the others together."""
MAY_IMPORT["recipe"] = MAY_IMPORT.keys() - {"sandbox", "reproduce", "cli", "chat", "push", "__main__"}
MAY_IMPORT["__init__"] = set(MAY_IMPORT)
TOP = {"__init__.py", "__main__.py", "chat.py", "push.py", "compat.py", "arguments.py", "py.typed"}
ANYWHERE = ("compat", "arguments")
"""What every folder may import."""
CORE = ("stage", "pipeline", "language_model", "collect", "reward", "ppo", "evaluate")
"""Of recipe, the steps that are the paper's."""


def imported(file):
    """Full names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: a relative import"
            found.add(node.module)
            # `from rlhf_lightning.data import records` imports a module too.
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("rlhf_lightning")}
    return found


def folders_imported(file):
    names = {name.split(".")[1] for name in imported(file) if name.startswith("rlhf_lightning.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


def test_the_walk_sees_imports():
    assert len(NAMES) > 30
    assert folders_imported(NAMES["modules.ppo"]) >= {"algorithms", "generation", "models", "parallel"}


def test_every_folder_is_known_and_nothing_else_lies_on_top():
    folders = {name.split(".")[0] for name in NAMES}
    assert folders <= MAY_IMPORT.keys()
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} <= TOP


@pytest.mark.parametrize("name", NAMES)
def test_arrows_go_one_way(name):
    folder = name.split(".")[0]
    assert folders_imported(NAMES[name]) <= MAY_IMPORT[folder] | {folder, *ANYWHERE}


def test_allowed_arrows_make_no_circle():
    rest = dict(MAY_IMPORT)
    while rest:
        leaves = [folder for folder, below in rest.items() if not below & rest.keys()]
        assert leaves, f"a circle among {sorted(rest)}"
        for folder in leaves:
            del rest[folder]


def test_the_maths_needs_torch_alone():
    for name in ("algorithms.functional", "algorithms.losses"):
        outside = {module.split(".")[0] for module in imported(NAMES[name])} - {"rlhf_lightning"}
        assert outside <= {"torch", "jaxtyping", "typing", "collections"}


@pytest.mark.parametrize(("part", "known"), [("data", ("records",)), ("evaluation", ("agreement", "probes"))])
def test_the_sandbox_knows_no_more_than_records_and_the_measures_of_labelers(part, known):
    for name, file in NAMES.items():
        if name.startswith("sandbox."):
            modules = {module for module in imported(file) if module.startswith(f"rlhf_lightning.{part}")}
            assert all(
                module.startswith(tuple(f"rlhf_lightning.{part}.{one}" for one in known)) for module in modules
            ), name


@pytest.mark.parametrize("library", ["hydra", "omegaconf"])
def test_the_command_line_alone_knows_hydra(library):
    users = [name for name, file in NAMES.items() if library in {module.split(".")[0] for module in imported(file)}]
    assert users
    assert {name.split(".")[0] for name in users} == {"cli"}


def test_no_drawer_for_odds_and_ends():
    assert {name.split(".")[-1] for name in NAMES}.isdisjoint({"util", "utils", "common", "helper", "helpers", "misc"})


def test_files_stay_short():
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in NAMES.items()}
    assert {name: count for name, count in lines.items() if count > 300} == {}


def test_the_core_stays_small():
    steps = [name for name in NAMES if name.startswith("recipe.") and name.split(".")[1] in CORE]
    assert len(steps) == len(CORE)
    core = [*steps, *(name for name in NAMES if name.split(".")[0] in ("algorithms", "modules"))]
    assert sum(len(NAMES[name].read_text(encoding="utf-8").splitlines()) for name in core) <= 2_500


def test_a_step_is_named_in_few_places():
    from rlhf_lightning.recipe.pipeline import RECIPE

    steps = {stage.name for stage in RECIPE}
    outside = {name: file for name, file in NAMES.items() if name.split(".")[0] not in ("sandbox", "reproduce")}
    found = [
        name
        for name, file in outside.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in steps
    ]
    assert 10 < len(found) <= 32, sorted(found)


IMPORT = """
import json, sys
sys.modules["hydra"] = sys.modules["omegaconf"] = None
calls = []
def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        calls.append(event)
        raise OSError("no sockets here")
sys.addaudithook(watch)
import rlhf_lightning
names = [name for name in rlhf_lightning.__all__ if getattr(rlhf_lightning, name, None) is None]
print(json.dumps({"calls": calls, "missing": names, "count": len(rlhf_lightning.__all__)}))
"""


def test_importing_needs_neither_hydra_nor_the_network():
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    command = [sys.executable, "-W", "ignore", "-c", IMPORT]
    result = subprocess.run(
        command, cwd=PACKAGE.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    seen = json.loads(result.stdout)
    assert seen["calls"] == []
    assert seen["missing"] == []
    assert seen["count"] >= 15


LAZY = """
import sys
import rlhf_lightning
heavy = ["torch", "transformers", "lightning", "numpy", "pydantic"]
assert not [name for name in heavy if name in sys.modules], sorted(sys.modules)
assert set(rlhf_lightning.__all__) <= set(dir(rlhf_lightning))
from rlhf_lightning import Prompt
assert Prompt.__module__ == "rlhf_lightning.data.records"
try:
    rlhf_lightning.PPOModul
except AttributeError as error:
    print(error)
"""


def test_importing_the_package_imports_nothing_heavy():
    command = [sys.executable, "-c", LAZY]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "module 'rlhf_lightning' has no attribute 'PPOModul'\n", done.stderr[-2000:]


WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
"""


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        (["-m", "rlhf_lightning"], "passive"),
        (["-W", "ignore", "-m", "rlhf_lightning.reproduce", "--plan"], "passive"),
        (["rlhf", "stages=[sft]"], "passive"),
        (["rlhf-chat"], "passive"),
        (["-c", "import rlhf_lightning.cli"], "None"),
        (["-m", "theirs", "rlhf_lightnings"], "None"),
        (["theirs.py", "-m", "rlhf_lightning"], "None"),
    ],
)
def test_threads_wait_passively_in_our_commands_and_as_they_will_in_others(arguments, policy, tmp_path):
    """Before torch is imported, which reads it once."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    for name in ("rlhf", "rlhf-chat", "theirs.py"):
        (tmp_path / name).write_text("import rlhf_lightning.cli")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{PACKAGE.parent}"
    for given, expected in (({}, policy), ({"OMP_WAIT_POLICY": "active"}, "active")):
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment | given, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stdout == f"{expected}\n", done.stderr
