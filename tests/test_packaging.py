"""The wheel is complete, and works away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
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


def test_the_command_line_works_from_the_wheel(wheel, tmp_path):
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    # All: the job's configuration, and hydra's own, which says where the files came from.
    result = run([sys.executable, "-m", "rlhf_lightning", "--cfg", "all"], cwd=elsewhere, env=environment)
    composed = yaml.safe_load(result.stdout)
    assert {"data", "model", "sft", "reward", "ppo", "evaluate", "trainer"} <= composed.keys()
    places = {source["provider"]: source["path"] for source in composed["hydra"]["runtime"]["config_sources"]}
    assert Path(places["main"]).resolve() == (installed / "rlhf_lightning" / "conf").resolve()
    assert list(elsewhere.iterdir()) == []
