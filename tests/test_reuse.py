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


def test_own_model_own_batches_and_a_folder_for_transformers(tmp_path: Path) -> None:
    words = ("class Recurrent", "DataCollatorForSeq2Seq", "save_pretrained")
    output = printed("\n".join(script_with("docs/library.md", word) for word in words), tmp_path)
    (loss,) = re.findall(r"loss ([\d.]+)", output)
    assert float(loss) < 1.0
    assert "same True" in output
    assert (tmp_path / "answers" / "config.json").exists()


OWN_TRAINER = """
import copy, logging, sys, warnings
import lightning as L, torch
from functools import partial
from lightning.pytorch.trainer.connectors import data_connector
from transformers.utils import logging as transformers_logging

seen = []
class Seen(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            seen.append(record.getMessage())
for name in ("", "transformers", "lightning", "lightning.pytorch"):
    logging.getLogger(name).addHandler(Seen())
data_connector.suggested_max_num_workers = lambda devices: 8  # as on a machine with cores to spare
from rlhf_lightning import LanguageModelModule, PPOModule, RewardModule, RLHFDataModule, ScalarHeadModel
from rlhf_lightning import load_causal_lm, load_tokenizer

warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # between Lightning 2.6.6 and torch 2.13
tokenizer, adam = load_tokenizer("sandbox"), partial(torch.optim.Adam, lr=1e-3)
rows = {
    "sft": [{"prompt": f"what does the dog eat ? answer : {n}", "response": "bread ."} for n in range(8)],
    "reward": [{"prompt": f"what ? {n}", "chosen": "bread .", "rejected": "the dog eats"} for n in range(8)],
    "ppo": [{"prompt": f"what does the dog eat ? answer : {n}"} for n in range(8)],
}
for task, records in rows.items():
    for validation in (None, records):
        model = load_causal_lm("sandbox")
        value = ScalarHeadModel.from_causal_lm(model)
        models = [model, copy.deepcopy(model), copy.deepcopy(value), value]
        module = {
            "sft": lambda: LanguageModelModule(model, adam),
            "reward": lambda: RewardModule(value, adam),
            "ppo": lambda: PPOModule(*models, tokenizer, adam, adam, max_new_tokens=8, num_minibatches=2),
        }[task]()
        modes = [(part, part.training) for part in module.modules()]
        trainer = L.Trainer(max_epochs=2, accelerator="cpu", log_every_n_steps=1, limit_val_batches=2)
        trainer.fit(module, RLHFDataModule(task, tokenizer, records, validation, batch_size=4))
        assert trainer.global_step and trainer.limit_val_batches == 2
        validated = [name for name in trainer.callback_metrics if name.startswith("validation/")]
        assert bool(validated) == (validation is not None), validated
        assert task == "sft" or all(part.training == mode for part, mode in modes)
print("seen", seen)
"""


def test_a_plain_trainer_has_nothing_to_warn_of(tmp_path: Path) -> None:
    assert "seen []" in printed(OWN_TRAINER, tmp_path)
