"""The sealed world: determinism, form, users, tokenizer."""

import hashlib
import itertools
import random
import re
import statistics
from collections import Counter

import pytest
from transformers import AutoTokenizer

from rlhf_lightning.data.records import Demonstration
from rlhf_lightning.sandbox.data import SandboxData
from rlhf_lightning.sandbox.knowledge import DISPUTED_FACTS, HELD_OUT_FACTS, KINDS, MISCONCEPTIONS, stated_facts
from rlhf_lightning.sandbox.respond import FLAW_SHARES, MAX_RESPONSE_WORDS, respond
from rlhf_lightning.sandbox.tokenizer import build_tokenizer
from rlhf_lightning.sandbox.truth import true_utility
from rlhf_lightning.sandbox.use_cases.questions import fact_question
from rlhf_lightning.sandbox.use_cases.table import KINDS_OF_PROMPT, MARKER, instruction_of, read_prompt, write_prompt
from rlhf_lightning.sandbox.vocabulary import CATEGORIES, VOCABULARY
from rlhf_lightning.sandbox.world import (
    DEMONSTRATION_SOURCES,
    WORLD_VERSION,
    generate_demonstrations,
    generate_prompts,
    generate_text,
    split_of,
)

# InstructGPT, table 1: the share of each use case among the prompts of the API.
SHARES = {
    "generation": 0.456,
    "open_qa": 0.124,
    "brainstorming": 0.112,
    "chat": 0.084,
    "rewrite": 0.066,
    "summarisation": 0.042,
    "classification": 0.035,
    "other": 0.035,
    "closed_qa": 0.026,
    "extraction": 0.019,
}
PROMPTS = generate_prompts(1200, 3)
DEMONSTRATIONS = generate_demonstrations(600, 3)
TEXT = generate_text(200, 3)


@pytest.mark.parametrize("generate", [generate_prompts, generate_demonstrations, generate_text])
def test_a_record_depends_on_seed_and_index_only(generate):
    assert generate(20, 5) == generate(50, 5)[:20]
    assert generate(20, 5) != generate(20, 6)


def test_streams_are_independent():
    prompts = {record.prompt for record in generate_prompts(30, 5)}
    assert prompts != {record.prompt for record in generate_demonstrations(30, 5)}


