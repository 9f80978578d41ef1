"""The format of prompts: which one holds, and what a model folder says of the one that it was trained with."""

from typing import Any, Literal, NamedTuple, get_args

from transformers import PreTrainedTokenizerBase

FormatName = Literal["chat", "template", "plain"]
CHAT, TEMPLATE, PLAIN = (str(name) for name in get_args(FormatName))
PROMPT, RENDERED = "{prompt}", "{rendered}"
"""Stand in a prompt template for text of people, and for a conversation that some template wrote already."""
KEPT = "prompt_format"
"""A field of `tokenizer_config.json`: the format that a model was trained with."""


class PromptFormat(NamedTuple):
    """How a string becomes the text that the model continues.

    Args:
        name: ``chat``: as the one message of a user, by the chat template; ``template``: by a prompt template;
            ``plain``: with a blank line behind it.
        template: The prompt template of the last two.
    """

    name: str
    template: str | None = None

    def __str__(self) -> str:
        """As a message names it."""
        return self.name if self.name != TEMPLATE else f"{self.name} {self.template!r}"


def prompt_format(
    tokenizer: PreTrainedTokenizerBase, name: str | None = None, template: str | None = None
) -> PromptFormat:
    """The format that holds for a model.

    Args:
        tokenizer: The tokenizer of the model.
        name: ``chat``, ``template`` or ``plain``. None is ``template`` where one is given, else the format that our
            export of the model was trained with, else ``chat`` where it has a chat template, else ``plain``.
        template: The prompt template.

    Raises:
        ValueError: When the format is unknown, lacks what it needs, or has no use for the template.
    """
    if template is not None and PROMPT not in template and RENDERED not in template:
        raise ValueError(f"prompt_template must contain '{PROMPT}', got {template!r}.")
    if template is not None and "\\n" in template:
        raise ValueError(
            f"prompt_template holds a backslash and an n, got {template!r}. Write a line end: in YAML within double "
            "quotes, on the command line of bash as $'data.lengths.prompt_template=\"Q: {prompt}\\nA:\"'."
        )
    if name is None:
        kept = kept_format(tokenizer)
        if template is None and kept is not None:
            return kept
        name = TEMPLATE if template is not None else CHAT if tokenizer.chat_template else PLAIN
    if name not in (CHAT, TEMPLATE, PLAIN):
        raise ValueError(f"data.format must be {CHAT}, {TEMPLATE}, {PLAIN} or null (by model), got {name!r}.")
    if name == TEMPLATE and template is None:
        raise ValueError(f'data.format={TEMPLATE} needs the template: data.lengths.prompt_template="... {PROMPT} ...".')
    if name != TEMPLATE and template is not None:
        raise ValueError(
            f"data.format={name} makes no use of prompt_template={template!r}. Set data.format={TEMPLATE}, or "
            "data.lengths.prompt_template=null."
        )
    if name == CHAT and not tokenizer.chat_template:
        raise ValueError(
            f"data.format={CHAT}, but the tokenizer {tokenizer.name_or_path or ''} has no chat template. Set "
            f"model.chat_template=<file or name>, or data.format={PLAIN}."
        )
    return PromptFormat(name, f"{PROMPT}\n\n" if name == PLAIN else template)


def kept_format(tokenizer: PreTrainedTokenizerBase) -> PromptFormat | None:
    """The format that a model exported by us was trained with; None of any other model."""
    kept: Any = tokenizer.init_kwargs.get(KEPT)
    return None if kept is None else PromptFormat(kept["name"], kept["template"])


def keep_format(tokenizer: PreTrainedTokenizerBase, held: PromptFormat) -> None:
    """Let a tokenizer remember the format, and the chat template that it has without it."""
    tokenizer.init_kwargs[KEPT] = {**held._asdict(), "chat_template": tokenizer.chat_template}


def forget_format(tokenizer: PreTrainedTokenizerBase) -> None:
    """What the tokenizer remembers no longer holds."""
    tokenizer.init_kwargs.pop(KEPT, None)
