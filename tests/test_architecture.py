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

# What each part may import of the package, besides itself. Parts that bring the others together are not listed.
MAY_IMPORT = {
    "functional": set(),
    "losses": {"functional"},
    "batch": set(),
    "attention": set(),
    "checkpointing": set(),
    "throughput": set(),
    "models": {"attention", "products"},
    "products": set(),
    "sampling": set(),
    "prefix": {"attention", "batch", "functional", "models"},
    "logits": {"attention", "batch", "functional", "products"},
    "decoding": {"attention", "batch", "functional", "logits"},
    "live_bytes": set(),
    "memory": {"adapters", "checkpointing", "live_bytes", "logits", "models", "prefix", "sampling"},
    "schedules": set(),
    "distributed": set(),
    "sharding": set(),
    "artifacts": {"distributed"},
    "generation": {"batch", "decoding", "functional", "logits", "sampling"},
    "scoring": {"batch", "functional", "generation", "models"},
    "data": {"artifacts", "batch", "distributed"},
    "curation": {"artifacts", "data"},
    "stages": {
        "adapters",
        "averaging",
        "engines",
        "checkpointing",
        "distributed",
        "sharding",
        "throughput",
        "batch",
        "functional",
        "generation",
        "logits",
        "losses",
        "models",
        "prefix",
        "sampling",
        "scoring",
    },
    "checks": {
        "adapters",
        "batch",
        "data",
        "export",
        "functional",
        "generation",
        "logits",
        "models",
        "scoring",
        "stages",
    },
    "checkpoints": {"artifacts", "callbacks", "distributed"},
    "callbacks": {"artifacts", "generation"},
    "adapters": {"models"},
    "averaging": set(),
    "engines": {"adapters", "batch", "generation", "sampling"},
    "export": {"adapters", "artifacts", "distributed", "models", "sharding"},
    "probes": {"batch", "data", "functional", "generation", "logits"},
    "evaluation": {"artifacts", "batch", "functional", "generation", "logits", "losses", "models", "scoring"},
    "sandbox": {"batch", "data", "evaluation", "probes"},
    "collect": {"batch", "data", "generation"},
    "cross_validation": {"artifacts", "data", "evaluation"},
    "targets": {"artifacts"},
}
BRING_TOGETHER = {
    "__init__",
    "__main__",
    "cli",
    "pipeline",
    "inputs",
    "fitting",
    "planning",
    "checking",
    "rewarding",
    "curating",
    "evaluating",
    "reproduce",
}
LONG = {"stages.ppo": 370}
"""Over 300 lines: these may shrink, not grow."""


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


def parts_of_the_package(file):
    names = {name.split(".")[1] for name in imported(file) if name.startswith("rlhf_lightning.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


def test_the_walk_sees_imports():
    assert len(NAMES) > 30
    assert parts_of_the_package(NAMES["losses"]) == {"functional"}
    assert {"batch", "data", "generation"} <= parts_of_the_package(NAMES["collect"])


def test_every_part_is_known():
    assert {name.split(".")[0] for name in NAMES} == MAY_IMPORT.keys() | BRING_TOGETHER


@pytest.mark.parametrize("name", [name for name in NAMES if name.split(".")[0] in MAY_IMPORT])
def test_arrows_go_one_way(name):
    part = name.split(".")[0]
    assert parts_of_the_package(NAMES[name]) <= MAY_IMPORT[part] | {part}


def test_allowed_arrows_make_no_circle():
    rest = dict(MAY_IMPORT)
    while rest:
        leaves = [part for part, below in rest.items() if not below & rest.keys()]
        assert leaves, f"a circle among {sorted(rest)}"
        for part in leaves:
            del rest[part]


def test_nothing_imports_what_brings_together():
    apart = BRING_TOGETHER - {"__init__"}
    users = {name for name, file in NAMES.items() if parts_of_the_package(file) & apart - {name.split(".")[0]}}
    assert users == {
        "__main__",
        "cli",
        "pipeline",
        "planning",
        "checking",
        "curating",
        "evaluating",
        "rewarding",
        "reproduce.runner",
    }


def test_the_maths_needs_torch_alone():
    for name in ("functional", "losses"):
        outside = {module.split(".")[0] for module in imported(NAMES[name])} - {"rlhf_lightning"}
        assert outside <= {"torch", "jaxtyping", "typing", "collections"}


@pytest.mark.parametrize(("part", "known"), [("data", "records"), ("evaluation", "agreement")])
def test_the_sandbox_knows_no_more_than_records_and_the_measures_of_labelers(part, known):
    for name, file in NAMES.items():
        if name.startswith("sandbox."):
            modules = {module for module in imported(file) if module.startswith(f"rlhf_lightning.{part}")}
            assert all(module.startswith(f"rlhf_lightning.{part}.{known}") for module in modules), name


@pytest.mark.parametrize("library", ["hydra", "omegaconf"])
def test_the_command_line_alone_knows_hydra(library):
    users = [name for name, file in NAMES.items() if library in {module.split(".")[0] for module in imported(file)}]
    assert users == ["cli"]


def test_no_drawer_for_odds_and_ends():
    assert {name.split(".")[-1] for name in NAMES}.isdisjoint({"util", "utils", "common", "helper", "helpers", "misc"})


def test_files_stay_short():
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in NAMES.items()}
    too_long = {name: count for name, count in lines.items() if count > LONG.get(name, 300)}
    assert too_long == {}
    assert all(lines[name] > 300 for name in LONG), "short again: take it off the list"


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
