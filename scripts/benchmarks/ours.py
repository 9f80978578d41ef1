"""The contenders of this package, under Lightning's Trainer where they train."""

from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

import lightning as L
import torch
from gate import EOS, PAD, make_tokenizer, response_lengths, tokens
from gate import make_lm as make_plain_lm

from rlhf_lightning import LanguageModelModule, PPOModule, RewardModule
from rlhf_lightning.algorithms.batch import ComparisonBatch, LMBatch, PromptBatch
from rlhf_lightning.generation import sample as generation
from rlhf_lightning.generation.inverse_cdf import inverse_cdf_sample
from rlhf_lightning.generation.sample import SamplingOptions, sample_responses
from rlhf_lightning.models.decoder_layers import decoder_layers
from rlhf_lightning.models.loading import use_fast_kernels
from rlhf_lightning.models.lora import add_adapters, critic_with_adapters
from rlhf_lightning.models.scalar_head import ScalarHeadModel


def make_lm(shape):
    """The same model as this package loads it."""
    return use_fast_kernels(make_plain_lm(shape))


class Steps(L.Callback):
    """Opens the gate for every batch."""

    def __init__(self, gate, units):
        self.gate, self.units = gate, units

    def on_train_batch_start(self, *_):
        """Wait for the parent."""
        self.gate.wait()

    def on_train_batch_end(self, trainer, *_):
        """Report; what the module counts itself is that of the step before, which was the same."""
        flops = trainer.callback_metrics.get("time/flops")
        self.gate.report(self.units, **({} if flops is None else {"flops": float(flops)}))


def fit(gate, shape, module, batch, units):
    """Train on the same batch for as long as the parent asks."""

    class Same(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield batch

    trainer = L.Trainer(
        accelerator="gpu" if shape.get("device") == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if shape.get("precision") == "bf16" else "32-true",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[Steps(gate, units)],
    )
    trainer.fit(module, torch.utils.data.DataLoader(Same(), batch_size=None))


def adam(shape):
    """The optimizer of every row."""
    return partial(torch.optim.Adam, lr=1e-5, betas=(0.9, 0.95), fused=shape.get("fused", True))


def reward(gate, shape):
    """K-wise reward training."""
    prompts, count = shape["prompts"], shape["K"]
    module = RewardModule(
        ScalarHeadModel.from_causal_lm(make_lm(shape)),
        adam(shape),
        shared_prefix=shape.get("shared_prefix", True),
        micro_batch_size=shape.get("micro"),
        activation_checkpointing=shape.get("again", False),
    )
    prompt, response = tokens(shape, prompts, shape["prompt"]), tokens(shape, prompts, count, shape["response"])
    ranks = torch.stack([torch.randperm(count) + 1 for _ in range(prompts)])
    masks = [torch.ones_like(ids, dtype=torch.bool) for ids in (prompt, response)]
    batch = ComparisonBatch(prompt, masks[0], response, masks[1], ranks, [""] * prompts)
    fit(gate, shape, module, batch, prompts)


def sft(gate, shape):
    """Supervised fine-tuning; the last ``counted`` share of each row are response tokens.

    With ``uneven`` the rows have 16 tokens to all of them, evenly spread; ``packed`` reads them as one.
    """
    ids = tokens(shape, shape["rows"], shape["length"])
    mask = torch.ones_like(ids, dtype=torch.bool)
    if shape.get("uneven"):
        mask = torch.arange(shape["length"]) < torch.linspace(16, shape["length"], shape["rows"]).round().unsqueeze(1)
        mask = mask.to(ids.device)
    loss_mask = torch.arange(shape["length"]) >= round(shape["length"] * (1 - shape.get("counted", 1.0)))
    loss_mask = loss_mask.expand_as(ids).clone()
    loss_mask[:, 0] = False
    model = make_lm(shape)
    for layer in decoder_layers(model) if shape.get("compiled") else []:
        layer.compile()
    module = LanguageModelModule(model, adam(shape), packing=shape.get("packed", False))
    fit(gate, shape, module, LMBatch(ids, mask, loss_mask.to(mask.device) & mask), int(mask.sum()))


def prompts_of(shape):
    """Prompts of equal length."""
    ids = tokens(shape, shape["rows"], shape["prompt"])
    index = torch.arange(shape["rows"], device=ids.device)
    return PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), index, [""] * shape["rows"])


