"""The tokenizer of a model folder whose chat template writes what the model was trained on.

`pipeline`, servers and other trainers ask a model by its chat template alone. A model that was trained on a prompt
template, or on text before a blank line, gets one that writes just that; our own loader takes it off again.
"""

import copy
import re

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.tokenization.dialogue import DialogueEncoder
from rlhf_lightning.tokenization.endings import END_TOKENS, end_token_ids
from rlhf_lightning.tokenization.formats import CHAT, KEPT, PROMPT, RENDERED, forget_format, keep_format, kept_format

_QUESTION = "messages[0]['content']"
_PROBE = "ab c"
_REFUSAL = (
    "This model was trained on one question of a user and its answer. Its format (prompt_format in "
    "tokenizer_config.json) has no place for a system message or a further turn."
)


def as_trained(dialogue: DialogueEncoder) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer for a model that was trained on these prompts, to be written into its folder.

    Its chat template writes one question, the answer behind it with its end, and a BOS where the model read one.
    Other conversations go through the model's own chat template, as they do in training, or are refused where it has
    none. `tokenizer_config.json` keeps the format as `prompt_format`, the default of a later step.

    Args:
        dialogue: How the prompts were encoded.
    """
    tokenizer: PreTrainedTokenizerBase = copy.copy(dialogue.tokenizer)
    tokenizer.init_kwargs = dict(tokenizer.init_kwargs)
    keep_format(tokenizer, dialogue.format)
    if dialogue.format.name == CHAT:
        return tokenizer
    tokenizer.init_kwargs[END_TOKENS] = tokenizer.convert_ids_to_tokens(list(end_token_ids(tokenizer)))
    tokenizer.chat_template = _template(dialogue)
    return tokenizer


def restore(tokenizer: PreTrainedTokenizerBase) -> None:
    """Take the chat template of `as_trained` off a tokenizer that was read from a folder.

    One that somebody wrote there since is the model's own from now on.
    """
    kept = kept_format(tokenizer)
    if kept is None or kept.name == CHAT:
        return
    written, tokenizer.chat_template = tokenizer.chat_template, tokenizer.init_kwargs[KEPT]["chat_template"]
    if written != as_trained(DialogueEncoder(tokenizer)).chat_template:
        tokenizer.chat_template = written
        forget_format(tokenizer)


def _template(dialogue: DialogueEncoder) -> str:
    """The format as a chat template."""
    tokenizer, form = dialogue.tokenizer, str(dialogue.format.template)
    own = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if own is not None and RENDERED in form:  # by which strings were written before
        return own
    pieces = [piece for piece in re.split(f"({PROMPT}|{RENDERED})", form) if piece]
    written = " + ".join(_QUESTION if piece in (PROMPT, RENDERED) else _literal(piece) for piece in pieces)
    end = _literal(str(tokenizer.convert_ids_to_tokens(dialogue.text.ends[0])))
    answer = f"{_between(dialogue)}messages[1]['content'] + {end}"
    if own is None:
        other = f"{{{{- raise_exception({_literal(_REFUSAL)}) -}}}}"
    else:  # Jinja takes one line end off: of its own file, or behind the tag before it
        other = ("\n" if own.startswith("\n") else "") + own.removesuffix("\n")
    return (
        "{%- if messages[0]['role'] == 'user' and (messages | length == 1 or messages | length == 2 and "
        "messages[1]['role'] == 'assistant') -%}\n"
        f"{{{{- {_opening(dialogue, pieces)}{written} -}}}}\n"
        f"{{%- if messages | length == 2 -%}}{{{{- {answer} -}}}}{{%- endif -%}}\n"
        f"{{%- else %}}{other}{{% endif %}}"
    )


def _opening(dialogue: DialogueEncoder, pieces: list[str]) -> str:
    """What stands before the first piece so that the tokens are those of training: a BOS, perhaps a space, or nothing.

    Behind a special token, some tokenizers write no mark of a word's beginning where they do at the start of a text.
    """
    text, first = dialogue.text, pieces[0]
    opening = "".join(map(str, dialogue.tokenizer.convert_ids_to_tokens(text.opening)))
    if not opening or first.startswith(opening):
        return ""
    asked = dialogue.prompt_text(_PROBE)
    alone, spaced = text.rows([asked, f"{opening} {asked}"])
    space = " " if text.rows([opening + asked])[0] != [*text.opening, *alone] == spaced else ""
    if first not in (PROMPT, RENDERED):
        return f"{_literal(opening + space)} + "
    bos = _literal(opening) if not space else f"{_literal(opening)} + ('' if {_QUESTION}[0] == ' ' else ' ')"
    if first == RENDERED:
        return f"('' if {_QUESTION}.startswith({_literal(opening)}) else {bos}) + "
    return f"{bos} + "


def _between(dialogue: DialogueEncoder) -> str:
    """A space before the answer where that makes the tokens of training, which stand side by side without a text."""
    asked = dialogue.prompt_text(_PROBE)
    question, answer, joined, spaced = dialogue.text.rows([asked, _PROBE, asked + _PROBE, f"{asked} {_PROBE}"])
    return "' ' + " if joined != [*question, *answer] == spaced else ""


def _literal(text: str) -> str:
    """The text as a string of Jinja, in the escapes that all its implementations know."""
    for sign, escape in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(sign, escape)
    return f"'{text}'"
