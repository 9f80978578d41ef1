"""What cannot be measured here: memory of the paper's sizes by the planner, and compute beside the paper's own."""

import sys

import torch
from transformers import GPT2Config

from rlhf_lightning.training.memory import MemoryPlanner, Precision

GIB, DAY = 2**30, 1e15 * 86400
SIZES = {"1.3B": (24, 2048), "6B": (30, 4096)}
"""Layers and width, heads are 128 wide."""
PAPER = {"SFT 175B": 4.9, "PPO-ptx 175B": 60.0, "GPT-3 175B": 3640.0}
"""Petaflop/s-days (InstructGPT, section 5.1)."""


def config(size):
    """A GPT of that size, with GPT-3's vocabulary and 2k tokens."""
    layers, width = SIZES[size]
    shape = {"n_layer": layers, "n_embd": width, "n_head": width // 128, "n_positions": 2048, "vocab_size": 50_257}
    return GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)


def memory():
    """GiB of each stage at the paper's lengths, for every size, full and with adapters."""
    lines = [
        "| GiB, bf16-mixed, Adam | "
        + " | ".join(f"{size}{rank}" for size in SIZES for rank in ("", ", LoRA 16"))
        + " |"
    ]
    lines.append("|---|" + "--:|" * 2 * len(SIZES))
    stages = {
        "SFT, 4 rows of 2,048 tokens": lambda planner: planner.language_model(4, 2048, 1024),
        "reward model, 1 prompt of 1,024 with 4 responses of 512": lambda planner: planner.reward_model(
            1, 1024, 4, 512
        ),
        "PPO, 512 episodes of 1,024 + 1,024, 64 sampled and 4 learned from at a time": lambda planner: planner.ppo(
            512, 1024, 1024, micro_rows=4, minibatch_rows=64, forward_tokens=2**14, sampled_rows=64
        ),
    }
    planners = [
        MemoryPlanner(
            config(size),
            Precision(torch.bfloat16 if lora else torch.float32, torch.bfloat16),
            activation_checkpointing=True,
            lora=lora,
        )
        for size in SIZES
        for lora in (None, {"rank": 16})
    ]
    for name, phases in stages.items():
        sizes = [max(phase.total for phase in phases(planner)) / GIB for planner in planners]
        lines.append(f"| {name} | " + " | ".join(f"{size:.1f}" for size in sizes) + " |")
    return lines


def compute():
    """Petaflop/s-days of the paper's runs by 6 N D and 2 N D, beside what it says."""
    weights, row, episodes = 175e9, 2048, 256_000
    sft = 6 * weights * 16 * 13_000 * row
    text = 6 * weights * 8 * episodes * row
    # Rollout, old log-probabilities and reference forward; the update forward and backward.
    policy = (3 * 2 + 6) * weights * episodes * row
    critic = (2 * 2 + 6) * 6e9 * episodes * row
    ours = {
        "SFT 175B": (sft, "16 epochs of 13k demonstrations"),
        "PPO-ptx 175B": (text + policy + critic, "256k episodes, 8 pretraining examples each"),
        "GPT-3 175B": (6 * weights * 300e9, "300B tokens"),
    }
    lines = ["| petaflop/s-days, every row of 2,048 tokens | of | 6 N D | the paper |", "|---|---|--:|--:|"]
    for name, (flops, words) in ours.items():
        lines.append(f"| {name} | {words} | {flops / DAY:.3g} | {PAPER[name]:,g} |")
    return lines


def predicted():
    """Both tables, as Markdown."""
    return "\n".join([*memory(), "", *compute(), ""])


if __name__ == "__main__":
    sys.stdout.write(predicted())
