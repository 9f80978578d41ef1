import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from datasets import Dataset, DatasetDict
from jaxtyping import config

from rlhf_lightning.algorithms.batch import ComparisonBatch, LMBatch, PromptBatch
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text

# torch's pytrees, by way of Lightning's CombinedLoader
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

EOS = 1
TEXTS = [Text(f"w{n} w{n + 1}") for n in range(3, 9)]
DEMONSTRATIONS = [Demonstration(f"w{n}", f"w{n + 10}") for n in range(3, 13)]
COMPARISONS = [Comparison(f"w{n}", ["w20", "w21"], [1, 2], source="s") for n in range(3, 8)]
PROMPTS = [Prompt(f"w{n}") for n in range(3, 13)]


def ready(*arguments, **options):
    module = RLHFDataModule(*arguments, **options)
    module.setup("fit")
    return module


def train_rows(module):
    """Token ids of one pass, batch by batch."""
    return [batch.input_ids.tolist() for batch in module.train_dataloader()]


def test_pretrain(tiny_tokenizer):
    module = ready("pretrain", tiny_tokenizer, TEXTS, TEXTS[:1], batch_size=2, block_size=6)
    loader = module.train_dataloader()
    rows = [row for batch in loader for row in batch.input_ids.tolist()]
    assert len(loader) == 2
    assert sorted(rows) == [[3, 4, EOS, 4, 5, EOS], [5, 6, EOS, 6, 7, EOS], [7, 8, EOS, 8, 9, EOS]]
    (batch,) = module.val_dataloader()
    assert isinstance(batch, LMBatch)
    assert batch.input_ids.tolist() == [[3, 4, EOS]]
    assert batch.loss_mask.tolist() == [[False, True, True]]


def test_sft_from_a_file(tiny_tokenizer, tmp_path):
    path = tmp_path / "demonstrations.jsonl"
    path.write_text(json.dumps({"prompt": "w3 w4", "response": "w5"}) + "\n")
    module = ready("sft", tiny_tokenizer, str(path), prompt_template="{prompt} w30")
    (batch,) = module.train_dataloader()
    assert batch.input_ids.tolist() == [[3, 4, 30, 5, EOS]]
    assert batch.loss_mask.tolist() == [[False, False, False, True, True]]
    assert module.val_dataloader() == []


def test_reward(tiny_tokenizer):
    module = ready("reward", tiny_tokenizer, COMPARISONS, COMPARISONS[:3], batch_size=2)
    train = list(module.train_dataloader())
    assert sorted(row for batch in train for row in batch.prompt_ids.flatten().tolist()) == [3, 4, 5, 6, 7]
    validation = list(module.val_dataloader())
    assert all(isinstance(batch, ComparisonBatch) for batch in (*train, *validation))
    assert [batch.prompt_ids.tolist() for batch in validation] == [[[3], [4]], [[5]]]
    assert validation[1].response_ids.tolist() == [[[20, EOS], [21, EOS]]]
    assert validation[1].groups == ["s"]


def test_ppo_without_text(tiny_tokenizer):
    module = ready(
        "ppo", tiny_tokenizer, [*PROMPTS, Prompt("w3 w3 w3")], PROMPTS[:1], batch_size=4, max_prompt_tokens=2
    )
    batches = [batch for batch, _, _ in module.train_dataloader()]
    assert [list(batch) for batch in batches] == [["prompts"]] * 3
    prompts = [batch["prompts"] for batch in batches]
    assert [len(batch.texts) for batch in prompts] == [4, 4, 2]
    assert sorted(text for batch in prompts for text in batch.texts) == sorted(record.prompt for record in PROMPTS)
    assert all(
        f"w{n + 3}" == text for batch in prompts for n, text in zip(batch.prompt_index, batch.texts, strict=True)
    )
    assert module.dropped == {"prompt over 2 tokens": 1}
    (validation,) = module.val_dataloader()
    assert isinstance(validation, PromptBatch)


