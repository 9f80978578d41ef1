"""Text that a tokenizer has no tokens for."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

MANY_UNKNOWN = 0.01
"""The share of unknown tokens from which they are pointed out."""


def unknown_tokens(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Sequence[int]]) -> tuple[float, list[int]]:
    """The share of tokens that stand for text that the tokenizer does not know, and the row that has the most.

    Tokenizers of bytes know every text, and some of them call their end token the unknown one.

    Args:
        tokenizer: The tokenizer.
        rows: Token ids that it made.

    Examples:
        >>> from rlhf_lightning import load_tokenizer
        >>> tokenizer = load_tokenizer("sandbox")
        >>> share, row = unknown_tokens(tokenizer, tokenizer(["the kettle", "the"])["input_ids"])
        >>> round(share, 2), tokenizer.decode(row)
        (0.33, 'the <unk>')
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return 0.0, []
    found = total = most = 0
    worst: list[int] = []
    for row in rows:
        count = list(row).count(unknown)
        found, total = found + count, total + len(row)
        if count > most:
            most, worst = count, list(row)
    return found / max(total, 1), worst
