"""The scripts of README and docs/library.md run as they stand, in a project that has no hydra."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
BLOCK_HYDRA = "import sys\nsys.modules['hydra'] = sys.modules['omegaconf'] = None\n"
NO_HYDRA = "\nassert 'hydra' not in {name for name, m in sys.modules.items() if m is not None}\n"


def scripts(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), re.DOTALL)


def script_with(page: str, word: str) -> str:
    return next(code for code in scripts(page) if word in code)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def printed(script: str, folder: Path) -> str:
    """What a script prints in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", BLOCK_HYDRA + script + NO_HYDRA],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_readme_script_runs_and_its_checkpoint_loads(tmp_path: Path) -> None:
    script = script_with("README.md", "RewardModule")
    assert len([line for line in script.splitlines() if line.strip()]) <= 16
    write(
        tmp_path / "comparisons.jsonl",
        [
            {
                "prompt": f"what does the dog eat ? answer : {n}",
                "completions": ["the dog eats", "bread ."],
                "ranks": [2, 1],
            }
            for n in range(24)
        ],
    )
    loading = script_with("docs/library.md", "load_from_checkpoint")
    script += "\nprint('accuracy', float(trainer.callback_metrics['train/accuracy']), trainer.global_step)\n" + loading
    script += "\nsame = [torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)]"
    output = printed(script + "\nprint('same', all(same), len(same))\n", tmp_path)
    assert "accuracy 1.0 3" in output
    assert '"shared_prefix":            True' in output
    assert re.search(r"same True \d\d", output)


def test_fabric_script_runs(tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", [{"prompt": f"what does the dog eat ? answer : {n}"} for n in range(16)])
    output = printed(script_with("docs/library.md", "L.Fabric") + "\nprint('learned', int(module.iteration))", tmp_path)
    assert "learned 2" in output
