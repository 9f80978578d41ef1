"""scripts/setup-env makes what is not whole anew: a moved, a copied, a torn environment. Python and pip are played."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
PYTHON = """#!/usr/bin/env bash
case "$*" in
-c*) exit 0 ;;
--version) echo "Python $(cat "VERSION")" ;;
"-m venv --clear "*)
    echo venv >>LOG
    rm -rf "$4" && mkdir -p "$4/bin"
    cp "$0" "$4/bin/python"
    echo "#!$4/bin/python" >"$4/bin/pip" ;;
"-m pip install"*)
    echo "pip $*" >>LOG
    [ ! -e FAIL ] || exit 1
    site=$(dirname "$0")/../lib/python3.11/site-packages
    mkdir -p "$site"
    echo "MAPPING = {'rlhf_lightning': '$PWD/rlhf_lightning'}" >"$site/__editable___rlhf_lightning_finder.py" ;;
esac
"""


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "LOG"

    def setup(self, *arguments: str, status: int = 0) -> list[str]:
        """What was made: `venv`, `pip`; each word of a call stands for it."""
        self.log.write_text("")
        command = ["bash", str(self.folder / "scripts" / "setup-env"), *arguments]
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(self.folder / "python")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr
        if status == 0:
            made = ".venv-newest" if "--newest" in arguments else ".venv"
            assert done.stdout.splitlines()[-1] == str(self.folder.resolve() / made)
        return [line.split()[0] for line in self.log.read_text().splitlines()]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder = tmp_path / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("setup-env", "constraints.txt"):
        shutil.copy(SCRIPTS / name, folder / "scripts")
    (folder / "pyproject.toml").write_text("one")
    (folder / "VERSION").write_text("3.11.9")
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    return Checkout(folder)


def test_it_is_made_once_and_brought_up_to_date(checkout: Checkout) -> None:
    assert checkout.setup() == ["venv", "pip"]
    assert checkout.setup() == []
    assert checkout.setup("dev") == ["pip"]
    assert checkout.setup("dev") == checkout.setup() == []
    (checkout.folder / "pyproject.toml").write_text("two")
    assert checkout.setup() == checkout.setup("dev") == ["pip"]
    assert checkout.setup() == []


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_moved_or_copied_checkout_gets_its_own(how: str, checkout: Checkout) -> None:
    checkout.setup()
    there = checkout.folder.with_name("there")
    (shutil.move if how == "moved" else shutil.copytree)(checkout.folder, there)
    other = Checkout(there)
    assert other.setup() == ["venv", "pip"]
    assert other.setup() == []
    if how == "copied":
        assert checkout.setup() == []


def test_a_torn_installation_is_begun_anew(checkout: Checkout) -> None:
    (checkout.folder / "FAIL").touch()
    assert checkout.setup(status=1) == ["venv", "pip"]
    assert checkout.setup(status=1) == ["venv", "pip"]
    (checkout.folder / "FAIL").unlink()
    assert checkout.setup() == ["venv", "pip"]
    assert checkout.setup() == []


def test_a_failed_update_leaves_no_stamp(checkout: Checkout) -> None:
    checkout.setup()
    (checkout.folder / "pyproject.toml").write_text("two")
    (checkout.folder / "FAIL").touch()
    assert checkout.setup(status=1) == ["pip"]
    (checkout.folder / "FAIL").unlink()
    (checkout.folder / "pyproject.toml").write_text("one")
    assert checkout.setup() == ["venv", "pip"]


@pytest.mark.parametrize("fault", ["python gone", "link to nowhere", "other python", "other checkout"])
def test_what_is_broken_is_mended(fault: str, checkout: Checkout) -> None:
    checkout.setup()
    python = checkout.folder / ".venv" / "bin" / "python"
    if fault == "python gone":
        python.unlink()
    elif fault == "link to nowhere":
        python.unlink()
        python.symlink_to("/nowhere/python3")
    elif fault == "other python":
        # The played one asks its checkout; that of the environment keeps its version.
        python.write_text(python.read_text().replace('$(cat "VERSION")', "3.11.9"))
        (checkout.folder / "VERSION").write_text("3.12.1")
    else:
        (finder,) = checkout.folder.glob(".venv/lib/*/site-packages/__editable__*")
        finder.write_text("MAPPING = {'rlhf_lightning': '/elsewhere/rlhf_lightning'}")
    assert checkout.setup() == (["pip"] if fault == "other checkout" else ["venv", "pip"])
    assert checkout.setup() == []


def test_the_newest_versions_have_an_environment_of_their_own(checkout: Checkout) -> None:
    assert checkout.setup("--newest", "dev") == ["venv", "pip"]
    call = checkout.log.read_text().splitlines()[-1]
    assert "--upgrade --upgrade-strategy eager" in call
    (constraints,) = checkout.folder.glob(".venv-newest/*.txt")
    assert str(constraints.resolve()) in call
    assert constraints.read_text().startswith("torch==")
    assert constraints.read_text().count("\n") == 1
    assert checkout.setup("--newest", "dev") == []
    assert checkout.setup() == ["venv", "pip"]
    assert "constraints.txt" in checkout.log.read_text()
