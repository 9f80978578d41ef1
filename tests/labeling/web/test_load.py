"""Twenty labelers, and a server that is killed twice: `scripts/label_load.py` in its short form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "label_load.py"


@pytest.mark.slow
def test_every_acknowledged_answer_is_in_the_export_once():
    command = [sys.executable, str(SCRIPT), "--answers", "200", "--kills", "2"]
    done = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["acknowledged"], found["missing"], found["twice"]) == (200, 0, 0)
