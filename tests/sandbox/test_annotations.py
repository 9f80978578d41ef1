from rlhf_lightning.curation.account import ANNOTATIONS
from rlhf_lightning.sandbox.annotations import annotations
from rlhf_lightning.sandbox.use_cases.table import KINDS_OF_PROMPT
from rlhf_lightning.sandbox.world import generate_demonstrations, generate_prompts


def said(prompt):
    return {name for name, value in annotations(prompt).items() if value is True}


def test_what_is_noted_about_prompts():
    assert said("what does the cat eat ? answer :") == set()
    assert said("what does the cat eat ? use one word . answer :") == {"other_constraints"}
    assert said("what does the cat eat ? rude answer :") == {"sensitive_content"}
    assert said("go on with one sentence : the cat slept in the garden . polite answer :") == {
        "continuation_style",
        "other_constraints",
        "safety_constraints",
    }
    assert said("list exactly two animals from the text : the cat found the ball in the garden . answer :") == {
        "closed_domain",
        "other_constraints",
    }


def test_every_prompt_carries_every_field_of_the_data_card():
    records = [*generate_prompts(300, 1), *generate_demonstrations(100, 1)]
    assert all(record.labels.keys() == {"use_case", *ANNOTATIONS} for record in records)
    assert {record.labels["use_case"] for record in records} == {case.use_case for case in KINDS_OF_PROMPT.values()}