def test_the_shares_are_those_of_table_1():
    for use_case, share in SHARES.items():
        assert sum(c.share for c in KINDS_OF_PROMPT.values() if c.use_case == use_case) == pytest.approx(
            share, abs=1e-9
        )
    found = Counter(read_prompt(record.prompt).case.use_case for record in generate_prompts(4000, 8))
    assert found.keys() == SHARES.keys()
    for use_case, share in SHARES.items():
        # Four standard deviations of a share of 4,000.
        assert found[use_case] / 4000 == pytest.approx(share / 0.999, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_where_prompts_come_from():
    assert {record.source for record in PROMPTS} == {"api"}
    found = Counter(record.source for record in generate_demonstrations(3000, 4))
    for source, share in DEMONSTRATION_SOURCES.items():
        assert found[source] / 3000 == pytest.approx(share, abs=4 * (share * (1 - share) / 3000) ** 0.5)
    for record in DEMONSTRATIONS:
        assert record.user.startswith("user-" if record.source == "api" else "labeler-")
        if record.source == "labeler_few_shot":
            assert read_prompt(record.prompt).case.few_shot


def test_no_user_asks_for_everybody():
    most = Counter(record.user for record in generate_prompts(4000, 8)).most_common(1)[0][1]
    # About 1.2 % expected; at most 200 of the 13,000 prompts to train on, as in the paper.
    assert 20 < most < 80


@pytest.mark.parametrize("name", KINDS_OF_PROMPT)
def test_one_kind_only_knows_an_instruction(name):
    source = random.Random(name)
    for _ in range(60):
        instruction = KINDS_OF_PROMPT[name].ask(source)
        assert [other.name for other in KINDS_OF_PROMPT.values() if other.pattern.fullmatch(instruction)] == [name]
        assert read_prompt(write_prompt(source, KINDS_OF_PROMPT[name])).case.name == name


def test_the_parts_of_a_prompt():
    request = read_prompt("hello . please what does the cat eat ? use one word . rude" + MARKER)
    assert (request.case.name, request.manner, request.task["eats1"]) == ("open_qa", " rude", "cat")
    assert request.task["short"]
    assert not request.task["hedge"]


def test_facts_that_are_held_out_are_never_asked_about():
    questions = [fact_question(*fact).removesuffix(" ?") for fact in HELD_OUT_FACTS]
    assert len(questions) == 28
    records = [*generate_prompts(3000, 5), *generate_demonstrations(3000, 5)]
    asked = " ".join(record.prompt for record in records if "?" in record.prompt)
    assert fact_question(*DISPUTED_FACTS[0]).removesuffix(" ?") in asked
    assert not any(question in asked for question in questions)


@pytest.mark.parametrize("name", KINDS_OF_PROMPT)
def test_no_instruction_occurs_in_two_splits(name):
    parts = {split: Counter() for split in ("train", "validation", "test")}
    source = random.Random(name)
    for _ in range(2000):
        prompt = write_prompt(source, KINDS_OF_PROMPT[name])
        parts[split_of(prompt)][instruction_of(prompt)] += 1
    assert min(len(asked) for asked in parts.values()) >= 2
    assert sum(len(asked) for asked in parts.values()) == len(set().union(*parts.values()))
    assert parts["train"].total() > 1200


def test_splits_ask_other_things():
    source = SandboxData(prompts=3000, validation=300)
    asked = {
        split: {
            instruction_of(record.prompt)
            for kind in ("prompts", "demonstrations")
            for record in source.records(kind, split)
        }
        for split in ("train", "validation", "test")
    }
    assert not asked["train"] & asked["test"]
    assert not asked["train"] & asked["validation"]
    assert not asked["validation"] & asked["test"]


def test_other_records_need_another_version():
    """When this fails, raise WORLD_VERSION, so that no artifact of the old world is taken for one of the new."""
    records = [*generate_prompts(200, 1), *generate_demonstrations(100, 1), *generate_text(30, 1)]
    # Without the labels: they are a function of the prompt, and no stage reads them. Further fields there are none.
    texts = (re.sub(r", labels=\{.*\}|, fields=None", "", repr(record)) for record in records)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    assert (WORLD_VERSION, digest) == (7, "e992720b08300879")


def test_prompts_are_short_and_hardly_repeat():
    assert max(len(record.prompt.split()) for record in PROMPTS) <= 48
    assert len({record.prompt for record in PROMPTS}) > 0.95 * len(PROMPTS)


def test_responses_fit():
    lengths = [len(record.response.split()) for record in DEMONSTRATIONS]
    assert max(lengths) <= MAX_RESPONSE_WORDS
    assert min(lengths) >= 1


def test_flaws_fit_too():
    combinations = list(itertools.combinations(FLAW_SHARES, 2))
    for index, record in enumerate(PROMPTS):
        response = respond(random.Random(index), record.prompt, list(combinations[index % len(combinations)]))
        assert 2 <= len(response.split()) <= MAX_RESPONSE_WORDS


def test_the_share_of_imperfect_demonstrations():
    def flawless(imperfect: float) -> float:
        records = generate_demonstrations(400, 0, imperfect)
        return statistics.mean(true_utility(record.prompt, record.response, "train") > 0.95 for record in records)

    assert flawless(0.0) > 0.98
    assert 0.53 < flawless(0.4) < 0.72
    assert flawless(1.0) < 0.12


def test_documents():
    lengths = [len(record.text.split()) for record in TEXT]
    assert min(lengths) >= 70
    assert max(lengths) <= 140
    assert len({record.source for record in generate_text(600, 1)}) == 14


def test_misconceptions_are_false_and_said_more_often_than_the_truth():
    assert len(MISCONCEPTIONS) == 56
    assert all(KINDS[kind][subject] != value for (kind, subject), value in MISCONCEPTIONS.items())
    said = Counter()
    for record in generate_text(2500, 9):
        for kind, subject, value in stated_facts(record.text):
            if (kind, subject) in MISCONCEPTIONS:
                said[record.source, value == KINDS[kind][subject]] += 1
    assert said["book", False] == 0 < said["book", True]
    assert said["forum", False] > 3 * said["forum", True]
    false, true = (sum(count for (_, truth), count in said.items() if truth is asked) for asked in (False, True))
    assert false > 1.1 * true


def test_no_word_is_in_two_categories():
    words = [word for category in CATEGORIES.values() for word in category]
    assert len(words) == len(set(words))


def test_the_tokenizer_knows_every_word_and_round_trips():
    tokenizer = build_tokenizer()
    texts = [f"{record.prompt} {record.response}" for record in DEMONSTRATIONS]
    for text in [*texts, *(record.text for record in TEXT)]:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_the_special_tokens_of_the_tokenizer():
    tokenizer = build_tokenizer()
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    assert tokenizer.bos_token is None
    assert len(tokenizer) == len(VOCABULARY) + 3
    assert tokenizer("the dragon")["input_ids"][1] == tokenizer.unk_token_id
    ids = tokenizer("the cat .")["input_ids"]
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == "the cat ."


def test_the_tokenizer_survives_saving(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.decode(loaded("name , cat ? .")["input_ids"]) == tokenizer.decode(
        tokenizer("name , cat ? .")["input_ids"]
    )
    assert loaded("the cat , a dog .")["input_ids"] == tokenizer("the cat , a dog .")["input_ids"]
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("<pad>", "<eos>", "<unk>")


def test_no_user_is_in_two_splits():
    data = SandboxData(demonstrations=200, prompts=300, text=20, validation=100)
    users = {
        split: {record.user for name in ("demonstrations", "prompts") for record in data.records(name, split)}
        for split in ("train", "validation", "test")
    }
    for one, other in itertools.combinations(users.values(), 2):
        assert one
        assert not one & other


def test_the_records_of_the_sandbox():
    data = SandboxData(demonstrations=12, prompts=13, text=14, validation=5, imperfect=0.0)
    assert [len(data.records(name, "train")) for name in ("demonstrations", "prompts", "text")] == [12, 13, 14]
    assert len(data.records("text", "test")) == 5
    assert data.records("comparisons", "train") is None
    assert data.records("judge_comparisons", "validation") is None
    assert data.malformed == {}
    assert [data.has(name, "test") for name in ("demonstrations", "prompts", "text", "comparisons")] == [True] * 3 + [
        False
    ]
    assert all(isinstance(record, Demonstration) for record in data.records("demonstrations", "train"))
    assert data.records("essays", "train") is None
    with pytest.raises(ValueError, match="split 'dev' does not exist"):
        data.records("prompts", "dev")


def test_the_fingerprint_follows_the_arguments():
    assert SandboxData().fingerprint() == SandboxData(seed=0).fingerprint()
    others = {SandboxData(seed=1), SandboxData(imperfect=0.1), SandboxData(prompts=9), SandboxData(validation=7)}
    assert len({SandboxData().fingerprint(), *(data.fingerprint() for data in others)}) == 5
