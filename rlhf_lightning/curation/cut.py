"""Responses cut as text where they would be cut as tokens."""

from rlhf_lightning.data.tokenize import Tokenization


def cut_response(tokenization: Tokenization, response: str) -> str:
    """The text of as many tokens as a response may have; all of a shorter one.

    It is read back as at least as many tokens, so that no end follows it.
    """
    limit = tokenization.max_response_tokens
    # No token is shorter than a byte, but some tokenizers put one in front, and templates write some of their own.
    if not tokenization.dialogue.uses_chat and len(response.encode("utf-8", "replace")) + 1 < limit:
        return response
    length = len(tokenization.whole_response_ids(response))
    if length <= limit + 1:
        return response
    response = tokenization.dialogue.without_end(response)
    ids, ends = tokenization.text_ids(response), _token_ends(tokenization, response)
    for last in range(max(limit + 1 + len(ids) - length, 1), len(ids)):
        shorter = response[: ends[last - 1]] if ends else str(tokenization.tokenizer.decode(ids[:last]))
        # A word that is cut may make fewer tokens than it did as a part of the whole.
        if len(tokenization.whole_response_ids(shorter)) > limit:
            return shorter
    return response


def _token_ends(tokenization: Tokenization, text: str) -> list[int]:
    """Where each token of a text ends; empty where the tokenizer does not say."""
    if not tokenization.tokenizer.is_fast or tokenization.dialogue.text.as_text(text) != text:
        return []
    read = tokenization.tokenizer(text, add_special_tokens=False, truncation=False, return_offsets_mapping=True)
    return [end for _, end in read["offset_mapping"]]
