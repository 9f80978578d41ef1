"""Stand-in."""
from collections.abc import Sequence
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.labeling.store import Answer


def rankings(answers: Sequence[Answer]) -> list[Comparison]:
    """Stand-in."""
    found = []
    for a in answers:
        if a.skipped or a.task.planted:
            continue
        labeling = {"policies": list(a.task.policies), "order": a.order}
        for name in ("likert", "fields"):
            if name in a.answer:
                labeling[name] = a.answer[name]
        if "round" in a.task.known:
            labeling["round"] = a.task.known["round"]
        k = a.task.known
        found.append(Comparison(a.task.prompt, a.task.responses, a.answer["ranks"], a.labeler, k.get("source"), k.get("labels"), k.get("user"), labeling))
    return found
