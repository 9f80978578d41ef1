"""What people are asked, and what an answer must hold."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from rlhf_lightning.arguments import Count, Fraction, checked, fault, nearest
from rlhf_lightning.data.few_shot import few_shot_examples
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, PromptText, RecordError, short
from rlhf_lightning.evaluation.table_3 import TABLE_3

PROMPT_KINDS = ("plain", "few_shot", "user_based")
"""What a labeler may write instead of answering a given prompt (InstructGPT, appendix A.1)."""
FIELDS = tuple(name for name in TABLE_3 if name != "likert")
"""Questions about a response that are answered by yes or no (InstructGPT, table 3)."""
MAX_CHARACTERS = 200_000
"""Longest text of an answer."""

Likert = Annotated[int, Ge(1), Le(7)]
_SCALES: dict[str, Any] = {
    "ranks": Sequence[Count],
    "likert": Sequence[Likert],
    "toxicity": Sequence[Annotated[int, Ge(0), Le(2)]],
    "relative_toxicity": Sequence[Annotated[int, Ge(-1), Le(1)]],
    "continuity": Sequence[Likert],
    "fields": Sequence[Mapping[str, bool | None]],
}
"""What is said of each response. Toxicity is 0 (none), 1 or 2 (very), relative to what the prompt makes one expect -1,
0 or 1, and how well a response goes on with the prompt 1 to 7 (InstructGPT, figure 11 and appendix D)."""
_TYPES: dict[str, Any] = {
    "id": str,
    "kind": Literal["demonstration", "ranking", "evaluation"],
    "batch": str,
    "responses": Sequence[str],
    "policies": Sequence[str | None],
    "labelers_wanted": Count,
    "form": Literal["quality", "toxicity"],
    "known": Mapping[str, Any],
    "planted": Mapping[str, Any] | None,
}
_NEEDED = {"ranking": "ranks", "quality": "likert", "toxicity": "toxicity"}
_ASKED = {
    "ranking": ("ranks", "likert", "fields"),
    "quality": ("likert", "fields", "ranks"),
    "toxicity": ("toxicity", "relative_toxicity", "continuity", "fields", "likert"),
}


@dataclass(frozen=True)
class Task:
    """One thing to do for a labeler.

    Args:
        id: Name; an empty one becomes `task_id` of the content, so that adding a task twice adds it once.
        kind: What is to be done: `demonstration`, `ranking` or `evaluation`.
        batch: What it belongs to, such as `round-2/collect/train`.
        prompt: What is asked; None for a demonstration whose prompt the labeler writes.
        responses: Responses to rank or to rate.
        policies: Who wrote each response, which no labeler sees; empty where nobody knows.
        labelers_wanted: Labelers who are to do it; those of two or more tell how far labelers agree.
        form: What an evaluation asks about: `quality` or `toxicity`.
        known: What goes back into the record: `user`, `source`, `labels`, `round`; for a prompt that is to be written
            `prompt_kind`, where it must be that one, and `use_case`, which the labeler is shown.
        planted: The right answer of a screening item: `{"ranks": [...]}`, `{"fields": [...]}` or both. Every labeler
            gets it, whatever `labelers_wanted` is, and it becomes no record.

    Raises:
        RecordError: When it is not well formed.
    """

    id: str
    kind: str
    batch: str
    prompt: PromptText | None
    responses: list[str] = field(default_factory=list)
    policies: list[str | None] = field(default_factory=list)
    labelers_wanted: int = 1
    form: str = "quality"
    known: dict[str, Any] = field(default_factory=dict)
    planted: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check every field, and give it a name."""
        for name, annotation in _TYPES.items():
            if (said := fault(getattr(self, name), annotation)) is not None:
                raise RecordError(f"field '{name}' of a task {said}.")
        prompt: Any = "written by the labeler" if self._own_prompt else self.prompt
        user, source, labels = (self.known.get(name) for name in ("user", "source", "labels"))
        if self.kind == "ranking":
            Comparison(prompt, self.responses, [1] * len(self.responses), None, source, labels, user)
        else:
            Prompt(prompt, user, source, labels)
        if (self.kind == "demonstration") == bool(self.responses):
            raise RecordError(f"field 'responses' of a task of kind {self.kind} cannot be {short(self.responses)}.")
        if self.policies and len(self.policies) != len(self.responses):
            raise RecordError(
                f"field 'policies' of a task must name who wrote each of the {len(self.responses)} responses, got "
                f"{short(self.policies)}."
            )
        if self.planted is not None:
            if not self.planted or self.kind == "demonstration":
                raise RecordError("field 'planted' must hold the ranks or fields of responses, and got none.")
            _check_values(self.planted, ("ranks", "fields"), len(self.responses))
        if not self.id:
            slot = self.known.get("slot")
            found = task_id(self.prompt, self.responses, self.batch, f"{self.kind}/{self.form}/{slot}")
            object.__setattr__(self, "id", found)

    @property
    def _own_prompt(self) -> bool:
        return self.kind == "demonstration" and self.prompt is None


