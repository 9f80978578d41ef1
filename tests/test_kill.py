"""The kill test itself, with a single kill."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "kill_test.py"


@pytest.mark.slow
def test_a_killed_stage_ends_the_same(tmp_path):
    output = tmp_path / "kill_test.json"
    command = [sys.executable, str(SCRIPT), "sft", "--kills", "1", "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 of 1" in ended.stdout
    (trial,) = json.loads(output.read_text())["trials"]
    assert trial["stage"] == "sft"
    assert not trial["differing"]
