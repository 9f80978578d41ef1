"""Every precision of Lightning's Trainer: right, or refused in words before the first rollout."""

import warnings
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.optim import SGD
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.algorithms.losses import ranking_loss
from rlhf_lightning.data.examples import LMExample, PromptExample
from rlhf_lightning.data.loader import collate_lm, collate_prompts
from rlhf_lightning.models.lora import ppo_models, trainable_parameters
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.training.fit import QUIET

LEARN = partial(SGD, lr=0.1)
RIGHT = [None, "32-true", 32, "bf16-mixed", "64-true"]
REFUSED = ["bf16-true", "16-true"]
QUIETLY = pytest.mark.filterwarnings(
    "ignore:.*no `val_dataloader`.*", "ignore:.*infer the `batch_size`.*", *(f"ignore:{message}" for message in QUIET)
)


def prompts():
    return collate_prompts([PromptExample([3 + row, 9][: 1 + row % 2], row, f"p{row}") for row in range(8)], 0)


def texts():
    return collate_lm([LMExample([5 + (row * 7 + n) % 30 for n in range(6 + row)], 1) for row in range(4)], 0)


def make_ppo(model, tokenizer, rank=0, **options):
    models = ppo_models(model, ScalarHeadModel.from_causal_lm(model), rank=rank)
    sizes = {"max_new_tokens": 6, "num_minibatches": 2, **options}
    return PPOModule(**models, tokenizer=tokenizer, optimizer=LEARN, value_optimizer=LEARN, **sizes)


def comparisons():
    ids = torch.arange(3, 35).view(2, 16)
    mask = torch.ones_like(ids, dtype=torch.bool)
    responses = ids.view(2, 4, 4)
    return ComparisonBatch(
        ids[:, :5], mask[:, :5], responses, mask.view(2, 4, 4), torch.tensor([[1, 2, 3, 4]] * 2), ["", ""]
    )


def built(kind, model, tokenizer):
    """The module of that kind, with batches for two steps."""
    if kind == "ppo":
        module = make_ppo(model, tokenizer, ptx_coef=0.5, kl_target=1.0)
        parts = {"prompts": loader(prompts()), "pretrain": loader(texts())}
        return module, CombinedLoader(parts, "min_size")
    if kind == "reward":
        return RewardModule(ScalarHeadModel.from_causal_lm(model), LEARN), loader(comparisons())
    return LanguageModelModule(model, LEARN), loader(texts())


def loader(batch):
    return DataLoader([batch] * 2, batch_size=None)


def fit(module, batches, precision, folder):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, precision=precision, default_root_dir=folder, **quiet)
    trainer.fit(module, batches)
    return trainer


@QUIETLY
@pytest.mark.parametrize("precision", RIGHT)
@pytest.mark.parametrize("kind", ["ppo", "reward", "language model"])
def test_a_precision_that_keeps_32_bits_trains(kind, precision, tiny_gpt2, tiny_tokenizer, tmp_path):
    module, batches = built(kind, tiny_gpt2, tiny_tokenizer)
    before = [parameter.detach().clone() for parameter in tiny_gpt2.parameters()]
    fit(module, batches, precision, tmp_path)
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in learned} == {torch.float64 if precision == "64-true" else torch.float32}
    if kind != "reward":  # which learns on a copy of the body
        moved = [bool((old != new).any()) for old, new in zip(before, tiny_gpt2.parameters(), strict=True)]
        assert all(moved)
    if kind == "ppo":
        exact = {torch.float32, torch.float64}
        assert module.kl_coef.dtype in exact
        assert {average.dtype for average in module.ema.buffers()} <= exact
        assert module.latest.scores.dtype in exact


