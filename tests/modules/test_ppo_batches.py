"""Batches of PPO as they come: prompts that are asked twice, in one process or in several, and small last batches."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.optim import SGD
from torch.utils.data import DataLoader

from rlhf_lightning.data.examples import LMExample, PromptExample
from rlhf_lightning.data.loader import collate_lm, collate_prompts
from rlhf_lightning.models.lora import ppo_models
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.ppo_minibatch import draw_minibatches
from rlhf_lightning.parallel import processes
from rlhf_lightning.training.fit import QUIET

LEARN = partial(SGD, lr=0.1)


def prompts(numbers):
    return collate_prompts([PromptExample([3 + number, 9], number, f"p{number}") for number in numbers], 0)


def text(rows):
    return collate_lm([LMExample([5 + row, 6, 7], 1) for row in range(rows)], 0)


def make_ppo(model, tokenizer, **options):
    models = ppo_models(model, ScalarHeadModel.from_causal_lm(model))
    sizes = {"max_new_tokens": 12, "num_minibatches": 4, "seed": 3, **options}
    return PPOModule(**models, tokenizer=tokenizer, optimizer=LEARN, value_optimizer=LEARN, **sizes)


@pytest.mark.parametrize("count", [2, 3])
def test_responses_do_not_depend_on_how_many_processes_ask(tiny_gpt2, tiny_tokenizer, monkeypatch, count):
    """The same prompt is asked in several processes, and twice in one: each row is that of a single process."""
    numbers = [0, 0, 1, 0, 2, 0, 1, 1, 0, 2]
    module = make_ppo(tiny_gpt2, tiny_tokenizer)
    alone = module.rollout(prompts(numbers))
    texts = [
        tiny_tokenizer.decode(ids[mask]) for ids, mask in zip(alone.response_ids, alone.response_mask, strict=True)
    ]
    assert len({*zip(numbers, texts, strict=True)}) == len(numbers), "no answer is a copy"
    shares = [torch.tensor(numbers[rank::count]) for rank in range(count)]
    monkeypatch.setattr(processes, "all_gather_objects", lambda _: shares)
    for rank in range(count):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        own = module.rollout(prompts(numbers[rank::count]))
        width = own.response_ids.shape[1]
        mask = alone.response_mask[rank::count]
        assert torch.equal(own.response_mask, mask[:, :width])
        assert torch.equal(own.response_ids[own.response_mask], alone.response_ids[rank::count][mask])
        assert own.prompts.prompt_index.tolist() == numbers[rank::count]


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*", *(f"ignore:{message}" for message in QUIET))
@pytest.mark.parametrize("last", [1, 3])
def test_a_small_last_batch_trains_with_fewer_minibatches(make_tiny_lm, tiny_tokenizer, tmp_path, last):
    module = make_ppo(make_tiny_lm("gpt2"), tiny_tokenizer, ptx_coef=0.5, kl_target=1.0)
    steps = []
    module.step_clipped = lambda optimizer, model, name, limit: steps.append((int(module.iteration), name))
    batches = [prompts(range(8)), prompts(range(8)), prompts(range(last))]
    parts = {"prompts": DataLoader(batches, batch_size=None), "pretrain": DataLoader([text(4)] * 3, batch_size=None)}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **quiet)
    trainer.fit(module, CombinedLoader(parts, "min_size"))
    assert [steps.count((iteration, "policy")) for iteration in range(3)] == [4, 4, last]
    assert all(value.isfinite() for name, value in trainer.callback_metrics.items() if "grad" not in name)


def test_one_token_in_all_ends_no_run(tiny_gpt2, tiny_tokenizer):
    module = make_ppo(tiny_gpt2, tiny_tokenizer, num_minibatches=1, max_new_tokens=1)
    experience = module.score(module.rollout(prompts([3])))
    assert experience.advantages.tolist() == [[0.0]]


def test_a_first_batch_with_fewer_episodes_than_minibatches_is_a_wrong_setting(tiny_gpt2, tiny_tokenizer):
    module = make_ppo(tiny_gpt2, tiny_tokenizer)
    with pytest.raises(ValueError, match=r"a rollout of 3 episodes .* num_minibatches=4"):
        module.score(module.rollout(prompts(range(3))))


@pytest.mark.parametrize("rows", [(3, 2), (1, 1), (5, 4)])
def test_minibatches_of_processes_with_different_numbers_of_rows_are_one_partition(monkeypatch, rows):
    """As of a single process with all rows, of which each process has every second."""
    whole = draw_minibatches(sum(rows), 4, (7,))
    monkeypatch.setattr("rlhf_lightning.modules.ppo_minibatch.all_gather_objects", lambda _: list(rows))
    monkeypatch.setattr("rlhf_lightning.modules.ppo_minibatch.world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("rlhf_lightning.modules.ppo_minibatch.rank", lambda rank=rank: rank)
        parts.append([[row * 2 + rank for row in part.tolist()] for part in draw_minibatches(rows[rank], 4, (7,))])
    assert [sorted(one + other) for one, other in zip(*parts, strict=True)] == [sorted(part.tolist()) for part in whole]