@pytest.mark.parametrize(("num_batches", "expected"), [(None, 3), (5, 5)])
def test_ppo_with_text(tiny_tokenizer, num_batches, expected):
    options = {"batch_size": 4, "text": TEXTS, "text_batch_size": 5, "block_size": 3, "num_batches": num_batches}
    module = ready("ppo", tiny_tokenizer, PROMPTS, **options)
    batches = [batch for batch, _, _ in module.train_dataloader()]
    # As many text batches as prompt batches, each of full size: 6 blocks go round.
    assert len(batches) == expected
    assert [batch["pretrain"].input_ids.shape for batch in batches] == [(5, 3)] * expected
    rows = list(itertools.chain(*(batch["pretrain"].input_ids.tolist() for batch in batches)))
    assert len({tuple(row) for row in rows[:6]}) == 6
    assert all(batch["pretrain"].loss_mask.tolist() == [[False, True, True]] * 5 for batch in batches)


@pytest.mark.parametrize(
    ("share", "rows"),
    [(0.0, 0), (0.1, 1), (0.5, 10), (0.75, 30)],  # of 10 demonstrations: 10 * share / (1 - share)
)
def test_text_share(tiny_tokenizer, share, rows):
    module = ready(
        "sft",
        tiny_tokenizer,
        DEMONSTRATIONS,
        text=TEXTS if share else None,
        text_share=share,
        block_size=3,
        batch_size=1,
    )
    seen = [row for (row,) in train_rows(module)]
    assert len(seen) == 10 + rows
    # A row of text is w_n w_{n+1}, a demonstration w_n w_{n+10}.
    assert sum(row[1] == row[0] + 1 for row in seen) == rows


@pytest.mark.parametrize(
    ("task", "records", "text"), [("sft", DEMONSTRATIONS, None), ("ppo", PROMPTS, TEXTS)], ids=["sft", "ppo with text"]
)
def test_a_restored_module_goes_on_exactly(tiny_tokenizer, task, records, text):
    def make():
        options = {"batch_size": 3, "text": text, "text_batch_size": 2, "block_size": 3, "seed": 5}
        return ready(task, tiny_tokenizer, records, **options)

    def content(item):
        if task == "sft":
            return item.input_ids.tolist()
        return item[0]["prompts"].texts, item[0]["pretrain"].input_ids.tolist()

    uninterrupted = make()
    loader = uninterrupted.train_dataloader()
    expected = [content(item) for _ in range(2) for item in loader]
    assert len(expected) == 8
    for stop in (1, 3, 4, 6):
        first = make()
        loader = first.train_dataloader()
        # As the trainer does it: one iterator per epoch.
        count = 0
        while count < stop:
            for _ in loader:
                count += 1
                if count == stop:
                    break
        second = make()
        second.load_state_dict(first.state_dict())
        loader = second.train_dataloader()
        epochs = (content(item) for _ in range(2) for item in loader)
        assert list(itertools.islice(epochs, 8 - stop)) == expected[stop:]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*this fit will run with no optimizer")
def test_epochs_follow_one_another_however_often_lightning_asks_for_the_loader(tiny_tokenizer):
    class Reader(L.LightningModule):
        automatic_optimization = False

        def training_step(self, batch, index):
            rows.append(batch.input_ids.tolist())

        def validation_step(self, batch, index):
            pass

        def configure_optimizers(self):
            return None

    def read(data, **options):
        rows.clear()
        L.Trainer(
            accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, **options,
        ).fit(Reader(), data)  # fmt: skip
        return list(rows)

    def made():
        return RLHFDataModule("sft", tiny_tokenizer, DEMONSTRATIONS, batch_size=3, seed=5)

    rows = []
    data = made()
    expected = read(data)
    assert len(expected) == 16
    assert expected[:4] != expected[4:8]
    assert read(data, reload_dataloaders_every_n_epochs=1) == expected  # a second training begins anew
    assert read(made(), reload_dataloaders_every_n_epochs=1, limit_train_batches=3) == expected[:12]
    assert read(made(), overfit_batches=2) == expected[:2] * 4


def test_setup_reads_once(tiny_tokenizer, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "w3 w4"}\n')
    module = ready("pretrain", tiny_tokenizer, path)
    path.unlink()
    module.setup("fit")
    assert train_rows(module) == [[[3, 4, EOS]]]


