"""Trains each kind of stage; run in one process, or in several by torchrun. See test_distributed.py.

Usage: training_worker.py <folder> <one|ddp|fsdp> <epochs>
"""

import sys
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from rlhf_lightning import (
    LanguageModelModule,
    PPOModule,
    RewardModule,
    RLHFDataModule,
    ScalarHeadModel,
    load_causal_lm,
    load_tokenizer,
)
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.distributed import join_processes, processes
from rlhf_lightning.export import export_causal_lm, export_scalar_model
from rlhf_lightning.fitting import fit_stage
from rlhf_lightning.sandbox.world import generate_demonstrations, generate_prompts, generate_text

LENGTHS = {"max_prompt_tokens": 48, "max_response_tokens": 12, "block_size": 32}


def trainer(kind: str, **options: object) -> L.Trainer:
    """On the CPU, with the strategy of that name."""
    sharded = ModelParallelStrategy(processes(), 1, save_distributed_checkpoint=False)
    strategy = {"one": "auto", "ddp": "ddp", "fsdp": sharded}[kind]
    return L.Trainer(
        accelerator="cpu", devices=processes(), strategy=strategy, use_distributed_sampler=False, **options
    )


def main(folder: Path, kind: str, epochs: int) -> None:
    """Every stage, with its metrics and its exported weights in a folder of its own."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    tokenizer = load_tokenizer("sandbox")
    demonstrations = generate_demonstrations(41, 0)  # the last batch of 4 has one row: a process has none
    comparisons = [
        Comparison(first.prompt, [first.response, second.response, third.response], ranks, source=f"team-{number % 3}")
        for number, (first, second, third, ranks) in enumerate(
            zip(
                demonstrations,
                demonstrations[1:],
                demonstrations[2:],
                14 * [[1, 2, 3], [2, 1, 1], [1, 1, 1]],
                strict=False,
            )
        )
    ]

    def base() -> torch.nn.Module:
        L.seed_everything(1, verbose=False)
        return load_causal_lm("sandbox")

    def fit(name: str, module: L.LightningModule, data: RLHFDataModule) -> None:
        (folder / name / "checkpoints").mkdir(parents=True, exist_ok=True)
        make = partial(trainer, kind)
        fit_stage(module, data, folder / name, make, [], print, epochs=epochs, checkpoint_every=100, log_every=1)

    adam = partial(torch.optim.Adam, lr=1e-4, eps=1e-5)
    module = LanguageModelModule(base(), adam)
    fit("sft", module, RLHFDataModule("sft", tokenizer, demonstrations, demonstrations[:11], batch_size=4, **LENGTHS))
    export_causal_lm(module.model, tokenizer, folder / "sft" / "model")

    model = base()
    reward = RewardModule(ScalarHeadModel.from_causal_lm(model), adam)
    fit("reward", reward, RLHFDataModule("reward", tokenizer, comparisons, comparisons[:7], batch_size=3, **LENGTHS))
    export_scalar_model(reward.model, model.config, tokenizer, folder / "reward" / "model")

    model = base()
    critic = ScalarHeadModel.from_causal_lm(model)
    frozen = ScalarHeadModel.from_causal_lm(model)
    ppo = PPOModule(
        model,
        base(),
        frozen,
        critic,
        tokenizer,
        adam,
        adam,
        max_new_tokens=LENGTHS["max_response_tokens"],
        num_minibatches=3,
        micro_batch_size=2,
        kl_coef=0.1,
        kl_target=2.0,
        kl_horizon=200,
        ptx_coef=0.5,
        max_grad_norm=1.0,
        seed=3,
    )
    prompts, text = generate_prompts(40, 0), generate_text(20, 0)
    data = RLHFDataModule(
        "ppo", tokenizer, prompts, text=text, batch_size=8, num_batches=10, text_batch_size=6, **LENGTHS
    )
    fit("ppo", ppo, data)
    export_causal_lm(ppo.policy, tokenizer, folder / "ppo" / "model")
    with ppo.ema.applied(ppo.policy):
        export_causal_lm(ppo.policy, tokenizer, folder / "ppo" / "model_ema")
    if processes() > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    join_processes(gpu=False)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
