"""Any module that maps ids and mask to logits, or to a number per token, and has nothing else of transformers."""

import copy
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import LMBatch, PromptBatch
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.examples import ComparisonExample, PromptExample
from rlhf_lightning.data.loader import collate_comparisons, collate_prompts
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt
from rlhf_lightning.generation.sample import SamplingOptions, sample_responses
from rlhf_lightning.models.forward import token_logits, token_scores
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.padding import position_ids
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*smaller than the logging interval.*")
ADAM = partial(torch.optim.Adam, lr=1e-2)
WIDTH, WORDS = 16, 40


class Recurrent(nn.Module):
    """An LSTM, which takes padding in front for tokens; a dict with logits."""

    def __init__(self, outputs: int = WORDS) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, outputs)
        self.body = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.shapes: list[int] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        assert attention_mask.dtype == torch.bool
        assert attention_mask.shape == input_ids.shape
        self.shapes.append(input_ids.shape[1])
        return {"logits": self.head(self.body(self.table(input_ids))[0])}


class Absolute(nn.Module):
    """A transformer of torch's with learned positions that it counts itself, by columns; an object with logits."""

    def __init__(self, outputs: int = WORDS) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(64, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.1, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        width = input_ids.shape[1]
        hidden = self.table(input_ids) + self.places(torch.arange(width))
        future = torch.ones(width, width, dtype=torch.bool).triu(1)
        return SimpleNamespace(logits=self.head(self.body(hidden, mask=future, src_key_padding_mask=~attention_mask)))


def fresh(kind: type[nn.Module], outputs: int = WORDS, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(outputs)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)  # wide, or a wrong row would go unseen
    return model.eval()


def trainer_of(folder: Any, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu", max_epochs=1, enable_checkpointing=False, default_root_dir=folder, **quiet, **options
    )


kinds = pytest.mark.parametrize("kind", [Recurrent, Absolute])
ROWS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]


def padded_rows(side: str) -> tuple[Tensor, Tensor]:
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.bool)
    for number, row in enumerate(ROWS):
        place = slice(7 - len(row), 7) if side == "left" else slice(0, len(row))
        ids[number, place], mask[number, place] = torch.tensor(row), True
    return ids, mask


@kinds
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(kind: type[nn.Module], side: str) -> None:
    model = fresh(kind)
    ids, mask = padded_rows(side)
    counts = mask & (mask.long().cumsum(1) > 1)
    found = causal_log_probs(model, ids, mask, counts)
    logits = token_logits(model, ids, mask, position_ids(mask))
    for number, row in enumerate(ROWS):
        alone = model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool))
        alone = (alone["logits"] if isinstance(alone, dict) else alone.logits)[0]
        torch.testing.assert_close(logits[number][mask[number]], alone)
        expected = alone.log_softmax(1)[range(len(row) - 1), row[1:]]
        torch.testing.assert_close(found[number][counts[number, 1:]], expected)


def few_prompts(rows: Any = range(3)) -> PromptBatch:
    return collate_prompts([PromptExample(ROWS[row], row, f"p{row}") for row in rows], 0)


@kinds
def test_a_response_does_not_depend_on_the_rows_beside_it(kind: type[nn.Module]) -> None:
    model, options = fresh(kind), SamplingOptions(6, 1, 0)
    together = sample_responses(model, few_prompts(), options, (3,))
    for row in range(3):
        alone = sample_responses(model, few_prompts([row]), options, (3,))
        mask = together.response_mask[row]
        assert together.response_ids[row][mask].tolist() == alone.response_ids[0][alone.response_mask[0]].tolist()
        torch.testing.assert_close(together.log_probs[row][mask], alone.log_probs[0][alone.response_mask[0]])


@kinds
def test_it_is_fine_tuned(kind: type[nn.Module], tiny_tokenizer: Any, tmp_path: Any) -> None:
    records = [Demonstration(f"w{n}", f"w{n + 10}") for n in range(5, 25)]
    data = RLHFDataModule("sft", tiny_tokenizer, records, records, batch_size=5, num_batches=60)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LanguageModelModule(kind(), ADAM)
        trainer = trainer_of(tmp_path)
        trainer.fit(module, data)
    assert float(trainer.callback_metrics["validation/loss"]) < 1.0  # from more than log(40) = 3.7


