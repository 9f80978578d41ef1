"""Model cards: the README.md of an exported folder, which the hub reads and people too."""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download, try_to_load_from_cache
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhf_lightning.runs.files import replacing
from rlhf_lightning.runs.hub import is_hub_id, model_folder
from rlhf_lightning.runs.secrets import redacted

CARD = "README.md"
_SIGNATURE = re.compile(r"\n<!-- card of rlhf_lightning, unedited: (\w{16}) -->\n\Z")
_PATH = re.compile(r"(?:[/\\~]|[A-Za-z]:[/\\]|\.{1,2}[/\\]|[a-z]+://).*", re.DOTALL)


def signed(text: str) -> str:
    """A page with a last line by which `is_ours` knows that nobody has edited it.

    Examples:
        >>> page = signed("# A model")
        >>> is_ours(page), is_ours(page.replace("A model", "My model")), is_ours("# A model")
        (True, False, False)
    """
    text = text.rstrip() + "\n"
    return f"{text}\n<!-- card of rlhf_lightning, unedited: {_digest(text)} -->\n"


def is_ours(page: str) -> bool:
    """Whether a page is as it was written here."""
    found = _SIGNATURE.search(page)
    return found is not None and _digest(page[: found.start()]) == found[1]


def write_card(folder: Path, page: str) -> bool:
    """Write a signed page as the card of a folder; returns False where somebody's own stands there, which stays."""
    path = folder / CARD
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if before is not None and not is_ours(before):
        return False
    if page != before:
        with replacing(path) as file:
            file.write(page)
    return True


def card_page(data: ModelCardData, facts: Mapping[str, Any]) -> str:
    """The signed page of a model: metadata, then what `model_card.md` makes of the facts."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # it is Markdown; cells and code have filters
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cell=_cell, code=_code, string=partial(json.dumps, ensure_ascii=False))
    body = environment.get_template("model_card.md").render(facts)
    return signed(f"---\n{data.to_yaml()}\n---\n\n{body}")


def public(value: Any) -> Any:
    """Plain data as strangers may read it: without secrets, and with the last name of a path in place of the path.

    Examples:
        >>> public({"init": "/home/ann/models/gpt2", "path": "Qwen/Qwen3-0.6B"})
        {'init': 'gpt2', 'path': 'Qwen/Qwen3-0.6B'}
    """
    return _without_paths(redacted(value))


def hub_id(path: str) -> str | None:
    """The hub id that a model's path is; None of folders and of the models that ship in the package.

    Examples:
        >>> hub_id("Qwen/Qwen3-0.6B"), hub_id("sandbox/small"), hub_id("/models/gpt2")
        ('Qwen/Qwen3-0.6B', None, None)
    """
    return path if is_hub_id(path) and model_folder(path) == path else None


@cache
def licence(path: str) -> dict[str, Any]:
    """The fields `license`, `license_name` and `license_link` of a model's own card, as far as it has them.

    The card of a hub id is taken from the local cache, or else asked of the hub, which has just given the model.
    """
    try:
        text = _card_of(path)
        data = ModelCard(text, ignore_metadata_errors=True).data.to_dict() if text.startswith("---") else {}
    except (OSError, ValueError, TypeError):  # none, no network, no YAML
        data = {}
    return {name: data[name] for name in ("license", "license_name", "license_link") if data.get(name)}


def _card_of(path: str) -> str:
    if hub_id(path) is None:
        return (Path(model_folder(path)) / CARD).read_text(encoding="utf-8-sig")
    cached = try_to_load_from_cache(path, CARD)
    file = cached if isinstance(cached, str) else hf_hub_download(path, CARD, etag_timeout=5)
    return Path(file).read_text(encoding="utf-8-sig")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and _PATH.fullmatch(value) and "\n" not in value:
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _cell(value: Any) -> str:
    """A value within a table, as text: nothing in it ends the cell or begins an element."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text)


def _code(value: Any) -> str:
    """A value within a table, as code."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.replace("\n", "\\n").replace("`", "'")
    text = text if len(text) <= 160 else text[:160] + " ..."
    return f"`{text}`".replace("|", "\\|") if text.strip() else "(empty)"