@QUIETLY
@pytest.mark.parametrize("precision", REFUSED)
@pytest.mark.parametrize("kind", ["ppo", "reward", "language model"])
def test_weights_in_16_bits_are_refused_before_the_first_batch(
    kind, precision, tiny_gpt2, tiny_tokenizer, tmp_path, monkeypatch
):
    module, batches = built(kind, tiny_gpt2, tiny_tokenizer)
    for step in ("rollout", "scores", "loss"):
        monkeypatch.setattr(type(module), step, lambda *_: pytest.fail("work was spent"), raising=False)
    with pytest.raises(RuntimeError, match=r"weight learns and has 16 bits .* Set precision=bf16-mixed"):
        fit(module, batches, precision, tmp_path)


@pytest.mark.parametrize("precision", REFUSED)
def test_fabric_refuses_them_before_the_first_rollout(precision, tiny_gpt2, tiny_tokenizer):
    module = make_ppo(tiny_gpt2, tiny_tokenizer)
    L.Fabric(accelerator="cpu", devices=1, precision=precision).setup(module, *module.build_optimizers())
    with pytest.raises(RuntimeError, match="has 16 bits"):
        module.rollout(prompts())


def test_scores_values_and_the_ranking_loss_have_32_bits_under_autocast(tiny_gpt2, tiny_tokenizer):
    """Against the loss by hand in 64 bits over the module's scores; on the grid of 16 bits it is 1e-3 off."""
    module = RewardModule(ScalarHeadModel.from_causal_lm(tiny_gpt2), LEARN)
    batch = comparisons()
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("ignore")
        scores = module.scores(batch).detach()
        loss = float(ranking_loss(scores, batch.ranks, batch.mask)[0])
        ppo = make_ppo(tiny_gpt2, tiny_tokenizer)
        experience = ppo.score(ppo.rollout(prompts()))
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    by_hand = [torch.log1p(torch.exp(-(row[i] - row[j]))) for row in scores.double() for i, j in pairs]
    assert loss == pytest.approx(float(sum(by_hand) / len(by_hand)), abs=1e-6)
    values = experience.old_values[experience.rollout.response_mask]
    for numbers in (scores, experience.scores, values, experience.old_log_probs[experience.rollout.response_mask]):
        assert numbers.dtype == torch.float32
        assert (numbers != numbers.bfloat16().float()).float().mean() > 0.9


def test_frozen_models_stay_as_they_are_and_those_that_learn_do_not(make_tiny_lm, tiny_tokenizer):
    policy = make_tiny_lm("llama", dtype=torch.bfloat16)
    module = make_ppo(policy, tiny_tokenizer)
    kinds = {name: {p.dtype for p in child.parameters()} for name, child in module.named_children()}
    assert kinds["policy"] == kinds["value"] == {torch.float32}
    assert kinds["reference"] == {torch.bfloat16}
    assert kinds["reward"] == {torch.bfloat16, torch.float32}  # the head
    assert {average.dtype for average in module.ema.buffers()} == {torch.float32}
    module.update(module.score(module.rollout(prompts())), optimizers=module.build_optimizers())
    assert (
        RewardModule(
            ScalarHeadModel.from_causal_lm(make_tiny_lm("llama", dtype=torch.bfloat16)), LEARN
        ).model.backbone.dtype
        == torch.float32
    )


def test_adapters_over_a_frozen_body_in_16_bits_learn_in_32(make_tiny_lm, tiny_tokenizer):
    pytest.importorskip("peft")
    policy = make_tiny_lm("llama", dtype=torch.bfloat16)
    module = make_ppo(policy, tiny_tokenizer, rank=4)
    learned = [*trainable_parameters(module.policy), *trainable_parameters(module.value)]
    assert {parameter.dtype for parameter in learned} == {torch.float32}
    assert {p.dtype for p in policy.parameters() if not p.requires_grad} == {torch.bfloat16}
    before = [parameter.detach().clone() for parameter in learned]
    module.update(module.score(module.rollout(prompts())), optimizers=module.build_optimizers())
    assert not all(torch.equal(old, new) for old, new in zip(before, learned, strict=True))
    assert {average.dtype for average in module.ema.buffers()} == {torch.float32}
