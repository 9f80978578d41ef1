"""Few-shot prompts: one instruction with K queries and responses makes K demonstrations."""

from collections.abc import Sequence

from rlhf_lightning.data.records import Demonstration, RecordError


def few_shot_examples(
    instruction: str,
    pairs: Sequence[tuple[str, str]],
    user: str | None = None,
    source: str | None = None,
    labels: dict[str, str | bool | None] | None = None,
) -> list[Demonstration]:
    r"""Each query with its response as a demonstration, the other K - 1 pairs as its context.

    Args:
        instruction: What the labeler asks for.
        pairs: K >= 1 queries, each with its response.
        user: The labeler.
        source: Source of the demonstrations.
        labels: Labels of the demonstrations.

    Raises:
        RecordError: When there is no pair, or something is empty.

    Source: InstructGPT, appendix A.1.

    Examples:
        >>> examples = few_shot_examples("Name the opposite.", [("hot", "cold"), ("up", "down")])
        >>> examples[0].prompt
        'Name the opposite.\n\nup\ndown\n\nhot'
        >>> examples[0].response
        'cold'
    """
    if not pairs:
        raise RecordError("field 'pairs' is empty; add at least one query with its response, or leave the row out.")
    made = []
    for number, (query, response) in enumerate(pairs):
        context = [f"{asked}\n{answer}" for other, (asked, answer) in enumerate(pairs) if other != number]
        prompt = "\n\n".join([instruction, *context, query])
        made.append(Demonstration(prompt, response, user, source, labels))
    return made
