"""The options for public sets read rows of the sets' own columns, and the reward model trains on them."""

import gzip
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from public_rows import PUBLIC_SETS

from rlhf_lightning.cli import composed
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.runs.targets import builder
from rlhf_lightning.training.fit import QUIET

REPOSITORY = Path(__file__).parents[2]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
NEEDS_SHARED_DATA = pytest.mark.skipif(
    not SHARED_DATA.exists(), reason="the public data sets are not beside this checkout"
)
RANKED = [name for name, found in PUBLIC_SETS.items() if "comparisons" in found.records]
NOT_SETS = {"files", "jsonl", "real", "sandbox"}


def source(option, root, **overrides):
    """The data source of an option, built as the command line builds it."""
    given = [f"data={option}", *(f"{name}={value}" for name, value in overrides.items())]
    node = composed([*given, "data.root=null" if root is None else f"data.root={root}"])["data"]["source"]
    return builder([])(node)


def write(folder, files):
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
            continue
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        text = (json.dumps(rows) if path.suffix == ".json" else lines).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """The data source of a public set over its rows, made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            write(folder / "set", PUBLIC_SETS[name].files)
            made[name] = source(name, folder / "set", **{"paths.runs": folder / "runs"})
        return made[name]

    return get


def test_every_option_for_a_public_set_has_rows():
    options = {path.stem for path in (REPOSITORY / "conf" / "data").glob("*.yaml")}
    assert options - NOT_SETS == PUBLIC_SETS.keys()


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_records(read, name):
    data, expected = read(name), PUBLIC_SETS[name]
    for kind, splits in expected.records.items():
        for split in ("train", "validation", "test"):
            assert data.records(kind, split) == splits.get(split)
    assert sum(len(problems) for problems in data.malformed.values()) == expected.malformed
    kind = "comparisons" if name in RANKED else "demonstrations"
    records = expected.records[kind]["train"]
    prompts = data.records("prompts", "train")
    prompts = [replace(prompt, fields=None) for prompt in prompts]
    assert prompts[: len(records)] == [Prompt(record.prompt, source=record.source) for record in records]
    # The prompt of a row whose response is missing is sound.
    assert len(prompts) - len(records) == (1 if name in ("ultrafeedback", "alpaca") else 0)
    assert data.records("text", "train") is None


@pytest.mark.parametrize("name", RANKED)
def test_the_best_response_is_the_demonstration(read, name):
    expected = [
        Demonstration(record.prompt, record.completions[record.ranks.index(1)], source=record.source)
        for record in PUBLIC_SETS[name].records["comparisons"]["train"]
    ]
    assert read(name).records("demonstrations", "train") == expected


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_without_a_folder_the_hub_is_asked(name):
    data = source(name, None)
    sources = [listed for splits in data.files.values() for found in splits.values() for listed in found]
    assert {listed["path"].count("/") for listed in sources} == {1}
    assert not any(Path(listed["path"]).exists() for listed in sources)


# Training


@pytest.fixture(scope="module")
def characters():
    """A tokenizer with a token for each character, and a chat template."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "<eos>", "<unk>", "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(WordLevel({letter: number for number, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    return fast


@pytest.fixture
def reward(make_tiny_lm):
    model = ScalarHeadModel.from_causal_lm(make_tiny_lm("gpt2", vocab_size=99, n_positions=256))
    return RewardModule(model, partial(torch.optim.SGD, lr=0.1))


def score(model, prompt, response):
    """Of one response in a row of its own."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        return float(model(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1])[None])[0, -1])


@pytest.mark.filterwarnings(*(f"ignore:{message}" for message in QUIET))
@pytest.mark.parametrize("name", RANKED)
def test_the_reward_model_trains_on_it(read, name, characters, reward):
    records = read(name).records("comparisons", "train")
    data = RLHFDataModule("reward", characters, records, batch_size=len(records))
    data.setup()
    (batch,) = list(data.train_dataloader())
    untied = [record for record in records if len(set(record.ranks)) > 1]
    assert data.dropped == ({"all responses tied": 1} if name == "helpsteer2" else {})
    assert sorted(batch.mask.sum(1).tolist()) == sorted(len(record.completions) for record in untied)
    # Equation 1 of the paper, pair by pair, each response on its own.
    losses = []
    for example in data.examples["train"]:
        scores = [score(reward.model, example.prompt_ids, ids) for ids in example.response_ids]
        pairs = [(a, b) for a in range(len(scores)) for b in range(len(scores)) if example.ranks[a] < example.ranks[b]]
        losses.append(sum(math.log(1 + math.exp(scores[b] - scores[a])) for a, b in pairs) / len(pairs))
        if len(scores) == 2:
            better, worse = sorted(range(2), key=lambda place: example.ranks[place])
            margin = torch.tensor(scores[better] - scores[worse], dtype=torch.float64)
            assert losses[-1] == pytest.approx(-math.log(torch.sigmoid(margin)), abs=1e-6)
    assert float(reward.loss(batch)[0].detach()) == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    before = reward.model.head.weight.detach().clone()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet)
    trainer.fit(reward, RLHFDataModule("reward", characters, records, batch_size=len(records)))
    assert float((reward.model.head.weight.detach() - before).abs().max()) > 1e-4


# The real files, where they are


def linked(folder, **files):
    folder.mkdir()
    for name, file in files.items():
        (folder / f"{name}.jsonl.gz").symlink_to(SHARED_DATA / file)
    return folder


@NEEDS_SHARED_DATA
def test_real_pairs_of_dialogues(tmp_path):
    files = {split: f"pairwise/hh_rlhf_harmless.{split}.jsonl.gz" for split in ("train", "test")}
    data = source("hh_rlhf", linked(tmp_path / "set", **files), **{"paths.runs": tmp_path})
    train, test = data.records("comparisons", "train"), data.records("comparisons", "test")
    malformed = {Path(file).name: len(problems) for file, problems in data.malformed.items()}
    assert len(train) + malformed["comparisons.train.jsonl"] == 1842
    assert len(test) + malformed.get("comparisons.test.jsonl", 0) == 231
    # The prompts that were cut out when the files were made.
    with gzip.open(SHARED_DATA / files["train"], "rt", encoding="utf-8") as lines:
        prompts = [row["prompt"] for row in map(json.loads, lines) if row["prompt"]]
    assert {record.prompt for record in train} <= set(prompts)
    assert (len(prompts), len(train)) == (1837, 1834)  # three have an empty reply


@NEEDS_SHARED_DATA
def test_real_demonstrations(tmp_path):
    data = source("alpaca", linked(tmp_path / "set", train="demos/demonstrations.train.jsonl.gz"))
    assert len(data.records("demonstrations", "train")) == 9356


@NEEDS_SHARED_DATA
@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("kwise/alpaca_eval_gpt4.train", 2544),
        ("kwise/tulu_bon_gpt4.train", 623),
        ("kwise/summaries_human.train", 210),
        ("kwise/dialogue_human.train", 51),
        ("pairwise/alpaca_eval_gpt4_pairs.test", 714),
    ],
)
def test_real_rankings_need_no_mapping(file, rows):
    data = source("files", SHARED_DATA, **{"data.source.files.comparisons.train": f"{file}.jsonl.gz"})
    records = data.records("comparisons", "train")
    assert len(records) == rows
    assert all(isinstance(record, Comparison) for record in records)


@NEEDS_SHARED_DATA
def test_the_mapping_of_the_public_data(tmp_path):
    data = source("real", SHARED_DATA, **{"paths.runs": tmp_path})
    assert len(data.records("demonstrations", "train")) == 9356
    assert data.malformed == {}
    comparisons = data.records("comparisons", "train")
    assert len(comparisons) == 3428  # 2544 + 623 + 210 + 51
    assert {record.source for record in comparisons} == {
        "alpaca_eval_gpt4", "tulu_bon_gpt4", "summaries_human", "dialogue_human"
    }  # fmt: skip
    pairs = data.records("judge_comparisons", "train")
    assert len(pairs) == 2324
    assert {tuple(record.ranks) for record in pairs} == {(1, 2), (2, 1), (1, 1)}
    assert [len(problems) for problems in data.malformed.values()] == [52]
    assert len(data.records("prompts", "train")) == 5867
    assert len(data.records("text", "train")) == 3285


# One's own files in the formats of TRL, by the option for one's own files as it is

USER = {"role": "user", "content": "What colour is the sea?"}
TEXTS, MESSAGES = (
    Comparison("The sea is", [" blue.", " red."], [1, 2]),
    Comparison([USER], ["Blue.", "Red."], [1, 2]),
)
BLUE, RED = {"role": "assistant", "content": "Blue."}, {"role": "assistant", "content": "Red."}


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("prompts", {"prompt": "The sea is"}, Prompt("The sea is")),
        ("prompts", {"prompt": [USER]}, Prompt([USER])),
        ("demonstrations", {"prompt": "The sea is", "completion": " blue."}, Demonstration("The sea is", " blue.")),
        ("demonstrations", {"prompt": [USER], "completion": [BLUE]}, Demonstration([USER], "Blue.")),
        ("demonstrations", {"messages": [USER, BLUE]}, Demonstration([USER], "Blue.")),
        ("comparisons", {"prompt": "The sea is", "chosen": " blue.", "rejected": " red."}, TEXTS),
        ("comparisons", {"chosen": "The sea is blue.", "rejected": "The sea is red."}, TEXTS),
        ("comparisons", {"prompt": [USER], "chosen": [BLUE], "rejected": [RED]}, MESSAGES),
        ("comparisons", {"chosen": [USER, BLUE], "rejected": [USER, RED]}, MESSAGES),
    ],
)
def test_formats_of_trl(tmp_path, kind, row, expected):
    files = ["demonstrations.train.jsonl", "prompts.train.jsonl", "prompts.test.jsonl", "comparisons.jsonl"]
    write(tmp_path, {name: [row] for name in files})
    data = source("jsonl", tmp_path, **{"data.source.files.comparisons.train": "comparisons.jsonl"})
    assert data.records(kind, "train") == [expected]
