"""The plan against what real runs allocate, and the remedies it names."""

import copy
import gc
import itertools
from functools import partial

import lightning as L
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rlhf_lightning import LanguageModelModule, PPOModule, RewardModule, ScalarHeadModel
from rlhf_lightning.algorithms.batch import ComparisonBatch, LMBatch, PromptBatch
from rlhf_lightning.models.loading import use_fast_kernels
from rlhf_lightning.models.lora import add_adapters, critic_with_adapters, with_adapters
from rlhf_lightning.training.fit import QUIET
from rlhf_lightning.training.live_bytes import LiveBytes
from rlhf_lightning.training.memory import MemoryPlanner, Precision, key_value_width

SHARED = {"vocab_size": 3000, "bos_token_id": None, "eos_token_id": None}
DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CONFIGS = {
    "gpt2": GPT2Config(n_layer=3, n_embd=128, n_head=4, n_positions=256, **DROPOUT, **SHARED),
    "llama": LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        **SHARED,
    ),
}
PRECISIONS = {"32-true": Precision(), "bf16-mixed": Precision(autocast=torch.bfloat16)}
QUICK = (("gpt2", "32-true", False), ("llama", "bf16-mixed", True))
WITHIN = 0.15
"""What the plan promises."""
adam = partial(torch.optim.Adam, lr=1e-5, fused=True)


