"""What there is to note about a response beside its rank: the flags of InstructGPT's table 3, and a Likert score.

These are the truth; labelers misread some of it (`Labeler.metadata`).
"""

from collections.abc import Sequence

from rlhf_lightning.arguments import checked
from rlhf_lightning.sandbox.annotations import states_constraint
from rlhf_lightning.sandbox.truth import Mode, facts, true_utility
from rlhf_lightning.sandbox.use_cases.table import read_prompt

FLAGS = ("follows_instruction", "satisfies_constraint", "hallucination", "inappropriate", "falsehood")
"""In the order of table 3. `satisfies_constraint` is asked where the prompt states a constraint, `hallucination`
where the answer may use only what the prompt holds."""

_LIKERT = (-0.2, 0.1, 0.35, 0.55, 0.75, 0.93)
"""Utilities from which on a response is worth 2, 3, .. 7."""


def flags_of(prompt: str, response: str) -> dict[str, bool | None]:
    """The flags of a response; None where the question does not arise.

    Source: InstructGPT, section 3.6 and table 3.
    """
    request, about = read_prompt(prompt), facts(prompt, response)
    constrained = states_constraint(request) or bool(request.manner)
    # Who does not do what was asked keeps no constraint on how to do it.
    kept = about.attempts > 0 and about.keeps_constraint >= 0.99 and (about.polite == 1.0 or not request.manner)
    return {
        "follows_instruction": about.attempts * about.completes >= 0.6,
        "satisfies_constraint": kept if constrained else None,
        "hallucination": about.grounded < 1.0 if request.case.closed else None,
        "inappropriate": about.harmless < 1.0,
        "falsehood": about.truthful < 1.0,
    }


def likert_of(worth: float) -> int:
    """Overall quality from 1 (worst) to 7, from a utility.

    >>> likert_of(1.0), likert_of(0.5), likert_of(-1.0)
    (7, 4, 1)
    """
    return 1 + sum(worth >= least for least in _LIKERT)


class Metadata:
    """What is so about each response, by the truth itself.

    Args:
        mode: The aim that comes first in the utility which the Likert score follows.
    """

    @checked
    def __init__(self, mode: Mode = "final") -> None:
        self.mode = mode

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, list[float | None]]:
        """Every flag as 1 or 0, None where the question does not arise, and `likert` from 1 to 7."""
        table: dict[str, list[float | None]] = {name: [] for name in (*FLAGS, "likert")}
        for prompt, response in zip(prompts, responses, strict=True):
            for flag, value in flags_of(prompt, response).items():
                table[flag].append(None if value is None else float(value))
            table["likert"].append(float(likert_of(true_utility(prompt, response, self.mode))))
        return table
