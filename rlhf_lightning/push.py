"""`rlhf-push`: upload one exported folder to the Hugging Face hub. Nothing else in the package uploads anything."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from rich.console import Console
from rich.text import Text

from rlhf_lightning.runs.exported import CONFIGS, exported_model
from rlhf_lightning.runs.hub import is_hub_id
from rlhf_lightning.runs.model_card import CARD
from rlhf_lightning.runs.secrets import redacted

_TEXTS = (".json", ".md", ".jinja", ".txt")
_KNOWN = (*_TEXTS, ".safetensors", ".model")
"""What an exported folder is made of; anything else was put there by somebody, or is a checkpoint."""
_LICENCES = ("LICENSE", "NOTICE", ".gitattributes")


def uploaded_files(folder: Path) -> list[Path]:
    """The files of an exported folder, all of which may be uploaded.

    Raises:
        ValueError: When the model is not whole, it has no card, or something in the folder should not be published.
    """
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    names = {str(file.relative_to(folder)) for file in files}
    if not names & set(CONFIGS) or not any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"{folder} holds no whole model: it needs a config and weights in safetensors.")
    for index in folder.glob("*.safetensors.index.json"):
        missing = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) - names
        if missing:
            raise ValueError(f"{folder} is not complete: it lacks {', '.join(sorted(missing))}. Export it again.")
    strange = [
        str(file.relative_to(folder))
        for file in files
        if file.is_symlink() or file.parent != folder or not (file.suffix in _KNOWN or file.name in _LICENCES)
    ]
    if strange:
        raise ValueError(
            f"{folder} holds what is no part of an exported model: {', '.join(strange[:5])}. Move it elsewhere; "
            "checkpoints, pickles, hidden files, links and folders are not uploaded."
        )
    card = folder / CARD
    if not card.exists() or not ModelCard.load(card).data.to_dict():
        raise ValueError(f"{folder} has no model card ({CARD} with metadata); run its step again to get one.")
    for file in files:
        if file.suffix in _TEXTS and file.name != "tokenizer.json":
            text = file.read_text(encoding="utf-8")
            if redacted(text) != text or (file.suffix == ".json" and redacted(data := json.loads(text)) != data):
                raise ValueError(f"{file} holds what looks like a key or a password; take it out.")
    _check_base(folder)
    return files


def _check_base(folder: Path) -> None:
    path = folder / "adapter_config.json"
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") if path.exists() else None
    if base is not None and not is_hub_id(base):
        raise ValueError(
            f"the adapter in {folder} belongs to {base}, a folder of this machine, which nobody else has. Push that "
            f"model first and set base_model_name_or_path in {path.name} to its id, or export merged weights."
        )


def push(folder: Path, files: Sequence[Path], repo_id: str, *, public: bool, revision: str | None) -> str:
    """Upload the files of a folder; returns where they are.

    Args:
        folder: The exported folder.
        files: Those of its files that are uploaded.
        repo_id: `owner/name`, or the name of a repository of one's own.
        public: Whether everybody may see it.
        revision: The branch; None is the main one.

    Raises:
        ValueError: When it is not to be public, and the repository is.
    """
    api = HfApi()
    place = api.create_repo(repo_id, private=not public, exist_ok=True, repo_type="model")
    if not public and not api.repo_info(place.repo_id, repo_type="model").private:
        raise ValueError(f"{place.repo_id} is there already and is public. Say --public, or name another.")
    if revision is not None:
        api.create_branch(place.repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=place.repo_id,
        folder_path=folder,
        revision=revision,
        allow_patterns=[file.name for file in files],
        commit_message="Upload a model of rlhf_lightning",
    )
    return str(commit.commit_url)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `rlhf-push`."""
    parser = argparse.ArgumentParser("rlhf-push", description="Upload one exported folder to the Hugging Face hub.")
    parser.add_argument("folder", help="a step of a run (runs/demo/ppo_ptx), or a folder of a model or an adapter")
    parser.add_argument("repo_id", help="owner/name on the hub; it is made if it is not there")
    parser.add_argument("--public", action="store_true", help="for everybody to see; otherwise it is private")
    parser.add_argument("--revision", help="a branch; otherwise the main one")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", options.repo_id, re.ASCII):
            raise ValueError(f"{options.repo_id!r} is no name of a repository; give owner/name.")
        folder = Path(exported_model(options.folder))
        if not folder.is_dir():
            raise ValueError(f"{options.folder} is no folder here.")
        files = uploaded_files(folder)
        who = "public" if options.public else "private"
        branch = f", branch {options.revision}" if options.revision else ""
        console.print(Text(f"{folder} to the {who} repository {options.repo_id}{branch} of the hub:"))
        for file in files:
            console.print(Text(f"  {file.name}  {file.stat().st_size:,} bytes"))
        if not options.yes and not _agreed():
            console.print("nothing was uploaded")
            sys.exit(1)
        place = push(folder, files, options.repo_id, public=options.public, revision=options.revision)
        console.print(Text(f"uploaded: {place}"))
    except (ValueError, OSError, RuntimeError) as error:
        Console(stderr=True, soft_wrap=True).print(Text(f"rlhf-push: {error}"))
        sys.exit(1)


def _agreed() -> bool:
    try:
        return input("Upload? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