class Ratios(L.Callback):
    def __init__(self) -> None:
        self.deviations: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.deviations.append(float(trainer.callback_metrics["update/first_ratio_deviation"]))


@kinds
def test_ppo_runs_and_its_first_ratio_is_one(kind: type[nn.Module], tiny_tokenizer: Any, tmp_path: Any) -> None:
    policy, scorer = fresh(kind), fresh(kind, outputs=1, seed=1)
    before = copy.deepcopy(policy.state_dict())
    models = {"policy": policy, "reference": copy.deepcopy(policy), "reward": scorer, "value": copy.deepcopy(scorer)}
    module = PPOModule(
        **models, tokenizer=tiny_tokenizer, optimizer=ADAM, value_optimizer=ADAM, max_new_tokens=5, num_minibatches=2
    )
    prompts = [Prompt(" ".join(f"w{n + k}" for k in range(1 + n % 3))) for n in range(5, 21)]
    seen = Ratios()
    trainer_of(tmp_path, callbacks=[seen]).fit(
        module, RLHFDataModule("ppo", tiny_tokenizer, prompts, batch_size=8, num_batches=3)
    )
    assert seen.deviations == [0.0, 0.0, 0.0]
    assert int(module.iteration) == 3
    assert any(not torch.equal(before[name], value) for name, value in policy.state_dict().items())
    # Each score is the scorer's number at the last token of the row alone.
    latest = module.latest
    assert latest is not None
    rollout = latest.rollout
    for row in range(8):
        ids = torch.cat([rollout.prompts.prompt_ids[row][rollout.prompts.prompt_mask[row]],
                         rollout.response_ids[row][rollout.response_mask[row]]])[None]  # fmt: skip
        output = scorer(ids, torch.ones_like(ids, dtype=torch.bool))
        number = (output["logits"] if isinstance(output, dict) else output.logits)[0, -1, 0]
        torch.testing.assert_close(latest.scores[row], number.detach(), atol=1e-5, rtol=1e-5)