def test_the_seed_sets_the_order(tiny_tokenizer):
    orders = [train_rows(ready("sft", tiny_tokenizer, DEMONSTRATIONS, seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_share": 1.0}, r"text_share must be a number in \[0, 1\), got 1.0"),
        ({"text_share": -0.1}, r"text_share must be a number in \[0, 1\), got -0.1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"prompt_template": "x"}, "prompt_template must contain"),
        ({"prompt_template": "{prompt}\\nA:"}, "holds a backslash and an n"),
    ],
)
def test_bad_arguments(tiny_tokenizer, changes, message):
    options = {"task": "sft", "tokenizer": tiny_tokenizer, "train": DEMONSTRATIONS, **changes}
    with pytest.raises(ValueError, match=message):
        RLHFDataModule(**options)


def test_text_that_nothing_learns_from_is_told(tiny_tokenizer):
    module = ready("ppo", tiny_tokenizer, PROMPTS, batch_size=4, text=TEXTS, text_batch_size=2, block_size=3)
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(hparams={"ptx_coef": 0.0}))
    with pytest.warns(UserWarning, match="text is read, and nothing learns from it: give PPOModule a ptx_coef"):
        module.train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": TEXTS}, "text is given, and nothing of it is read: task ppo takes text_batch_size"),
        ({"text_batch_size": 2}, "there is no text to mix in: task ppo takes text_batch_size, and text beside it"),
    ],
)
def test_text_that_is_not_read_is_told(tiny_tokenizer, options, message):
    with pytest.warns(UserWarning, match=message):
        ready("ppo", tiny_tokenizer, PROMPTS, batch_size=4, **options)


