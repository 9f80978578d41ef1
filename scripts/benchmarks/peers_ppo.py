"""The last PPO with a critic in TRL; runs in a virtual environment of its own."""

import torch
from datasets import Dataset
from gate import make_lm, make_tokenizer, tokens
from peers import Steps, classifier, options
from peft import LoraConfig
from plain import forced_processor
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Iterations(Steps):
    """PPOTrainer says only when an iteration ends."""

    def on_train_begin(self, *_, **__):
        """Wait for the parent."""
        self.gate.wait()

    def on_step_end(self, *_, **__):
        """Report."""
        self.gate.report(self.units)
        self.gate.wait()


def ppo(gate, shape):
    """PPOTrainer with as many optimizer steps as ours: no gradient accumulation."""
    config = PPOConfig(
        **options(shape),
        per_device_train_batch_size=shape["rows"],
        gradient_accumulation_steps=1,
        num_mini_batches=shape["minibatches"],
        num_ppo_epochs=shape["epochs"],
        local_rollout_forward_batch_size=shape["rows"],
        response_length=shape["response"],
        total_episodes=10**6,
        stop_token="eos",
        num_sample_generations=0,
        gradient_checkpointing=False,
        kl_coef=0.02,
        gamma=1.0,
        lam=0.95,
    )
    policy = make_lm(shape)
    generate = policy.generate
    policy.generate = lambda *a, **o: generate(*a, **o, logits_processor=forced_processor(shape))
    tokenizer = make_tokenizer(shape)
    data = Dataset.from_dict({"input_ids": tokens(shape, shape["rows"] * 4, shape["prompt"]).tolist()})
    rank = shape.get("lora")
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None if rank else make_lm(shape),
        peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear") if rank else None,
        reward_model=classifier(shape),
        value_model=classifier(shape),
        train_dataset=data,
    )
    trainer.add_callback(Iterations(gate, shape["rows"]))
    torch.manual_seed(0)
    trainer.train()
