"""Simulated labelers: people who mostly share the true preference, each with a taste and a hand that wavers."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rlhf_lightning.arguments import Count, Fraction, NonNegativeFloat, checked
from rlhf_lightning.evaluation.agreement import Screening, passes, screening_scores
from rlhf_lightning.sandbox.metadata import flags_of, likert_of
from rlhf_lightning.sandbox.respond import draw_flaws, respond
from rlhf_lightning.sandbox.truth import WEIGHTS, Mode, facts, utility
from rlhf_lightning.sandbox.use_cases.table import KINDS_OF_PROMPT, write_prompt

TASTE, TEAM_TASTE = 0.25, 0.25
"""Standard deviations of the logarithm of the factors between a labeler's weights and the true ones: one factor of
their own, one that they share with their team, whose members discuss what to do."""
TEAMS = 5
TRAINING_NOISE, HELD_OUT_NOISE = 0.25, 0.17
"""Median noise, in units of utility. They make two labelers agree on 72.6 % and 77.3 % of the pairs that neither ties
(InstructGPT, section 3.4), measured on samples of a model tuned on the demonstrations. Those that `respond`
writes differ less from each other, so people agree less there: constants set on them would be too small."""
TIE_THRESHOLD = 0.05
"""Differences smaller than this go unnoticed."""


@checked
@dataclass(frozen=True)
class Labeler:
    """One simulated labeler.

    Args:
        name: Identifies the labeler in the records.
        weights: The weight of each fact for them, in units of utility.
        noise: Standard deviation of what they add to the utility of a response, in units of utility.
        team: The people they discuss with.
        flag_error: The probability that they misread a flag of the metadata.
        skill: The probability that a demonstration of theirs has no flaw.
        tie_threshold: Responses closer than this look the same to them, in units of utility.
        seed: Makes the noise; the same (labeler, prompt, response) always gets the same.
    """

    name: str
    weights: Mapping[str, float]
    noise: NonNegativeFloat = TRAINING_NOISE
    team: str = "team-0"
    flag_error: Fraction = 0.1
    skill: NonNegativeFloat = 0.8
    tie_threshold: NonNegativeFloat = TIE_THRESHOLD
    seed: int = 0

    def score(self, prompt: str, response: str) -> float:
        """How good the response looks to this labeler; a `ValueError` where the prompt is none of the sealed world."""
        return utility(facts(prompt, response), self.weights) + self._source(prompt, response).gauss(0, self.noise)

    def rank(self, prompt: str, responses: Sequence[str]) -> list[int]:
        """Rank responses: 1 is best, equal numbers are ties, no number is left out. `ValueError` as for `score`."""
        scores = [self.score(prompt, response) for response in responses]
        leaders: list[float] = []
        for score in sorted(set(scores), reverse=True):
            # Compared with the best of the tied group, not with the neighbour: a chain of small steps is no tie.
            if not leaders or leaders[-1] - score >= self.tie_threshold:
                leaders.append(score)
        return [sum(leader >= score for leader in leaders) for score in scores]

    def likert(self, prompt: str, response: str) -> int:
        """Overall quality from 1 to 7 (InstructGPT, section 3.6)."""
        return likert_of(self.score(prompt, response))

    def metadata(self, prompt: str, response: str) -> dict[str, bool]:
        """The flags of table 3 that the prompt raises, at times misread."""
        seen = {}
        for flag, value in flags_of(prompt, response).items():
            if value is not None:
                slips = self._source(prompt, response, flag).random() < self.flag_error
                seen[flag] = bool(value) != slips
        return seen

    def demonstrate(self, prompt: str) -> str:
        """Write a response, which has a flaw as often as the labeler lacks skill."""
        source = self._source(prompt, "demonstration")
        flawed = source.random() >= self.skill
        return respond(source, prompt, draw_flaws(source) if flawed else ())

    def _source(self, *about: str) -> random.Random:
        return random.Random("/".join((str(self.seed), self.name, *about)))


class LabelerPanel:
    """Labelers as a judge: every prompt belongs to one of them, who scores all responses to it.

    Args:
        labelers: The people who judge; a `ValueError` where there is nobody.
    """

    def __init__(self, labelers: Sequence[Labeler]) -> None:
        if not labelers:
            raise ValueError("a panel needs at least one labeler: labelers is empty.")
        self.labelers = labelers

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The score of each response to the prompt at the same place, by the labeler of that prompt."""
        return [self._of(prompt).score(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]

    def likert(self, prompts: Sequence[str], responses: Sequence[str]) -> list[int]:
        """The quality from 1 to 7 of each response to the prompt at the same place, by the labeler of that prompt."""
        return [self._of(prompt).likert(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]

    def _of(self, prompt: str) -> Labeler:
        return random.Random(f"panel/{prompt}").choice(self.labelers)


def candidate(index: int, seed: int, mode: Mode, noise: float) -> Labeler:
    """A person who applies: noise lognormal around its median, one flag in seven misread, four of five texts good.

    Args:
        index: Number of the person.
        seed: Seed of the people.
        mode: The aim that their instructions put first.
        noise: The median of people's noise, in units of utility.
    """
    team = f"team-{index % TEAMS}"
    source, shared = random.Random(f"{seed}/labeler/{index}"), random.Random(f"{seed}/{team}")
    weights = {
        name: weight * source.lognormvariate(0, TASTE) * shared.lognormvariate(0, TEAM_TASTE)
        for name, weight in WEIGHTS[mode].items()
    }
    noise *= source.lognormvariate(0, 0.35)
    flag_error, skill = source.betavariate(2, 12), source.betavariate(6, 1.5)
    return Labeler(f"labeler-{seed}-{index}", weights, noise, team, flag_error, skill, seed=seed)


@checked
def screened_labelers(count: Count = 40, seed: int = 0, mode: Mode = "train") -> list[Labeler]:
    """Those who pass the screening of InstructGPT, appendix B.1, and label training data.

    Args:
        count: Number of people to hire.
        seed: Seed of the people.
        mode: The aim that their instructions put first (section 3.4: `train` while labelling training data).
    """
    applicants = (candidate(index, seed, mode, TRAINING_NOISE) for index in itertools.count())
    return list(itertools.islice((person for person in applicants if passes(screening(person))), count))


@checked
def held_out_labelers(count: Count = 20, seed: int = 1, mode: Mode = "final") -> list[Labeler]:
    """People who never labelled training data and were not screened (InstructGPT, section 3.4)."""
    return [candidate(index, seed, mode, HELD_OUT_NOISE) for index in range(count)]


@checked
def held_out_panel(count: Count = 20, seed: int = 1, mode: Mode = "final") -> LabelerPanel:
    """Held-out labelers as a judge."""
    return LabelerPanel(held_out_labelers(count, seed, mode))


@checked
def training_panel(count: Count = 40, seed: int = 0, mode: Mode = "final") -> LabelerPanel:
    """Those who labelled training data as a judge, told what comes first in evaluations (InstructGPT, section 3.4)."""
    hired = [int(person.name.rpartition("-")[2]) for person in screened_labelers(count, seed)]
    return LabelerPanel([candidate(index, seed, mode, TRAINING_NOISE) for index in hired])


def screening(person: Labeler) -> Screening:
    """Test a candidate against the key, which is the truth in `train` mode, on 40 prompts.

    Source: InstructGPT, appendix B.1, where the key is what the researchers labelled themselves.
    """
    key, key_flags, key_ranks = _key()
    quality = [key.likert(prompt, person.demonstrate(prompt)) for prompt in _exam()]
    flags, ranks = _answers(person)
    return screening_scores(flags, key_flags, ranks, key_ranks, quality)


def varied_responses(prompts: int, seed: int | str, imperfect: float = 0.5) -> dict[str, list[str]]:
    """Prompts with six responses each as good and bad as demonstrations are, identical ones once.

    Args:
        prompts: Number of prompts.
        seed: Seed of prompts and responses.
        imperfect: The share of responses that get a flaw.
    """
    answered = {}
    for index in range(prompts):
        source = random.Random(f"{seed}/varied/{index}")
        cases = list(KINDS_OF_PROMPT.values())
        prompt = write_prompt(source, source.choices(cases, [case.share for case in cases])[0])
        flaws = [draw_flaws(source) if source.random() < imperfect else () for _ in range(6)]
        answered[prompt] = list(dict.fromkeys(respond(source, prompt, some) for some in flaws))
    return answered


def _answers(person: Labeler) -> tuple[list[bool], list[list[int]]]:
    """Flags and ranks of the responses of the exam."""
    asked = [(prompt, text) for prompt, texts in _exam().items() for text in texts]
    flags = [seen for about in asked for seen in person.metadata(*about).values()]
    return flags, [person.rank(prompt, texts) for prompt, texts in _exam().items()]


@lru_cache(maxsize=1)
def _key() -> tuple[Labeler, list[bool], list[list[int]]]:
    key = Labeler("key", WEIGHTS["train"], noise=0.0, flag_error=0.0)
    return key, *_answers(key)


@lru_cache(maxsize=1)
def _exam() -> Mapping[str, Sequence[str]]:
    return varied_responses(40, "screening")
