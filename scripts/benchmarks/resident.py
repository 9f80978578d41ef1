"""The memory plan beside the resident memory of real steps: ``resident.py MODEL-FOLDER``, each in a process."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from gate import resident
from lightning import Trainer
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from rlhf_lightning import LanguageModelModule, PPOModule, RewardModule, ScalarHeadModel
from rlhf_lightning.algorithms.batch import ComparisonBatch, LMBatch, PromptBatch
from rlhf_lightning.generation.sampling_batches import OWN_LOOP
from rlhf_lightning.models.loading import load_causal_lm, model_config
from rlhf_lightning.models.lora import ppo_models, with_adapters
from rlhf_lightning.training.memory import MemoryPlanner, Precision
from rlhf_lightning.training.resident import in_process

CASES = ("sft 32-true 0", "sft bf16-mixed 0", "reward bf16-mixed 0", "ppo bf16-mixed 16", "ppo 32-true 16")
ADAM = partial(torch.optim.Adam, lr=1e-5, fused=True)


def tokens(*shape):
    """Random ids and their mask."""
    ids = torch.randint(3, 1000, shape)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def planned(planner, stage):
    """The phases of a case."""
    if stage == "sft":
        return planner.language_model(4, 256)
    if stage == "reward":
        return planner.reward_model(2, 128, 4, 64)
    sizes = {"micro_rows": 4, "minibatch_rows": 4, "forward_tokens": 2**14, "sampled_rows": 16}
    return planner.ppo(16, 128, 64, **sizes, ema=False)


def module_and_batch(folder, stage, rank):
    """What is trained in a case, and on what."""
    model = load_causal_lm(folder)
    if stage == "sft":
        ids, mask = tokens(4, 256)
        return LanguageModelModule(with_adapters(model, rank=rank), ADAM), LMBatch(ids, mask, mask)
    if stage == "reward":
        ranks = torch.arange(1, 5).repeat(2, 1)
        batch = ComparisonBatch(*tokens(2, 128), *tokens(2, 4, 64), ranks, [""] * 2)
        return RewardModule(with_adapters(ScalarHeadModel.from_causal_lm(model), rank=rank), ADAM), batch
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = next(word for word in tokenizer.all_special_tokens if word != tokenizer.eos_token)
    models = ppo_models(model, ScalarHeadModel.from_causal_lm(model), rank=rank)
    sizes = {"max_new_tokens": 64, "num_minibatches": 4, "micro_batch_size": 4, "ema_decay": None}
    module = PPOModule(**models, tokenizer=tokenizer, optimizer=ADAM, value_optimizer=ADAM, sampler=OWN_LOOP, **sizes)
    return module, {"prompts": PromptBatch(*tokens(16, 128), torch.arange(16), [""] * 16)}


def case(folder, stage, precision, rank):
    """Plan and run one case; the row of the table."""
    autocast = torch.bfloat16 if precision == "bf16-mixed" else None
    lora = {"rank": int(rank)} if int(rank) else None
    planner = MemoryPlanner(model_config(folder), Precision(autocast=autocast), lora=lora)
    plan = max(phase.total for phase in in_process(planned(planner, stage), torch.device("cpu"))) / 2**20
    module, batch = module_and_batch(folder, stage, int(rank))
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=1, precision=precision, **off)
    trainer.fit(module, DataLoader([batch] * 2, batch_size=None))
    found = resident("VmHWM") / 2**20
    return f"| {stage} | {precision} | {rank} | {plan:.0f} | {found:.0f} | {plan / found:.2f} |\n"


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.stderr.write(case(*sys.argv[1:]))
    else:
        sys.stdout.write(
            "| step | precision | LoRA | planned, MiB | resident, MiB | ratio |\n|---|---|--:|--:|--:|--:|\n"
        )
        for each in CASES:
            command = [sys.executable, "-W", "ignore", str(Path(__file__)), sys.argv[1], *each.split()]
            done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
            sys.stdout.write(
                next((line + "\n" for line in done.stderr.splitlines() if line.startswith("| ")), done.stderr)
            )
            sys.stdout.flush()
