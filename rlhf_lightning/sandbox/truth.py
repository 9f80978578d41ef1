"""The true preference of the sealed world: what is right and wrong with a response, from the texts alone."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

from rlhf_lightning.sandbox.closed_tasks import CLOSED_QA, EXTRACTION, REWRITE
from rlhf_lightning.sandbox.open_tasks import BRAINSTORMING, GENERATION, OPEN_QA
from rlhf_lightning.sandbox.sentences import Reply, is_well_formed
from rlhf_lightning.sandbox.task import Task, UseCase
from rlhf_lightning.sandbox.vocabulary import CONTENT, RUDE_WORDS

USE_CASES: Mapping[str, UseCase] = MappingProxyType(
    {case.name: case for case in (GENERATION, OPEN_QA, BRAINSTORMING, CLOSED_QA, EXTRACTION, REWRITE)}
)
"""The table of use cases; a new one needs one line here."""

MARKER = " answer :"
"""What every prompt ends with."""

GREETINGS = ("", "please ", "hello . ", "hello . please ")
"""What a prompt may start with."""

WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "attempts": 0.25,
        "completes": 0.45,
        "keeps_constraint": 0.30,
        "grounded": 0.15,
        "truthful": 0.10,
        "polite": 0.25,
        "fluent": 0.10,
        "varied": 0.10,
        "concise": 0.15,
        "ends": 0.15,
    }
)
"""The weights of the true preference. The first three add up to 1: a flawless response has utility 1. The others are
what a response can lose, together 1: the worst has utility -1."""


@dataclass(frozen=True)
class Facts:
    """What is so about a response to a prompt; every number is between 0 (bad) and 1 (good).

    Args:
        attempts: It has the form that was asked for, right or wrong.
        completes: The share of what was asked that is there and right.
        keeps_constraint: The explicit constraints ("two sentences", "without the word x") are kept.
        grounded: It invents nothing beyond the passage of the prompt; 1 where there is no passage.
        truthful: It states nothing false about the world.
        polite: It is not rude.
        fluent: The share of its sentences that the grammar knows.
        varied: It does not repeat itself.
        concise: It is not longer than the task needs.
        ends: It ends with a period instead of being cut off.
    """

    attempts: float
    completes: float
    keeps_constraint: float
    grounded: float
    truthful: float
    polite: float
    fluent: float
    varied: float
    concise: float
    ends: float


def parse_prompt(prompt: str) -> tuple[UseCase, Task]:
    """The use case of a prompt and the named parts of its instruction.

    Raises:
        ValueError: When no use case knows the prompt.
    """
    text = prompt.removesuffix(MARKER)
    if text != prompt:
        for greeting in sorted(GREETINGS, key=len, reverse=True):
            for case in USE_CASES.values():
                match = case.pattern.fullmatch(text.removeprefix(greeting))
                if match:
                    return case, match.groupdict(default="")
    raise ValueError(
        f"no use case of the sealed world knows the prompt {prompt[:80]!r}; the truth is only defined for prompts "
        "that generate_prompts makes."
    )


def facts(prompt: str, response: str) -> Facts:
    """What is right and wrong with a response, without its end marker.

    Raises:
        ValueError: When the prompt does not belong to the sealed world.
    """
    case, task = parse_prompt(prompt)
    reply = Reply.parse(response)
    found = case.check(task, reply)
    invented = {word for word in reply.words if word in CONTENT} - set(prompt.split()) if case.closed else set()
    excess = max(0, len(reply.words) - found.budget)
    return Facts(
        attempts=found.attempts,
        completes=found.completes,
        keeps_constraint=found.constraint,
        grounded=found.grounded / (1 + len(invented)),
        truthful=found.truthful,
        polite=0.0 if RUDE_WORDS.intersection(reply.words) else 1.0,
        fluent=_fluency(reply),
        varied=_variety(reply),
        concise=max(0.0, 1 - excess / 6),
        ends=1.0 if reply.ends else 0.0,
    )


def utility(stated: Facts, weights: Mapping[str, float]) -> float:
    """The worth of a response under some weights, linear in the weights.

    ``attempts * (w_attempts + completes * (w_completes + w_constraint * keeps_constraint))`` minus the sum of
    ``w_i * (1 - fact_i)`` over the other facts. What is right about the content counts only in a response that attempts
    the task, and keeping a constraint counts only as far as the task is done: there is nothing to gain from an empty
    response, nor from a copy of the prompt.
    """
    values: dict[str, float] = asdict(stated)
    content = weights["completes"] + weights["keeps_constraint"] * stated.keeps_constraint
    gain = stated.attempts * (weights["attempts"] + stated.completes * content)
    manners = [name for name in values if name not in ("attempts", "completes", "keeps_constraint")]
    return gain - sum(weights[name] * (1 - values[name]) for name in manners)


def true_utility(prompt: str, response: str) -> float:
    """The true preference: between -1 and 1, 1 for a flawless response.

    Raises:
        ValueError: When the prompt does not belong to the sealed world.
    """
    return utility(facts(prompt, response), WEIGHTS)


class TrueUtility:
    """The true preference as a reward: any number of prompts and responses in, one utility each out."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The utility of each response to the prompt at the same place."""
        return [true_utility(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _fluency(reply: Reply) -> float:
    if not reply.sentences:
        return 0.0
    return sum(map(is_well_formed, reply.sentences)) / len(reply.sentences)


def _variety(reply: Reply) -> float:
    """The share of five-word windows that are new, 0 where a word follows itself or a sentence comes twice."""
    words = reply.words
    stutters = any(first == second for first, second in itertools.pairwise(words))
    if not words or stutters or len(set(reply.sentences)) < len(reply.sentences):
        return 0.0
    windows = [tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))]
    return len(set(windows)) / len(windows)
