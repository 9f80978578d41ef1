"""Judges that compare: they are shown two responses to a prompt and say which is better."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import takewhile
from typing import Any, Protocol, runtime_checkable

from rlhf_lightning.generation.function_reward import reward_name

BETTER, TIE, WORSE = 1.0, 0.5, 0.0
BATCH = 64
"""Pairs that are asked about before what was said is kept."""


@runtime_checkable
class ComparisonJudge(Protocol):
    """A function or an object that is called with a prompt and two responses.

    What tells it from a function that scores are its parameters `response_a` and `response_b`. One that may be asked
    from several threads at once says from how many in an attribute `concurrency`.
    """

    def __call__(self, prompt: str, response_a: str, response_b: str) -> float | None:
        """1 where the first response is better, 0 where it is worse, one half for a tie; None where it said nothing."""


def compares(judge: Callable[..., Any] | type) -> bool:
    """Whether a function, an object or a class of such objects is a `ComparisonJudge`."""
    try:
        parameters = inspect.signature(judge.__call__ if isinstance(judge, type) else judge).parameters
    except (TypeError, ValueError):  # of compiled code
        return False
    return {"response_a", "response_b"} <= {*parameters}


def pair_verdicts(
    judge: ComparisonJudge, prompts: Sequence[str], responses: Sequence[str], baseline: Sequence[str]
) -> Iterator[list[float | None]]:
    """What a judge says of each response beside the baseline's, batch by batch; the same text twice is a tie unasked.

    After an error nobody is asked any more, and what was said of the pairs before the one with the error comes first.

    Args:
        judge: The judge.
        prompts: The prompts.
        responses: A response to each.
        baseline: The baseline's response to each.

    Raises:
        ValueError: When it says something else than 1, one half, 0 or None.
    """
    asked = list(zip(prompts, responses, baseline, strict=True))

    def said(pair: tuple[str, str, str]) -> float | None:
        answer = TIE if pair[1] == pair[2] else judge(*pair)
        if answer is not None and answer not in (BETTER, TIE, WORSE):
            raise ValueError(
                f"the judge {reward_name(judge)} must say 1, 0.5 or 0 of two responses, got {answer!r:.80}."
            )
        return None if answer is None else float(answer)

    with ThreadPoolExecutor(getattr(judge, "concurrency", 1)) as threads:
        for start in range(0, len(asked), BATCH):
            answers = [threads.submit(said, pair) for pair in asked[start : start + BATCH]]
            wait(answers, return_when=FIRST_EXCEPTION)
            for answer in answers:
                answer.cancel()
            wait(answers)
            if found := [answer.result() for answer in takewhile(lambda answer: answer.exception() is None, answers)]:
                yield found
            if len(found) < len(answers):
                answers[len(found)].result()
