"""How much text is mixed into demonstrations, as a share of the rows or of the tokens in the loss."""

import hashlib

import pytest

from rlhf_lightning.cli import composed
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.examples import LMExample
from rlhf_lightning.data.loader import collate_lm
from rlhf_lightning.data.records import Demonstration, Text
from rlhf_lightning.data.text_share import loss_tokens, mixed_text
from rlhf_lightning.runs.targets import builder

DEMONSTRATIONS = [Demonstration(f"w{n} w{n}", f"w{n + 10}") for n in range(3, 13)]
"""Each counts with 2 tokens: a word and the end."""
LONG = [Text(" ".join(f"w{n}" for n in range(3, 32)))] * 4
"""With their ends 120 tokens: 12 blocks of 10, of which 9 count."""


def ready(tokenizer, **options):
    data = RLHFDataModule("sft", tokenizer, DEMONSTRATIONS, text=LONG, block_size=10, batch_size=4, **options)
    data.setup("fit")
    return data


def test_the_sealed_world_mixes_as_it_did():
    """Rows and order of ppo_init's first two epochs, bit for bit as they were when rows were all that there was."""
    config = composed(["data.source.demonstrations=60", "data.source.text=40", "data.source.prompts=20"])
    build = builder([])
    source = build(config["data"]["source"])
    options = {name: value for name, value in config["ppo_init"]["data"].items() if name != "max_validation"}
    data = RLHFDataModule(
        "sft",
        build(config["model"]["tokenizer"]),
        source.records("demonstrations", "train"),
        text=source.records("text", "train"),
        seed=config["seed"],
        **config["data"]["lengths"],
        **options,
    )
    data.setup("fit")
    loader = data.train_dataloader()
    rows = [field.tolist() for _ in range(2) for batch in loader for field in batch]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == "f422847e1ff1bc45"


@pytest.mark.parametrize(
    ("share", "rows", "row_share", "token_share"),
    [
        # 10 demonstrations have 20 tokens in the loss, a row of text 9: for half of all, 20 / 9 = 2.2 rows.
        (0.5, 2, 2 / 12, 18 / 38),
        # 20 * 3 = 60 tokens are 6.7 rows.
        (0.75, 7, 7 / 17, 63 / 83),
        # 20 * 9 = 180 are 20 rows: the 12 that there are go round.
        (0.9, 20, 20 / 30, 180 / 200),
        (0.2, 1, 1 / 11, 9 / 29),
    ],
)
def test_a_share_of_the_tokens_in_the_loss(tiny_tokenizer, share, rows, row_share, token_share):
    data = ready(tiny_tokenizer, text_share=share, text_share_of="tokens")
    assert len(data.examples["train"]) == 10 + rows
    assert data.text_shares == pytest.approx(
        {"train/text_row_share": row_share, "train/text_token_share": token_share}, abs=1e-12
    )
    # What the loss sees, token by token.
    batches = list(data.train_dataloader())
    counted = sum(int(batch.loss_mask[:, 1:].sum()) for batch in batches)
    assert counted == 20 + 9 * rows


def test_a_share_of_the_rows_says_the_share_of_the_tokens(tiny_tokenizer):
    data = ready(tiny_tokenizer, text_share=0.5)
    # 10 rows of text with 9 tokens in the loss each, beside 20 tokens of demonstrations.
    assert data.text_shares == {"train/text_row_share": 0.5, "train/text_token_share": pytest.approx(90 / 110)}
    with pytest.warns(UserWarning, match="nothing of it is read"):
        assert ready(tiny_tokenizer).text_shares == {}


@pytest.mark.parametrize(
    ("example", "tokens"),
    [
        (LMExample([3, 4, 5], loss_start=1), 2),
        (LMExample([3, 4, 5], loss_start=0), 2),  # nothing tells the first token
        (LMExample([3, 4, 5, 6, 7, 8], loss_start=5, earlier=[(0, 2), (3, 4)]), 3),
        (LMExample([3], loss_start=1), 0),
    ],
)
def test_tokens_are_those_of_the_loss(example, tokens):
    assert loss_tokens(example) == tokens == int(collate_lm([example], 0).loss_mask[:, 1:].sum())


def test_rows_that_the_loss_does_not_see_are_none_of_the_share():
    """They would go round for ever."""
    shown, unseen, text = (LMExample(ids, loss_start=1) for ids in ([3, 4, 5], [3], [3, 4]))
    with pytest.raises(ValueError, match="no row of the text has a token in the loss"):
        mixed_text([shown], [unseen], 0.5, "tokens")
    assert mixed_text([shown], [unseen, text], 0.5, "tokens") == [text, text]


def test_less_than_half_a_row_is_refused(tiny_tokenizer):
    # 20 tokens * 0.1 / 0.9 = 2.2, and half a row is 4.5.
    with pytest.raises(ValueError, match=r"text_share=0.1 of the tokens would be 2 tokens .* row of 9. Raise text_sha"):
        ready(tiny_tokenizer, text_share=0.1, text_share_of="tokens")
    with pytest.raises(ValueError, match="text_share_of must be"):
        ready(tiny_tokenizer, text_share=0.1, text_share_of="bytes")
