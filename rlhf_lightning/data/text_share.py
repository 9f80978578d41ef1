"""Pretraining text among demonstrations: how much of it makes a share of the rows, or of the tokens in the loss."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Literal

from rlhf_lightning.data.examples import LMExample

ShareOf = Literal["rows", "tokens"]


def loss_tokens(example: LMExample) -> int:
    """Tokens of a sequence that count in the loss; the first of all has nothing to be told from.

    Examples:
        >>> loss_tokens(LMExample([5, 6, 7, 8, 9], loss_start=3, earlier=[(0, 2)]))
        3
    """
    spans = [*example.earlier, (example.loss_start, len(example.input_ids))]
    return sum(max(end - max(start, 1), 0) for start, end in spans)


def mixed_text(
    examples: Sequence[LMExample], text: Sequence[LMExample], share: float, share_of: ShareOf
) -> list[LMExample]:
    """Rows of text that are a share of all rows, or that have a share of all tokens in the loss; they go round.

    Args:
        examples: The demonstrations.
        text: Rows of text.
        share: Share of the text in both together, in [0, 1).
        share_of: ``rows``, or ``tokens``: those that count in the loss, to half a row.

    Raises:
        ValueError: When the tokens wanted are less than half a row, or no row has any.
    """
    if share_of == "rows":
        return list(islice(cycle(text), round(len(examples) * share / (1 - share))))
    wanted = sum(map(loss_tokens, examples)) * share / (1 - share)
    rows: list[LMExample] = []
    seen = [row for row in text if loss_tokens(row)]
    if text and not seen:
        raise ValueError("text_share: no row of the text has a token in the loss. Give longer text, or text_share=0.")
    for row in cycle(seen):
        count = loss_tokens(row)
        if wanted < count / 2:
            break
        rows.append(row)
        wanted -= count
    if text and not rows:
        raise ValueError(
            f"text_share={share} of the tokens would be {wanted:.0f} tokens of text, less than half a row of "
            f"{loss_tokens(seen[0])}. Raise text_share, or lower block_size."
        )
    return rows


def text_shares(examples: Sequence[LMExample], text: Sequence[LMExample]) -> dict[str, float]:
    """Share of the text among the rows, and among the tokens in the loss, by the keys that they are logged as."""
    counts = [(len(rows), sum(map(loss_tokens, rows))) for rows in (examples, text)]
    (rows, tokens), (text_rows, text_tokens) = counts
    return {
        "train/text_row_share": text_rows / (rows + text_rows),
        "train/text_token_share": text_tokens / (tokens + text_tokens),
    }
