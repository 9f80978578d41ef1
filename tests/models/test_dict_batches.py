"""Batches of the collators of transformers and TRL, against transformers' own loss and against records of ours."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq

from rlhf_lightning.data.examples import ComparisonExample
from rlhf_lightning.data.loader import collate_comparisons
from rlhf_lightning.models.dict_batches import comparison_batch, lm_batch, ppo_batch
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule

SGD = partial(torch.optim.SGD, lr=0.1)
ROWS = [
    {"input_ids": [5, 6, 7, 8, 1], "labels": [-100, -100, 7, 8, 1]},
    {"input_ids": [9, 10, 1], "labels": [-100, 10, 1]},
]


def collated(tokenizer: Any, side: str = "right") -> Any:
    tokenizer.padding_side = side
    return DataCollatorForSeq2Seq(tokenizer)([dict(row) for row in ROWS])


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_the_loss_of_a_collators_batch_is_that_of_transformers(tiny_lm: Any, tiny_tokenizer: Any, step: str) -> None:
    batch = collated(tiny_tokenizer)
    module = LanguageModelModule(tiny_lm, SGD)
    logged: dict[str, Tensor] = {}
    module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    getattr(module, step)(batch, 0)
    expected = tiny_lm(**batch).loss
    torch.testing.assert_close(logged["train/loss" if "train" in step else "validation/loss"], expected)


def test_without_a_mask_every_token_is_real(tiny_lm: Any) -> None:
    """As in transformers: padding on the right, which counts for nothing, changes nothing."""
    labels = torch.tensor([[-100, 6, 7, 8], [-100, 9, -100, -100]])
    plain = {"input_ids": torch.tensor([[5, 6, 7, 8], [8, 9, 0, 0]]), "labels": labels}
    loss, _ = LanguageModelModule(tiny_lm, SGD).loss(lm_batch(plain))
    torch.testing.assert_close(loss, tiny_lm(**plain).loss)


def test_a_left_padded_batch_gives_the_same_loss(tiny_lm: Any, tiny_tokenizer: Any) -> None:
    module = LanguageModelModule(tiny_lm, SGD)
    losses = [module.loss(lm_batch(collated(tiny_tokenizer, side)))[0] for side in ("left", "right")]
    torch.testing.assert_close(*losses)


def test_the_first_token_behind_padding_is_no_target(tiny_tokenizer: Any) -> None:
    batch = collated(tiny_tokenizer, "left")
    batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    assert lm_batch(batch).loss_mask.tolist() == [[True] * 5, [False, False, False, True, True]]


IDS = torch.tensor([[5, 6, 7]])
REAL = torch.ones_like(IDS)
WHOLE = {"input_ids": IDS, "attention_mask": REAL, "labels": IDS}


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({"input_ids": IDS, "attention_mask": REAL}, r"lacks labels"),
        ({"input_ids": IDS, "attention_mask": None, "labels": IDS}, r"has attention_mask, a NoneType"),
        ({**WHOLE, "position_ids": IDS}, r"has position_ids, unused"),
        ({**WHOLE, "labels": IDS.tolist()}, r"which has labels, a list\."),
        ({name: ids[0] for name, ids in WHOLE.items()}, r"rows by tokens are needed.*input_ids \(3,\)"),
        ({name: ids[:0] for name, ids in WHOLE.items()}, r"at least one row.*labels \(0, 3\)"),
        ({**WHOLE, "attention_mask": REAL[:, :2]}, r"one mark of padding for each token; there is.*\(1, 2\)"),
        ({**WHOLE, "labels": IDS[:, :2]}, r"one label belongs to each token"),
        ({**WHOLE, "labels": torch.full_like(IDS, -100)}, r"labels count no token: every one is -100"),
        ({**WHOLE, "labels": IDS.roll(-1, 1)}, r"labels are other tokens than input_ids.*not shifted"),
        ({**WHOLE, "attention_mask": torch.tensor([[1, 1, 0]])}, r"labels count tokens that attention_mask hides"),
        ({"input_ids": [[5]], "labels": [[5]]}, r"which has input_ids, a list, labels, a list\. RLHFDataModule makes"),
        ([IDS, REAL], r"a batch here is a LMBatch, or a dict of tensors.*this is a list"),
    ],
)
def test_what_a_batch_lacks_is_named(tiny_gpt2: Any, batch: Any, sentence: str) -> None:
    module: Any = LanguageModelModule(tiny_gpt2, SGD)
    with pytest.raises(ValueError, match=sentence):
        lm_batch(batch)
    if isinstance(batch, dict):
        with pytest.raises(ValueError, match=sentence):
            module.training_step(batch, 0)


CHOSEN, REJECTED = [[3, 4, 5, 1], [9, 8]], [[3, 4, 6, 7, 1], [9, 5, 1]]


def pairs(form: str) -> dict[str, Tensor]:
    batch = {}
    for name, rows in (("chosen", CHOSEN), ("rejected", REJECTED)):
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        batch |= {form.format("input_ids", name): ids, form.format("attention_mask", name): mask}
    return batch


@pytest.mark.parametrize("form", ["{0}_{1}", "{1}_{0}"])
def test_pairs_are_the_rankings_that_they_are(tiny_gpt2: Any, form: str) -> None:
    module = RewardModule(ScalarHeadModel.from_causal_lm(tiny_gpt2), SGD)
    examples = [
        ComparisonExample([3, 4], [[5, 1], [6, 7, 1]], [1, 2], ""),
        ComparisonExample([9], [[8], [5, 1]], [1, 2], ""),
    ]
    ours, theirs = collate_comparisons(examples, 0), comparison_batch(pairs(form))
    assert [values.tolist() for values in ours[:5]] == [values.tolist() for values in theirs[:5]]
    scores = module.scores(theirs)
    for row, rows in enumerate(zip(CHOSEN, REJECTED, strict=True)):
        for column, ids in enumerate(rows):
            torch.testing.assert_close(scores[row, column], module.model(torch.tensor([ids]))[0, -1])
    logged: dict[str, Tensor] = {}
    module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.training_step(pairs(form), 0)
    torch.testing.assert_close(logged["train/loss"], -(scores[:, 0] - scores[:, 1]).sigmoid().log().mean())


def test_answers_without_a_common_beginning_and_equal_ones() -> None:
    ids, other = torch.tensor([[5, 6]]), torch.tensor([[7, 6]])
    batch = {"input_ids_chosen": ids, "attention_mask_chosen": torch.ones_like(ids)}
    apart = comparison_batch({**batch, "input_ids_rejected": other, "attention_mask_rejected": torch.ones_like(ids)})
    assert not bool(apart.prompt_mask.any())
    assert apart.response_ids.tolist() == [[[5, 6], [7, 6]]]
    equal = comparison_batch({**batch, "input_ids_rejected": ids, "attention_mask_rejected": torch.ones_like(ids)})
    assert (equal.prompt_ids.tolist(), equal.response_ids.tolist()) == ([[5]], [[[6], [6]]])


def test_what_a_pair_lacks_is_named(tiny_gpt2: Any) -> None:
    module: Any = RewardModule(ScalarHeadModel.from_causal_lm(tiny_gpt2), SGD)
    batch = pairs("{0}_{1}")
    with pytest.raises(ValueError, match=r"ComparisonBatch, or a dict of tensors.*lacks input_ids_chosen, "):
        module.training_step(WHOLE, 0)
    with pytest.raises(ValueError, match=r"has margin, unused"):
        module.validation_step({**batch, "margin": torch.ones(2)}, 0)
    with pytest.raises(ValueError, match=r"at least one row, and one mark.*input_ids_rejected \(1, 5\)"):
        comparison_batch({**batch, **{name: ids[:1] for name, ids in batch.items() if "rejected" in name}})
    with pytest.raises(ValueError, match=r"row 1 of the batch has no token"):
        comparison_batch({**batch, "attention_mask_chosen": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])})


@pytest.mark.parametrize(
    "batch", [{"input_ids": IDS}, {"prompts": {"input_ids": IDS}}, {"prompts": "x", "more": 1}, IDS]
)
def test_ppo_names_what_it_takes(tiny_gpt2: Any, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"PPO takes \{'prompts': PromptBatch, 'pretrain': LMBatch\}.*RLHFDataModule"):
        PPOModule.training_step(object.__new__(PPOModule), batch, 0)


def test_ppo_reads_text_of_a_collator(tiny_tokenizer: Any) -> None:
    prompts, text = ppo_batch({"prompts": "any", "pretrain": collated(tiny_tokenizer)})
    assert (prompts, text.loss_mask.sum()) == ("any", 5)
