"""The wheel is complete, and works away from the checkout."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
CONF = REPOSITORY / "conf"


def run(command, **options):
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: building leaves things behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("rlhf_lightning", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-w", str(folder)]
    run([sys.executable, "-m", "pip", "wheel", *options, str(source)], cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_everything(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    options = {file.relative_to(CONF).as_posix() for file in CONF.rglob("*.yaml")}
    assert len(options) > 20
    composed = {name for name in held if name.endswith(".yaml") and "/benchmarks/tasks/" not in name}
    assert composed == {f"rlhf_lightning/conf/{name}" for name in options}
    package = REPOSITORY / "rlhf_lightning"
    files = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    expected = {f"rlhf_lightning/{file.relative_to(package).as_posix()}" for file in files}
    assert expected <= held
    base = {name.removeprefix("rlhf_lightning/sandbox/base/") for name in held if "/base/" in name}
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert {f"{size}/{file}" for size in ("small", "medium", "large") for file in files} <= base
    assert sum((package / "sandbox/base" / file).stat().st_size for file in base) < 10_000_000
    assert {"rlhf_lightning/py.typed", "rlhf_lightning/evaluation/report.html"} <= held
    tops = {name.split("/")[0] for name in held}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rlhf_lightning"}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is unpacked to, and an environment that finds it first."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return folder, {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def test_the_command_line_works_from_the_wheel(installed, tmp_path):
    installed, environment = installed
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # All: the job's configuration, and hydra's own, which says where the files came from.
    result = run([sys.executable, "-m", "rlhf_lightning", "--cfg", "all"], cwd=elsewhere, env=environment)
    composed = yaml.safe_load(result.stdout)
    assert {"data", "model", "sft", "reward", "ppo", "evaluate", "trainer"} <= composed.keys()
    places = {source["provider"]: source["path"] for source in composed["hydra"]["runtime"]["config_sources"]}
    assert Path(places["main"]).resolve() == (installed / "rlhf_lightning" / "conf").resolve()
    assert list(elsewhere.iterdir()) == []


EXAMPLES = REPOSITORY / "scripts" / "examples"
SAYS = {
    "custom_reward.py": r"score 0\.[0-5]\d -> (1\.0|0\.9)",
    "hydra_app.py": r"score \d\.\d+, lr 0\.0001\b",
    "length_penalty.py": r"words 1\d\.\d -> \d\.\d\b",
    "lightning_cli.py": r"accuracy 1\.00",
    "own_module_data.py": r"held-out loss 0\.0",
    "own_reward_model.py": r"does not support a shared prefix(.|\n)*accuracy 1\.00(.|\n)*scores \[\d\.\d, ",
    "ranking_loss.py": r"direction (1\.00|0\.99)",
    "with_fabric.py": r"epoch 9: loss 0\.",
}
"""What each example prints in the end."""
RUN_ALL = """
import json, os, runpy, shutil, sys
import rlhf_lightning.modules.ppo, rlhf_lightning.data.datamodule, hydra  # once for all
codes = {}
for name, *arguments in json.loads(sys.argv[1]):
    folder = os.path.abspath(name.removesuffix(".py"))
    shutil.copytree(sys.argv[2], folder, ignore=shutil.ignore_patterns("__pycache__"))
    if (process := os.fork()) == 0:
        os.chdir(folder)
        output = os.open(folder + ".txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.argv, sys.path[0] = [os.path.join(folder, name), *arguments], folder
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.stdout.flush(), os._exit(0)
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
print(json.dumps([rlhf_lightning.__file__, codes]))
"""


def command_of(name):
    """The file and the arguments that the first line of its docstring says."""
    first = ast.get_docstring(ast.parse((EXAMPLES / name).read_text())).splitlines()[0]
    (command,) = re.findall(r"Run[\w ]*: `python (.+)`\.$", first)
    return command.split()


@pytest.fixture(scope="module")
def outputs(installed, tmp_path_factory):
    """What every example said and its exit code, each run in a folder of its own by a process that forks."""
    installed, environment = installed
    folder = tmp_path_factory.mktemp("examples")
    listed = [name for name in SAYS if name != "lightning_cli.py" or find_spec("jsonargparse")]
    commands = json.dumps([command_of(name) for name in listed])
    result = run([sys.executable, "-c", RUN_ALL, commands, str(EXAMPLES)], cwd=folder, env=environment)
    place, codes = json.loads(result.stdout.splitlines()[-1])
    assert Path(place).parents[1] == installed
    return {name: (code, (folder / name).with_suffix(".txt").read_text()) for name, code in codes.items()}


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_from_the_wheel(outputs, name):
    if name == "lightning_cli.py":
        pytest.importorskip("jsonargparse")
    code, output = outputs[name]
    assert code == 0, output[-3000:]
    assert re.search(SAYS[name], output), output[-1000:]


def test_examples_are_short_and_known():
    files = {file.name: file.read_text() for file in EXAMPLES.glob("*.py")}
    assert files.keys() == {*SAYS, "rules.py"}
    assert max(len(text.splitlines()) for text in files.values()) < 60
    page = (REPOSITORY / "docs" / "library.md").read_text()
    assert [name for name in SAYS if f"(../scripts/examples/{name})" not in page] == []
