"""What ends a response: one set of tokens for sampling, targets of SFT, rewards and exports.

A model has often several. The turn of a chat template closes with another token than a document (Gemma's
`<end_of_turn>` and `<eos>`), and `generation_config.json` lists what a model was seen to end with (three tokens in
Llama 3 and Phi 3). The tokenizer carries the set; its `tokenizer_config.json` keeps what its other files do not say.
"""

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from rlhf_lightning.runs.hub import model_source
from rlhf_lightning.tokenization.chat import rendered_within_limits, template_date

END_TOKENS, _STRINGS = "end_tokens", "stop_strings"
"""Fields of `tokenizer_config.json`."""
_ANSWER = "rlhf"
"""Stands for an answer where a template shows what it writes behind one."""


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of every token that ends a response; the first one is written behind the responses of the data.

    They are those that `keep_endings` gave the tokenizer, or else the end of an assistant's turn in its chat template
    and its EOS token.

    Raises:
        ValueError: When there is none.
    """
    tokens = tokenizer.init_kwargs.get(END_TOKENS) or _own(tokenizer)
    if not tokens:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} has no token that ends a response; set model.eos.")
    return tuple(as_list(tokenizer.convert_tokens_to_ids(list(tokens))))


def stop_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts that end a response as well; mostly none."""
    return tuple(tokenizer.init_kwargs.get(_STRINGS, ()))


def keep_endings(
    tokenizer: PreTrainedTokenizerBase,
    source: str | None = None,
    tokens: Sequence[str] = (),
    strings: Sequence[str] = (),
) -> None:
    """Find what ends a response, and give it to the tokenizer.

    Args:
        tokenizer: The tokenizer of a model.
        source: Folder or hub id of the model: what its generation config lists counts too.
        tokens: The end tokens themselves, by text, instead of those that are found.
        strings: Texts that end a response as well.

    Raises:
        ValueError: When a token is none of the vocabulary, or a string is empty.
    """
    unknown = [token for token in tokens if token not in tokenizer.get_vocab()]
    if unknown:
        raise ValueError(
            f"model.eos names {unknown[0]!r}, which is no token of {tokenizer.name_or_path or 'the tokenizer'}. Name "
            "tokens of its vocabulary; a text of several tokens that ends a response belongs in model.stop."
        )
    if "" in strings:
        raise ValueError("model.stop has an empty text, which would end every response; leave it out.")
    kept = tokenizer.init_kwargs
    saved = kept.pop(END_TOKENS, None)
    found = list(tokens) or saved or [*_own(tokenizer), *_listed(tokenizer, source)]
    turn = turn_end(tokenizer)
    # What the template writes comes first: it is what the model was trained to end with.
    ordered = list(dict.fromkeys([turn, *found] if turn in found else found))
    if ordered != _own(tokenizer):
        kept[END_TOKENS] = ordered
    if strings:
        kept[_STRINGS] = list(strings)


def name_special_tokens(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's pad, BOS and end tokens into the configuration of a model, or of its generation."""
    ends = end_token_ids(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:  # some configurations take no None
        config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]


def disagreement(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """What keeps two models from reading the same tokens; None where nothing does."""
    if tokenizer.get_vocab() != other.get_vocab():
        return f"their vocabularies ({len(tokenizer)} and {len(other)} tokens)"
    if set(end_token_ids(tokenizer)) != set(end_token_ids(other)):
        ends = [tokenizer.convert_ids_to_tokens(list(end_token_ids(each))) for each in (tokenizer, other)]
        return f"the tokens that end a response ({ends[0]} and {ends[1]})"
    if tokenizer.chat_template != other.chat_template:
        return "their chat templates"
    if template_date(tokenizer) != template_date(other):
        return f"the day that their templates write ({template_date(tokenizer)} and {template_date(other)})"
    return None


def turn_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token that a chat template writes behind an assistant's answer.

    None without a template, and where it writes text there (`### Human:`) or nothing at all.
    """
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": _ANSWER}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = rendered_within_limits(tokenizer, messages)
    except (TemplateError, TypeError):  # refused with a sentence where a conversation is rendered
        return None
    behind = text.rpartition(_ANSWER)[2].lstrip()
    known = [*tokenizer.get_added_vocab(), str(tokenizer.eos_token or "")]
    return max((token for token in known if token and behind.startswith(token)), key=len, default=None)


def _own(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The end tokens that the tokenizer itself tells: of a turn, and of a document."""
    return list(dict.fromkeys(t for t in (turn_end(tokenizer), tokenizer.eos_token) if isinstance(t, str)))


def _listed(tokenizer: PreTrainedTokenizerBase, source: str | None) -> list[str]:
    """The end tokens that a model's folder lists, but for ids that are words or nothing: the self-check names them."""
    ids = [] if source is None else listed_end_ids(source)
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in ids if is_control_token(tokenizer, i)]


def is_control_token(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether an id is of a token that was added or is special, and no piece of text."""
    return token in tokenizer.added_tokens_decoder or token in tokenizer.all_special_ids


def listed_end_ids(source: str) -> list[int]:
    """The ids that end a text by a model's generation config, or, where it names none, by its config."""
    source = model_source(source)
    try:
        listed: Any = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:
        listed = None
    if listed is None:
        listed = PreTrainedConfig.get_config_dict(source)[0].get("eos_token_id")
    return as_list(listed)


def as_list(ids: int | list[int] | None) -> list[int]:
    """Ids of special tokens as configurations hold them: one, several or none."""
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