def forced_ends(shape):
    """Responses end where the row says, and nowhere else: EOS takes the place of the sampled token."""
    lengths, state = response_lengths(shape, shape["rows"]), {}
    make_decoder, sample = generation.decoder, inverse_cdf_sample

    def decoder(*arguments):
        state.update(decoder=make_decoder(*arguments), step=0)
        return state["decoder"]

    def forced(logits, uniforms, temperature):
        state["step"] += 1
        chosen, log_probs = sample(logits, uniforms, temperature)
        other = torch.where(chosen == EOS, EOS + 1, chosen)
        if shape.get("uniform"):
            ends = (lengths[state["decoder"].rows.cpu()] == state["step"]).to(chosen.device)
            other = torch.where(ends, EOS, other)
        elif "minibatches" not in shape:
            return other, log_probs  # and no pause to look which ones were replaced
        replaced = (other != chosen).nonzero().squeeze(1)
        if len(replaced):
            # The update compares the sampler's log-probs with its own.
            own = logits[replaced].float().log_softmax(-1).gather(1, other[replaced].unsqueeze(1)).squeeze(1)
            log_probs[replaced] = own.to(log_probs.dtype)
        return other, log_probs

    stack = ExitStack()
    stack.enter_context(patch.object(generation, "decoder", decoder))
    stack.enter_context(patch.object(generation, "inverse_cdf_sample", forced))
    return stack


def rollout(gate, shape):
    """Sampling one response per prompt."""
    model, prompts, options = make_lm(shape), prompts_of(shape), SamplingOptions(shape["response"], EOS, PAD)
    with forced_ends(shape):
        while True:
            gate.wait()
            out = sample_responses(model, prompts, options, cuda_graphs=shape.get("graphs", False))
            gate.report(int(out.response_mask.sum()), bytes=decoded_bytes(model, shape))


def decoded_bytes(model, shape):
    """The fewest bytes that decoding moves: at every token the weights, and keys and values of all tokens before."""
    config, size = model.config.get_text_config(), next(model.parameters()).element_size()
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    columns = sum(shape["prompt"] + token for token in range(1, shape["response"]))
    cache = 2 * config.num_hidden_layers * heads * width * shape["rows"] * columns
    return size * (cache + shape["response"] * sum(weight.numel() for weight in model.parameters()))


def sampling(gate, shape):
    """One token per row from logits."""
    logits = torch.randn(shape["rows"], shape["vocabulary"])
    while True:
        gate.wait()
        for _ in range(20):
            inverse_cdf_sample(logits, torch.rand(shape["rows"]), 1.0)
        gate.report(20 * shape["rows"])


def ppo(gate, shape):
    """One iteration: rollout, scores, update."""
    policy = make_lm(shape)
    reward = ScalarHeadModel.from_causal_lm(make_lm(shape))
    if shape.get("lora"):
        add_adapters(policy, shape["lora"])
        reference, value = policy, critic_with_adapters(reward, rank=shape["lora"])
    else:
        reference, value = make_lm(shape), ScalarHeadModel.from_causal_lm(make_lm(shape))
    module = PPOModule(
        policy,
        reference,
        reward,
        value,
        make_tokenizer(shape),
        adam(shape),
        adam(shape),
        max_new_tokens=shape["response"],
        num_minibatches=shape["minibatches"],
        num_ppo_epochs=shape["epochs"],
        micro_batch_size=shape.get("micro"),
        packing=True,
        ema_decay=None,
        ptx_coef=27.8 if shape.get("text") else 0.0,
    )
    batch = {"prompts": prompts_of(shape)}
    if shape.get("text"):
        ids = tokens(shape, shape["text"], shape["prompt"] + shape["response"])
        mask = torch.ones_like(ids, dtype=torch.bool)
        batch["pretrain"] = LMBatch(ids, mask, mask & (torch.arange(ids.shape[1], device=ids.device) > 0))
    with forced_ends(shape):
        fit(gate, shape, module, batch, shape["rows"])