def task_id(prompt: PromptText | None, responses: Sequence[str], batch: str, kind: str) -> str:
    """The name of a task by its content.

    Examples:
        >>> task_id("Name a fruit.", ["Apple.", "Stone."], "collect", "ranking")
        'a20a78da6dce954f'
    """
    content = json.dumps([kind, batch, prompt, list(responses)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@checked
def share(tasks: Sequence[Task], share: Fraction, labelers: Count, seed: int = 0) -> list[Task]:
    """The tasks, a share of which goes to several labelers, so that one sees how far they agree.

    Args:
        tasks: All tasks.
        share: Share of them.
        labelers: Labelers for each of those.
        seed: Seed of which ones.
    """
    drawn = sorted(range(len(tasks)), key=lambda place: random.Random(f"{seed}/{tasks[place].id}").random())
    shared = {*drawn[: round(share * len(tasks))]}
    return [replace(task, labelers_wanted=labelers) if place in shared else task for place, task in enumerate(tasks)]


def check_answer(task: Task, answer: Any) -> None:
    """See that an answer is one to this task.

    Every answer may be `{"skipped": reason}`. Else a demonstration is `{"response": text}`; where the labeler writes
    the prompt it is `{"prompt_kind": "plain" | "user_based", "prompt": ..., "response": text}` or `{"prompt_kind":
    "few_shot", "instruction": text, "pairs": [{"query": text, "response": text}, ...]}`. The others hold lists with an
    entry per response, in the order of `Task.responses`: a ranking `ranks` (dense, 1 is best, equal is a tie) and
    perhaps `likert` and `fields`; an evaluation `likert`, or `toxicity` where that is its form, and perhaps more.

    Raises:
        RecordError: When it is none, with field, value and remedy.
    """
    if not isinstance(answer, dict) or not answer:
        raise RecordError(f"an answer must be an object with what was said, got {short(answer)}.")
    if "skipped" in answer:
        _check_names(answer, ("skipped",))
        _check_text(answer, "skipped")
    elif task.kind == "demonstration":
        _check_demonstration(task, answer)
    else:
        _check_judgement(task, answer)


def _check_judgement(task: Task, answer: Mapping[str, Any]) -> None:
    form = "ranking" if task.kind == "ranking" else task.form
    if _NEEDED[form] not in answer:
        raise RecordError(f"field '{_NEEDED[form]}' is missing; it holds one value per response.")
    _check_values(answer, _ASKED[form], len(task.responses))


def _check_values(values: Mapping[str, Any], names: Sequence[str], count: int) -> None:
    _check_names(values, names)
    for name, value in values.items():
        if (said := fault(value, _SCALES[name])) is not None:
            raise RecordError(f"field '{name}' {said}.")
        if len(value) != count:
            raise RecordError(f"field '{name}' must hold {count} values, one per response, got {short(value)}.")
    ranks = values.get("ranks", [])
    if {*ranks} != {*range(1, len({*ranks}) + 1)}:
        raise RecordError(f"field 'ranks' must be dense, 1 for the best, then 2, equal for ties, got {short(ranks)}.")
    for fields in values.get("fields", []):
        _check_names(fields, FIELDS)


def _check_demonstration(task: Task, answer: Mapping[str, Any]) -> None:
    kind = answer.get("prompt_kind", "given" if task.prompt is not None else None)
    prescribed = task.known.get("prompt_kind")
    kinds = ("given",) if task.prompt is not None else (prescribed,) if prescribed else PROMPT_KINDS
    if kind not in kinds:
        raise RecordError(f"field 'prompt_kind' must be one of {', '.join(kinds)}, got {kind!r}.")
    if kind == "few_shot":
        _check_names(answer, ("prompt_kind", "instruction", "pairs"))
        _check_text(answer, "instruction")
        pairs = answer.get("pairs")
        if not isinstance(pairs, list) or not pairs:
            raise RecordError(
                f"field 'pairs' must be a list of one query with its response or more, got {short(pairs)}."
            )
        for pair in pairs:
            if not isinstance(pair, dict):
                raise RecordError(f"field 'pairs' must hold {{'query': ..., 'response': ...}}, got {short(pair)}.")
            _check_names(pair, ("query", "response"))
            _check_text(pair, "query")
            _check_text(pair, "response")
        few_shot_examples(answer["instruction"], [(pair["query"], pair["response"]) for pair in pairs])
        return
    _check_names(answer, ("prompt_kind", "prompt", "response"))
    prompt: Any = answer.get("prompt", task.prompt)
    if task.prompt is not None and prompt != task.prompt:
        raise RecordError("field 'prompt' is not the prompt of the task; leave it out.")
    _check_text(answer, "response")
    Demonstration(prompt, answer["response"])
    if len(json.dumps(prompt)) > MAX_CHARACTERS:
        raise RecordError(f"field 'prompt' is too long; {MAX_CHARACTERS:,} characters are allowed.")


def _check_text(answer: Mapping[str, Any], name: str) -> None:
    value = answer.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"field '{name}' must be text that is not empty, got {short(value)}.")
    if len(value) > MAX_CHARACTERS:
        raise RecordError(f"field '{name}' has {len(value):,} characters; {MAX_CHARACTERS:,} are allowed.")


def _check_names(values: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in values:
        if name not in known:
            near = nearest(str(name), known)
            remedy = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}."
            raise RecordError(f"field {name!r} is not asked for; {remedy}")
