"""What a model will read of a demonstration, by the chat template in its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlhf_lightning.data.records import PromptText
from rlhf_lightning.runs.files import read_json

Preview = Callable[[PromptText, str], str]
"""Prompt and response as a model reads them."""
TEMPLATE = "chat_template.jinja"


def template_preview(folder: Path) -> Preview:
    """Prompts and responses as the chat template of a model's folder writes them.

    Args:
        folder: A model's folder, with `chat_template.jinja` and perhaps `tokenizer_config.json`.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda _: "(today)"}
    template = environment.from_string((folder / TEMPLATE).read_text(encoding="utf-8"))
    config = folder / "tokenizer_config.json"
    named: dict[str, Any] = read_json(config) if config.exists() else {}
    tokens = {
        name: value if isinstance(value, str) else (value or {}).get("content", "")
        for name, value in named.items()
        if name.endswith("_token") and isinstance(value, str | dict | None)
    }

    def preview(prompt: PromptText, response: str) -> str:
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = [*asked, {"role": "assistant", "content": response}]
        try:
            return template.render(messages=messages, add_generation_prompt=False, **tokens)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            return f"The chat template cannot write this: {error}"

    return preview


def _refuse(message: str) -> None:
    raise TemplateError(message)