def test_a_process_without_prompts_is_refused_before_the_first_step(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("rlhf_lightning.data.datamodule.world_size", lambda: 2)
    with pytest.raises(
        ValueError, match=r"a batch of 1 prompts leaves one of 2 processes without any \(train has 10, "
    ):
        ready("ppo", tiny_tokenizer, PROMPTS, batch_size=9).train_dataloader()
    ready("ppo", tiny_tokenizer, PROMPTS, batch_size=9, num_batches=2).train_dataloader()
    ready("sft", tiny_tokenizer, DEMONSTRATIONS, batch_size=9).train_dataloader()  # it reads a token instead


def test_an_unknown_task(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # it would see the unknown word first
    with pytest.raises(ValueError, match="task must be one of pretrain, sft, reward, ppo, got 'dpo'"):
        RLHFDataModule("dpo", tiny_tokenizer, DEMONSTRATIONS)


def test_nothing_left_to_train_on(tiny_tokenizer):
    module = RLHFDataModule("sft", tiny_tokenizer, [Demonstration("w3 w4", "w5")], max_prompt_tokens=1)
    with pytest.raises(
        ValueError, match=r"no sft example is left to train on; left out: \{'prompt over 1 tokens': 1\}"
    ):
        module.setup()


def test_records_to_test_on_stand_in_order_and_need_no_others(tiny_tokenizer):
    module = RLHFDataModule("sft", tiny_tokenizer, test=DEMONSTRATIONS, batch_size=4)
    module.setup("test")
    first = [row for batch in module.test_dataloader() for row in batch.input_ids[:, 0].tolist()]
    asked = [text for batch in module.predict_dataloader() for text in batch.texts]
    assert first == list(range(3, 13))
    assert asked == [f"w{n}" for n in range(3, 13)]
    ppo = RLHFDataModule("ppo", tiny_tokenizer, test=PROMPTS, batch_size=4)
    ppo.setup("predict")
    assert [len(batch.texts) for batch in ppo.predict_dataloader()] == [4, 4, 2]


def test_records_without_a_result_are_counted(tiny_tokenizer):
    """Results beside records would be those of others."""
    rows = [Demonstration("w3 w4 w5", "w6"), Demonstration("w3", "w4")]
    for task, test in (("sft", rows), ("ppo", [Prompt(row.prompt) for row in rows])):
        module = RLHFDataModule(task, tiny_tokenizer, test=test, max_prompt_tokens=2)
        module.setup("predict")
        with pytest.warns(UserWarning, match=r"1 of the test records get no result \(prompt over 2 tokens: 1\)"):
            module.predict_dataloader()


@pytest.mark.parametrize("data", [{"prompt": ["w3"]}, DatasetDict({"train": Dataset.from_list([{"prompt": "w3"}])})])
def test_columns_and_splits_are_no_rows(tiny_tokenizer, data):
    with pytest.raises(RecordError, match=r"this is a \w+ with (prompt|train); rows are needed.*data\['train'\]"):
        RLHFDataModule("ppo", tiny_tokenizer, data).setup()


def test_what_there_is_nothing_of_is_named(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"nothing to train on: give RLHFDataModule train=<records>"):
        ready("sft", tiny_tokenizer, test=DEMONSTRATIONS)
    with pytest.raises(ValueError, match=r"nothing to test on: give RLHFDataModule test=<records>"):
        ready("sft", tiny_tokenizer, DEMONSTRATIONS).predict_dataloader()
    module = RLHFDataModule("sft", tiny_tokenizer, test=[Demonstration("w3 w4", "w5")], max_prompt_tokens=1)
    with pytest.raises(ValueError, match=r"no sft example is left to test on; left out: .*over 1 tokens"):
        module.setup("test")


def test_records_of_another_task(tiny_tokenizer):
    with pytest.raises(RecordError, match="record 0 is a Prompt, a Demonstration is needed"):
        ready("sft", tiny_tokenizer, PROMPTS)


@pytest.mark.parametrize("num_batches", [0, -1])
def test_num_batches_is_checked(tiny_tokenizer, num_batches):
    with pytest.raises(ValueError, match="num_batches"):
        RLHFDataModule("sft", tiny_tokenizer, DEMONSTRATIONS, num_batches=num_batches)


@pytest.mark.parametrize("block_size", [0, 1])
def test_block_size_is_checked(tiny_tokenizer, block_size):
    with pytest.raises(ValueError, match="block_size"):
        ready("sft", tiny_tokenizer, DEMONSTRATIONS, text=TEXTS, text_share=0.5, block_size=block_size)


def test_rankings_as_shuffled_pairs(tiny_tokenizer):
    rankings = [Comparison(f"w{n}", ["w20", "w21", "w22"], [1, 2, 2], source="s") for n in range(3, 9)]
    module = ready("reward", tiny_tokenizer, rankings, rankings[:2], batch_size=4, as_pairs=True, seed=3)
    batches = list(module.train_dataloader())
    # Three pairs each, one of them a tie: twelve elements of two responses, the validation as it was.
    assert [tuple(batch.ranks.shape) for batch in batches] == [(4, 2)] * 3
    prompts = [row[-1] for batch in batches for row in batch.prompt_ids.tolist()]
    assert sorted(prompts) == sorted([*range(3, 9)] * 2)
    assert prompts != sorted(prompts)
    assert next(iter(module.val_dataloader())).ranks.shape == (2, 3)


def as_rows(rows: list[dict[str, Any]], form: str) -> Any:
    forms = {"list": list, "tuple": tuple, "generator": iter, "data set": Dataset.from_list}
    return forms[form](rows)


@pytest.mark.parametrize("form", ["list", "tuple", "generator", "data set"])
@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("sft", [{"prompt": "w3 w4", "response": "w5"}, {"prompt": "w6", "response": "w7"}]),
        ("sft", [{"prompt": "w3 w4", "completion": "w5"}, {"prompt": "w6", "completion": "w7"}]),
        ("reward", [{"prompt": "w3", "chosen": "w5", "rejected": "w6"}]),
        ("ppo", [{"prompt": "w3 w4", "answer": "w5"}]),
        ("pretrain", [{"text": "w3 w4 w5 w6 w7 w8"}]),
    ],
)
def test_rows_in_memory_are_read_as_rows_of_a_file(
    task: str, rows: list[dict[str, Any]], form: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = []
    for source in (file, as_rows(rows, form)):
        data = RLHFDataModule(task, tiny_tokenizer, source, block_size=4)
        data.setup()
        examples.append(data.examples["train"])
    assert list(examples[0]) == list(examples[1])
    assert len(examples[0]) >= len(rows)


def test_a_row_in_memory_is_named_by_its_number(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no checker of types
    rows = [{"prompt": "w3", "response": "w5"}] * 3 + [{"prompt": "w3", "response": " "}]
    with pytest.raises(RecordError, match=r"row 3.*'response' is empty"):
        RLHFDataModule("sft", tiny_tokenizer, rows).setup()
    with pytest.raises(RecordError, match=r"record 0 is a str, a Demonstration is needed, or a dict.*to_dict"):
        RLHFDataModule("sft", tiny_tokenizer, ["w3"]).setup()  # type: ignore[list-item]
    with pytest.raises(RecordError, match=r"record 1 is a dict"):
        RLHFDataModule("sft", tiny_tokenizer, [Demonstration("w3", "w5"), rows[0]]).setup()  # type: ignore[list-item]
