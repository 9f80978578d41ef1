"""Trains each kind of stage; run in one process, or in several. See test_processes.py.

Usage: training_worker.py <folder> <one|ddp|fsdp> <epochs> [stages, with commas] [batch]

The last process gets a SIGTERM at the start of that batch of every stage.
"""

import json
import os
import signal
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
from rlhf_lightning.models.export import export_causal_lm, export_scalar_model
from rlhf_lightning.parallel.processes import all_gather_objects, init_process_group, rank, world_size
from rlhf_lightning.sandbox.world import generate_demonstrations, generate_prompts, generate_text
from rlhf_lightning.training.fit import fit_stage

LENGTHS = {"max_prompt_tokens": 48, "max_response_tokens": 12, "block_size": 32}


def trainer(kind: str, **options: object) -> L.Trainer:
    """On the CPU, with the strategy of that name."""
    sharded = ModelParallelStrategy(world_size(), 1, save_distributed_checkpoint=False)
    strategy = {"one": "auto", "ddp": "ddp", "fsdp": sharded}[kind]
    devices, machines = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    sizes = {"devices": devices, "num_nodes": machines}
    return L.Trainer(accelerator="cpu", strategy=strategy, use_distributed_sampler=False, **sizes, **options)


class SigtermAt(L.Callback):
    """Ends one process of several."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        """Tell the last process alone."""
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch and rank() == world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)


class Worker:
    """Makes stages, each with its metrics and its exported weights in a folder of its own."""

    def __init__(self, folder: Path, kind: str, epochs: int, sigterm_at: int) -> None:
        self.folder, self.kind, self.epochs, self.sigterm_at = folder, kind, epochs, sigterm_at
        self.tokenizer = load_tokenizer("sandbox")
        self.demonstrations = generate_demonstrations(41, 0)  # the last batch of 4 has one row: a process has none
        self.adam = partial(torch.optim.Adam, lr=1e-4, eps=1e-5)

    def base(self, **options: float) -> torch.nn.Module:
        """What every stage starts from."""
        L.seed_everything(1, verbose=False)
        return load_causal_lm("sandbox", **options)

    def fit(self, name: str, module: L.LightningModule, *data: object, **sizes: object) -> None:
        """Train a stage."""
        folder = self.folder / name
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        records = RLHFDataModule(name, self.tokenizer, *data, **LENGTHS, **sizes)
        counts = {"epochs": self.epochs, "checkpoint_every": 100, "log_every": 1}
        make = partial(trainer, self.kind)
        fit_stage(module, records, folder, make, [SigtermAt(self.sigterm_at)], print, **counts)

    def sft(self, residual_dropout: float = 0.0) -> None:
        """On demonstrations; several processes read them one at a time, without padding."""
        options = {} if self.kind == "one" else {"micro_batch_size": 1, "packing": True}
        model = self.base(residual_dropout=residual_dropout)
        module = LanguageModelModule(model, self.adam, **options)
        self.fit("sft", module, self.demonstrations, self.demonstrations[:11], batch_size=4)
        export_causal_lm(module.model, self.tokenizer, self.folder / "sft" / "model")

    def dropout(self) -> None:
        """The same with dropout, which draws from the random state of each process."""
        self.sft(0.2)

    def reward(self) -> None:
        """On rankings of three, with ties."""
        ranks = 14 * [[1, 2, 3], [2, 1, 1], [1, 1, 1]]
        answers = [each.response for each in self.demonstrations]
        comparisons = [
            Comparison(first.prompt, answers[number : number + 3], ranks[number], source=f"team-{number % 3}")
            for number, first in enumerate(self.demonstrations[:-2])
        ]
        model = self.base()
        # In several processes the batch is read in parts, of which one process has two and another one.
        parts = {} if self.kind == "one" else {"micro_batch_size": 1}
        module = RewardModule(ScalarHeadModel.from_causal_lm(model), self.adam, **parts)
        self.fit("reward", module, comparisons, comparisons[:7], batch_size=3)
        export_scalar_model(module.model, model.config, self.tokenizer, self.folder / "reward" / "model")

    def ppo(self) -> None:
        """With text, micro-batches, a coefficient that adapts, and batches of which one process has a row more."""
        module = self.ppo_module(
            num_minibatches=3,
            micro_batch_size=2,
            kl_coef=0.1,
            kl_target=2.0,
            kl_horizon=200,
            ptx_coef=0.5,
            max_grad_norm=1.0,
            seed=3,
            packing=self.kind != "one",
        )
        prompts, text = generate_prompts(40, 0), generate_text(20, 0)
        self.fit("ppo", module, prompts, text=text, batch_size=9, num_batches=10, text_batch_size=6)
        export_causal_lm(module.policy, self.tokenizer, self.folder / "ppo" / "model")
        with module.ema.applied(module.policy):
            export_causal_lm(module.policy, self.tokenizer, self.folder / "ppo" / "model_ema")

    def ppo_module(self, **options: object) -> PPOModule:
        """All four models from the same start."""
        model = self.base()
        reward, critic = ScalarHeadModel.from_causal_lm(model), ScalarHeadModel.from_causal_lm(model)
        models = (model, self.base(), reward, critic)
        length = LENGTHS["max_response_tokens"]
        return PPOModule(*models, self.tokenizer, self.adam, self.adam, max_new_tokens=length, **options)

    def held_out(self) -> None:
        """What tests and predictions say, in a file; of the last batch one process has no row."""
        prompts, demonstrations = generate_prompts(5, 0), self.demonstrations[:5]
        rankings = [Comparison(each.prompt, [each.response, "bread .", "no ."], [1, 2, 3]) for each in demonstrations]
        modules = {
            "sft": (LanguageModelModule(self.base(), self.adam), demonstrations),
            "reward": (RewardModule(ScalarHeadModel.from_causal_lm(self.base()), self.adam), rankings),
            "ppo": (self.ppo_module(), prompts),
        }
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        said = {}
        for name, (module, records) in modules.items():
            data = RLHFDataModule(name, self.tokenizer, test=records, batch_size=2, **LENGTHS)
            run = trainer(self.kind, **dict.fromkeys(quiet, False))
            (said[f"{name}/test"],) = run.test(module, data, verbose=False)
            batches = {"answers": run.predict(module, data), "rows": run.predict(module, data.test_dataloader())}
            for key, predicted in batches.items():
                mine = [row.tolist() if isinstance(row, torch.Tensor) else row for batch in predicted for row in batch]
                said[f"{name}/{key}"] = sorted(row for rows in all_gather_objects(mine) for row in rows)
        if rank() == 0:
            (self.folder / "held_out.json").write_text(json.dumps(said))


def main(folder: str, kind: str, epochs: str, stages: str = "sft,reward,ppo,held_out", sigterm_at: str = "-1") -> None:
    """Make the stages."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    init_process_group(gpu=False)
    worker = Worker(Path(folder), kind, int(epochs), int(sigterm_at))
    for stage in stages.split(","):
        getattr(worker, stage)()
    if world_size() > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
