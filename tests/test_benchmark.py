"""What runs on a GPU when there is one, tried on this CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def done(*command: str, **environment: str) -> str:
    said = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
    return said.stdout


@pytest.mark.slow
def test_the_rows_for_a_gpu_run_on_a_cpu_with_a_tiny_model(tmp_path: Path) -> None:
    out = tmp_path / "benchmark.json"
    said = done("scripts/benchmark.py", "--device", "cuda", "--tiny", "--repeats", "1", "--out", str(out))
    assert "PPO-ptx XL-llama bf16, every weight" in said
    assert "| rollout XL bf16, CUDA graphs |" in (tmp_path / "gpu.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_tests_for_a_gpu_pass_on_a_cpu() -> None:
    said = done("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/modules/test_gpu.py", GPU_TESTS_ON="cpu")
    assert "failed" not in said