def allocated(work):
    """The most bytes that were alive at once, by torch's own records."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as records:
        work()
    events = [event for event in records.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def trained(module, batches, precision):
    class Batches(Dataset):
        def __len__(self):
            return len(batches)

        def __getitem__(self, index):
            return batches[index]

    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, precision=precision, log_every_n_steps=1, **quiet
    )
    trainer.fit(module, DataLoader(Batches(), batch_size=None))


def ids(*shape):
    tokens = torch.randint(3, 2900, shape, generator=torch.Generator().manual_seed(1))
    return tokens, torch.ones_like(tokens, dtype=torch.bool)


def causal_lm(kind):
    return use_fast_kernels(AutoModelForCausalLM.from_config(CONFIGS[kind])).eval()


def peak(phases):
    return max(phase.total for phase in phases)


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*", *(f"ignore:{message}" for message in QUIET))
@pytest.mark.parametrize(
    ("kind", "precision", "checkpointing"),
    [
        pytest.param(*each, marks=[] if each in QUICK else pytest.mark.slow)
        for each in itertools.product(CONFIGS, PRECISIONS, (False, True))
    ],
)
class TestWithinFifteenPercent:
    def planner(self, kind, precision, checkpointing, **options):
        return MemoryPlanner(CONFIGS[kind], PRECISIONS[precision], activation_checkpointing=checkpointing, **options)

    def test_language_model(self, kind, precision, checkpointing):
        def work():
            module = LanguageModelModule(causal_lm(kind), adam, activation_checkpointing=checkpointing)
            tokens, mask = ids(12, 100)
            trained(module, [LMBatch(tokens, mask, mask)] * 2, precision)

        plan = self.planner(kind, precision, checkpointing).language_model(12, 100)
        assert peak(plan) == pytest.approx(allocated(work), rel=WITHIN)

    @pytest.mark.parametrize(("prompts", "width", "count", "length"), [(6, 40, 4, 30), (4, 64, 9, 40)])
    def test_reward_model(self, kind, precision, checkpointing, prompts, width, count, length, request):
        if checkpointing and count == 9:  # the cached pass, computed again: the plan is up to 20 % under
            request.applymarker(pytest.mark.xfail(reason="keys and values of nine responses are not in the plan"))

        def work():
            model = ScalarHeadModel.from_causal_lm(causal_lm(kind))
            module = RewardModule(model, adam, activation_checkpointing=checkpointing)
            ranks = torch.arange(1, count + 1).repeat(prompts, 1)
            batch = ComparisonBatch(*ids(prompts, width), *ids(prompts, count, length), ranks, [""] * prompts)
            trained(module, [batch] * 2, precision)

        plan = self.planner(kind, precision, checkpointing).reward_model(prompts, width, count, length)
        assert peak(plan) == pytest.approx(allocated(work), rel=WITHIN)

    @pytest.mark.parametrize(
        ("minibatches", "micro", "text", "rank"),
        [
            pytest.param(2, 4, 0, 0, marks=pytest.mark.slow),
            pytest.param(1, None, 24, 0, marks=pytest.mark.slow),
            (2, 4, 8, 8),
        ],
    )
    def test_ppo(self, kind, precision, checkpointing, minibatches, micro, text, rank, tiny_tokenizer):
        rows, width, length = 16, 40, 30

        def work():
            policy = causal_lm(kind)
            reward = ScalarHeadModel.from_causal_lm(policy)
            if rank:
                add_adapters(policy, rank)
            module = PPOModule(
                policy,
                policy if rank else copy.deepcopy(policy),
                reward,
                critic_with_adapters(reward, rank=rank) if rank else copy.deepcopy(reward),
                tiny_tokenizer,
                adam,
                adam,
                max_new_tokens=length,
                num_minibatches=minibatches,
                micro_batch_size=micro,
                ema_decay=0.9 if text else None,
                ptx_coef=0.5 if text else 0.0,
                activation_checkpointing=checkpointing,
            )
            prompts = PromptBatch(*ids(rows, width), torch.arange(rows), [""] * rows)
            tokens, mask = ids(max(text, 1), 80)
            batch = {"prompts": prompts} | ({"pretrain": LMBatch(tokens, mask, mask)} if text else {})
            trained(module, [batch] * 2, precision)

        plan = self.planner(kind, precision, checkpointing, lora={"rank": rank} if rank else None).ppo(
            rows,
            width,
            length,
            micro_rows=micro or rows,
            minibatch_rows=rows // minibatches,
            forward_tokens=2**14,
            ema=bool(text),
            text_rows=min(micro or text, text // minibatches),
            text_tokens=80,
        )
        assert peak(plan) == pytest.approx(allocated(work), rel=WITHIN)


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*", *(f"ignore:{message}" for message in QUIET))
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", CONFIGS)
class TestAdapters:
    def test_language_model(self, kind, precision):
        def work():
            tokens, mask = ids(12, 100)
            module = LanguageModelModule(with_adapters(causal_lm(kind), rank=8), adam)
            trained(module, [LMBatch(tokens, mask, mask)] * 2, precision)

        plan = MemoryPlanner(CONFIGS[kind], PRECISIONS[precision], lora={"rank": 8}).language_model(12, 100)
        full = MemoryPlanner(CONFIGS[kind], PRECISIONS[precision]).language_model(12, 100)
        assert plan[0].parts["optimizer"] < full[0].parts["optimizer"] / 5
        assert peak(plan) == pytest.approx(allocated(work), rel=WITHIN)

    def test_reward_model(self, kind, precision):
        def work():
            model = with_adapters(ScalarHeadModel.from_causal_lm(causal_lm(kind)), rank=8)
            ranks = torch.arange(1, 5).repeat(6, 1)
            batch = ComparisonBatch(*ids(6, 40), *ids(6, 4, 30), ranks, [""] * 6)
            trained(RewardModule(model, adam), [batch] * 2, precision)

        plan = MemoryPlanner(CONFIGS[kind], PRECISIONS[precision], lora={"rank": 8}).reward_model(6, 40, 4, 30)
        assert peak(plan) == pytest.approx(allocated(work), rel=WITHIN)


def test_live_bytes_counts_storages_once_and_forgets_the_dead():
    live = LiveBytes()
    before = torch.zeros(7000)
    with live:
        assert before.view(70, 100).t().sum() == 0
        assert live.now == 0
        first = torch.zeros(1000)
        view = first[:10]
        assert live.now == 4000
        second = torch.zeros(500)
        del second
        assert (live.now, live.peak) == (4000, 6000)
        del first
        assert live.now == 4000
        del view
        assert live.now == 0


def test_nothing_of_the_size_of_the_model_is_allocated():
    large = GPT2Config(n_layer=48, n_embd=1600, n_head=25, **DROPOUT, **SHARED)
    planned = MemoryPlanner(large).language_model(1, 32)[0]
    assert planned.parts["model"] > 5e9
    assert allocated(lambda: MemoryPlanner(large).language_model(1, 32)) < 1e6


def test_grouped_heads_keep_a_smaller_cache():
    assert key_value_width(CONFIGS["gpt2"]) == 3 * 128
    assert key_value_width(CONFIGS["llama"]) == 3 * 64