@kinds
def test_a_reward_model_without_a_backbone(kind: type[nn.Module], tiny_tokenizer: Any, tmp_path: Any) -> None:
    module = RewardModule(fresh(kind, outputs=1), ADAM)
    examples = [
        ComparisonExample([3, 4], [[5, 1], [6, 7, 1]], [1, 2], ""),
        ComparisonExample([9], [[8], [5, 1]], [2, 1], ""),
    ]
    batch = collate_comparisons(examples, 0)
    with pytest.warns(UserWarning, match=rf"{kind.__name__} does not support a shared prefix .*no backbone"):
        scores = module.scores(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(module.scores(batch), scores)  # said once
    for row, example in enumerate(examples):
        for column, response in enumerate(example.response_ids):
            ids = torch.tensor([example.prompt_ids + response])
            number = token_scores(module.model, ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
            torch.testing.assert_close(scores[row, column], number)
    records = [Comparison(f"w{n}", ["w30 w31", "w32"], [1 + n % 2, 2 - n % 2]) for n in range(5, 25)]
    trainer = trainer_of(tmp_path)
    trainer.fit(module, RLHFDataModule("reward", tiny_tokenizer, records, records, batch_size=5, num_batches=40))
    assert float(trainer.callback_metrics["validation/accuracy"]) > 0.9


class Keywords(nn.Module):
    """Open to any keyword, as wrappers of transformers models are."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}

    def forward(self, input_ids: Tensor, **options: Any) -> Tensor:
        self.given = options
        return nn.functional.one_hot(input_ids, WORDS).float()


def test_a_keyword_is_passed_where_there_is_one() -> None:
    ids, mask = padded_rows("right")
    wrapper = Keywords()
    token_logits(wrapper, ids, mask, position_ids(mask))
    assert wrapper.given.keys() == {"attention_mask", "position_ids", "use_cache"}
    assert torch.equal(wrapper.given["position_ids"], position_ids(mask))
    plain = nn.Sequential(nn.Embedding(WORDS, 4), nn.Linear(4, WORDS))  # neither a mask nor the name input_ids
    torch.testing.assert_close(token_logits(plain, ids, mask, position_ids(mask)), plain(ids))


class Renamed(Recurrent):
    """Names of its own, and the ids not even first."""

    forward_names: ClassVar = {"input_ids": "tokens", "attention_mask": "real", "position_ids": "places"}

    def forward(self, real: Tensor, *, tokens: Tensor, places: Tensor) -> dict[str, Tensor]:
        assert torch.equal(places[real], (real.cumsum(1) - 1)[real])
        return super().forward(tokens, real)


def test_other_names_are_said_by_the_module() -> None:
    ids, mask = padded_rows("left")
    expected = token_logits(fresh(Recurrent), ids, mask, position_ids(mask))
    model = fresh(Renamed)
    found = token_logits(copy.deepcopy(model), *padded_rows("left"), position_ids(mask))
    # It names positions, so it gets the rows as they are; an LSTM takes padding in front for tokens.
    assert not torch.allclose(found[1], expected[1], atol=1e-3)
    right, mask = padded_rows("right")
    torch.testing.assert_close(
        token_logits(model, right, mask, position_ids(mask)),
        token_logits(fresh(Recurrent), right, mask, position_ids(mask)),
    )


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            {"mask": "real"},
            r"Renamed\.forward_names has mask: real; it says what forward calls input_ids, attention_mask",
        ),
        ({"attention_mask": "kept"}, r"has attention_mask: kept; .* and forward has places, real, tokens"),
        ({"input_ids": "tokens"}, r"Renamed\.forward needs real, places, which it is not given.*forward_names = "),
    ],
)
def test_names_that_it_does_not_have(names: dict[str, str], sentence: str) -> None:
    model = fresh(Renamed)
    model.forward_names = names
    with pytest.raises(ValueError, match=sentence):
        token_logits(model, *padded_rows("right"), position_ids(padded_rows("right")[1]))


class Unmasked(Recurrent):
    """Its mask has a name of its own, which it does not say."""

    def forward(self, tokens: Tensor, token_mask: Tensor | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        assert token_mask is None
        return super().forward(tokens, torch.ones_like(tokens, dtype=torch.bool))


def test_a_mask_that_is_not_given_is_pointed_out_once() -> None:
    ids, mask = padded_rows("right")
    model = fresh(Unmasked)
    with pytest.warns(UserWarning, match=r"Unmasked\.forward has no attention_mask, .* token_mask .*set forward_names"):
        token_logits(model, ids, mask, position_ids(mask))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_logits(model, ids, mask, position_ids(mask))


class Needy(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor, images: Tensor) -> Tensor:
        return input_ids


def test_what_cannot_be_called_or_read_is_named() -> None:
    ids, mask = padded_rows("right")
    with pytest.raises(ValueError, match=r"Needy\.forward needs images, which it is not given.*default"):
        token_logits(Needy(), ids, mask, position_ids(mask))
    with pytest.raises(ValueError, match=r"Embedding gives \(3, 7, 2\) for \(3, 7\) ids; .* one number per token"):
        token_scores(nn.Embedding(WORDS, 2), ids, mask)
    with pytest.raises(ValueError, match=r"Identity gives \(3, 7\) for \(3, 7\) ids; .* rows x time x vocabulary"):
        token_logits(nn.Identity(), ids, mask, position_ids(mask))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (partial(fresh, Recurrent, 9), r"Recurrent gives 9 logits per token, and token 14 is among the targets"),
        (partial(nn.Embedding, 9, 9), r"Embedding has no row for one .*: rows of 7 tokens, ids up to 14 \(.*\)\. Give"),
    ],
)
def test_a_vocabulary_that_is_too_small_is_named(model: Any, sentence: str) -> None:
    ids, mask = padded_rows("right")
    with pytest.raises(ValueError, match=sentence):
        LanguageModelModule(model(), ADAM).loss(LMBatch(ids, mask, mask))


def test_text_that_stands_behind_padding(make_tiny_lm: Any) -> None:
    """The same loss for a batch of whichever side."""
    losses = []
    for side in ("left", "right"):
        ids, mask = padded_rows(side)
        counts = mask & (mask.long().cumsum(1) > 1)
        losses.append(LanguageModelModule(fresh(Recurrent), ADAM).loss(LMBatch(ids, mask, counts))[0])
    torch.testing.assert_close(*losses)
