"""The script of the README runs as it stands, in a project that has no hydra."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BLOCK_HYDRA = "import sys\nsys.modules['hydra'] = sys.modules['omegaconf'] = None\n"


def test_readme_script_runs_without_hydra(tmp_path: Path) -> None:
    scripts = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    script = next(code for code in scripts if "RewardModule" in code)
    assert len([line for line in script.splitlines() if line.strip()]) <= 16
    rows = [
        {"prompt": f"what does the dog eat ? answer : {n}", "completions": ["the dog eats", "bread ."], "ranks": [2, 1]}
        for n in range(24)
    ]
    (tmp_path / "comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = "\nassert 'hydra' not in {name for name, m in sys.modules.items() if m is not None}\n"
    after += "print('accuracy', float(trainer.callback_metrics['train/accuracy']), trainer.global_step)\n"
    result = subprocess.run(
        [sys.executable, "-c", BLOCK_HYDRA + script + after],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "accuracy 1.0 3" in result.stdout
