"""People in step evaluate: they rate what all policies said to the first prompts, without knowing whose it is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.records import PromptText
from rlhf_lightning.evaluation.policies import PolicySamples
from rlhf_lightning.labeling.numbers import label_agreement, policy_numbers, ranks_of
from rlhf_lightning.labeling.settings import FILES, PEOPLE
from rlhf_lightning.labeling.store import Answer
from rlhf_lightning.labeling.tasks import Task
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.people import People

_PART = "test"


def raters(context: Context, step: str, folder: Path) -> People | None:
    """The people who rate, where the step asks people; `WaitingError` where the tasks are open and not done."""
    options = context.config[step].get(PEOPLE)
    if not options:
        return None
    files, enough, labelers = (options.get("by") == FILES, options.get("enough", 1.0), options.get("labelers", 1))
    people = People(context, step, folder, "rated", enough, files, labelers)
    people.wait([_PART])
    return people


def rated(
    people: People | None, samples: Mapping[str, PolicySamples], prompts: Sequence[PromptExample], baseline: str
) -> dict[str, Any]:
    """What people say, which stands beside the other judges: their wins are put into the samples.

    Args:
        people: Those who rate; None where nobody is asked.
        samples: Samples of each policy.
        prompts: The prompts of the samples.
        baseline: The policy that the others are compared with.

    Returns:
        What the metrics have besides: nothing, or ``people`` with `prompts`, `answers`, `unclear`, `labelers` (how many
        of each), `policies` (`labeling.numbers.policy_numbers`) and `agreement` (`labeling.numbers.label_agreement`).

    Raises:
        PipelineError: When an answer is none.
        WaitingError: When not enough is rated.
    """
    if people is None:
        return {}
    options = people.context.config[people.step][PEOPLE]
    places: dict[str, int] = {}
    tasks = []
    for place, prompt in enumerate(prompts[: options["prompts"]]):
        task = _task(people, prompt, _responses(samples, place), options)
        tasks += [task] if task.id not in places else []
        places.setdefault(task.id, place)
    answers = people.answers({_PART: tasks})[_PART]
    each = [_of_each(said, _responses(samples, places[said.task.id])) for said in answers if not said.skipped]
    for name, own in samples.items():
        outcomes: dict[int, list[float]] = {}
        for answer in each:
            if (ranks := ranks_of(answer)) is not None:
                mine, theirs = (ranks[answer.task.policies.index(policy)] for policy in (name, baseline))
                outcomes.setdefault(places[answer.task.id], []).append((1 + (theirs > mine) - (mine > theirs)) / 2)
        if outcomes:
            own.preferences[PEOPLE] = [
                fmean(outcomes[place]) if place in outcomes else None for place in range(len(own.responses))
            ]
    return {
        PEOPLE: {
            "prompts": len(tasks),
            "answers": len(each),
            "unclear": people.unclear(tasks, answers),
            "labelers": len({answer.labeler for answer in answers}),
            "policies": policy_numbers(each, baseline),
            "agreement": label_agreement(answers),
        }
    }


def _responses(samples: Mapping[str, PolicySamples], place: int) -> dict[str, str]:
    return {name: own.responses[place] for name, own in samples.items()}


def _task(people: People, prompt: PromptExample, responses: Mapping[str, str], options: Mapping[str, Any]) -> Task:
    """Every text once, whoever wrote it."""
    by_text: dict[str, list[str]] = {}
    for policy, text in responses.items():
        by_text.setdefault(text, []).append(policy)
    messages = getattr(prompt.text, "messages", [])
    asked: PromptText = str(prompt.text) if len(messages) < 2 else [{**message} for message in messages]
    policies: list[str | None] = [" = ".join(several) for several in by_text.values()]
    form, wanted = options.get("form", "quality"), people.labelers
    return Task("", "evaluation", people.batch(_PART), asked, [*by_text], policies, wanted, form)


def _of_each(answer: Answer, responses: Mapping[str, str]) -> Answer:
    """The answer with an entry for each policy, also for those that said the same."""
    places = [answer.task.responses.index(text) for text in responses.values()]
    task = replace(answer.task, responses=[*responses.values()], policies=[*responses])
    said = {name: [values[place] for place in places] for name, values in answer.answer.items()}
    return replace(answer, task=task, answer=said)
