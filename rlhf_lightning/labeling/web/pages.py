"""The pages of a labeler: what there is to do, a task, saving and taking back, own work, instructions."""

from typing import Any, cast

from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from rlhf_lightning.data.few_shot import few_shot_examples
from rlhf_lightning.data.records import PromptText
from rlhf_lightning.labeling.store import Assignment
from rlhf_lightning.labeling.tasks import check_answer
from rlhf_lightning.labeling.web import forms
from rlhf_lightning.labeling.web.desk import Visit
from rlhf_lightning.labeling.web.own_work import own_answers, own_assignment, own_work

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def home(visit: Visit) -> Response:
    """What there is to do."""
    return visit.page("home.html", kinds=forms.KINDS, work=own_work(visit.desk.store, visit.account.name))


def work(visit: Visit) -> Response:
    """The task at hand, or the next one."""
    kind = visit.request.path_params["kind"]
    if kind not in forms.KINDS:
        raise HTTPException(404, "There is no such page.")
    assignment = visit.desk.store.next_task(visit.account.name, kind)
    own = own_work(visit.desk.store, visit.account.name)
    if assignment is None:
        return visit.page("home.html", kinds=forms.KINDS, work=own, finished=kind)
    task = assignment.task
    return visit.page(
        f"{'demonstration' if kind == 'demonstration' else 'outputs'}.html",
        assignment=assignment,
        task=task,
        title=forms.KINDS[kind][0],
        own=own[kind],
        draft=forms.page_state(assignment),
        turns=forms.turns(task.prompt),
        outputs=[
            (forms.LETTERS[place % 26], task.responses[response]) for place, response in enumerate(assignment.order)
        ],
        scales=forms.scales(task),
        fields=forms.fields(task),
        open_fields=forms.OPEN_FIELDS,
        prompt_kinds=forms.PROMPT_KINDS,
    )


def save(visit: Visit) -> Response:
    """Save an answer; that it is saved is said once it is on the disk."""
    assignment, sent = _assignment(visit), visit.sent
    answer, seconds, submission = sent.get("answer"), sent.get("seconds"), sent.get("submission")
    if not isinstance(answer, dict) or not isinstance(seconds, int | float) or not isinstance(submission, str):
        raise HTTPException(400, "An answer needs 'answer', 'seconds' and 'submission'.")
    answer = forms.in_task_order(answer, assignment.order)
    saved = visit.desk.store.save(assignment.id, visit.account.name, answer, float(seconds), submission)
    return JSONResponse({"saved": saved})


def draft(visit: Visit) -> Response:
    """Keep a draft; nothing is a sign of life."""
    visit.desk.store.save_draft(visit.request.path_params["number"], visit.account.name, visit.sent or None)
    return JSONResponse({"kept": True})


def undo(visit: Visit) -> Response:
    """Take back the last answer, and go there."""
    assignment = visit.desk.store.undo(visit.account.name)
    if assignment is None:
        raise HTTPException(409, "There is nothing to take back.")
    return JSONResponse({"url": f"/work/{assignment.task.kind}"})


def preview(visit: Visit) -> Response:
    """What a model will read of a demonstration."""
    task, answer = _assignment(visit).task, cast(dict[str, Any], visit.sent.get("answer"))
    try:
        check_answer(task, answer)
    except ValueError as error:
        return JSONResponse({"text": f"Not complete yet: {error}"})
    prompt: Any = task.prompt or answer.get("prompt")
    response: Any = answer.get("response")
    if "pairs" in answer:
        pairs = [(pair["query"], pair["response"]) for pair in answer["pairs"]]
        last = few_shot_examples(answer["instruction"], pairs)[-1]
        prompt, response = last.prompt, last.response
    return JSONResponse({"text": (visit.desk.preview or _plain)(prompt, response)})


def own(visit: Visit) -> Response:
    """What the labeler did."""
    return visit.page("own.html", kinds=forms.KINDS, answers=own_answers(visit.desk.store, visit.account.name))


def instructions(visit: Visit) -> Response:
    """What labelers should know."""
    # Raw HTML is escaped, and there are no images: nothing is fetched from elsewhere.
    text = visit.desk.instructions.read_text(encoding="utf-8")
    return visit.page("instructions.html", text=Markup(_MARKDOWN.render(text)))


def _assignment(visit: Visit) -> Assignment:
    return own_assignment(visit.desk.store, visit.account.name, visit.request.path_params["number"])


def _plain(prompt: PromptText, response: str) -> str:
    turns = [*forms.turns(prompt), {"role": "assistant" if isinstance(prompt, list) else "", "content": response}]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" if turn["role"] else turn["content"] for turn in turns)
