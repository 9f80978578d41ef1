"""What lies on this machine, and what may be asked of the Hugging Face hub."""

import json
import re
from pathlib import Path

_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SHIPPED = Path(__file__).parents[1] / "sandbox" / "base"
_SIZES = ("small", "medium", "large")
ADAPTER_CONFIG = "adapter_config.json"
"""What PEFT writes beside the weights of an adapter."""
_FILE_SUFFIXES = (
    ".json",
    ".jsonl",
    ".csv",
    ".parquet",
    ".arrow",
    ".gz",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
)


def is_hub_id(name: str) -> bool:
    """Whether a name may be asked of the hub: `name` or `owner/name`, where neither it nor the owner is a path here.

    Examples:
        >>> [is_hub_id(name) for name in ("gpt2", "Qwen/Qwen3-0.6B", "./gpt2", "runs/demo/sft", "model.safetensors")]
        [True, True, False, False, False]
    """
    here = Path(name).exists() or Path(name.partition("/")[0]).is_dir()
    return _ID.fullmatch(name) is not None and not here and not name.endswith(_FILE_SUFFIXES)


def here_or_hub_id(path: str) -> str:
    """The path itself, if something is there or the hub may be asked for it: a mistyped path asks nobody.

    Raises:
        FileNotFoundError: When nothing is there and it looks like a path.
    """
    if not Path(path).exists() and not is_hub_id(path):
        raise FileNotFoundError(
            f"there is no file or folder {path} here, and it looks like a path, so the hub is not asked. "
            "Mend the path; an id of the hub is 'name' or 'owner/name', where no folder here has the owner's name."
        )
    return path


def model_folder(path: str) -> str:
    """The folder of a model: `sandbox/small`, `sandbox/medium` and `sandbox/large` ship in the package.

    Any other path, or hub id, stands for itself; `sandbox` is short for `sandbox/medium`.

    Raises:
        ValueError: When the sandbox has no model of that size.
    """
    name, _, size = path.partition("/")
    if name != "sandbox":
        return path
    if (size or "medium") not in _SIZES:
        raise ValueError(f"the sandbox has no model {path!r}; it has sandbox/{', sandbox/'.join(_SIZES)}.")
    return str(_SHIPPED / (size or "medium"))


def model_source(path: str) -> str:
    """The folder of a model (`model_folder`), or its hub id; nothing is asked of the network for a mistyped path.

    Raises:
        FileNotFoundError: When nothing is there and it looks like a path.
    """
    return here_or_hub_id(model_folder(path))


def adapter_base(source: str) -> str | None:
    """Folder or hub id of the model that the adapter in a folder belongs to; None where the folder holds no adapter.

    A path is looked for from here, as PEFT does, from the adapter's folder, and, for a `base` that was written beside
    the adapter, there.

    Raises:
        FileNotFoundError: When that model is not there.
        ValueError: When the folder does not say which it is, holds a model too, or names another adapter.
    """
    folder = Path(source)
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    named = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if any(folder.glob("model*.safetensors")):
        raise ValueError(f"{source} holds both a model and an adapter; take one of them out.")
    if not named:
        raise ValueError(f"{folder / ADAPTER_CONFIG} names no model; set base_model_name_or_path in it.")
    beside = [folder.parent / "base"] if Path(named).name == "base" else []
    found = [str(place) for place in (Path(named), folder / named, *beside) if place.exists()]
    if not found and not is_hub_id(named):
        raise FileNotFoundError(
            f"the adapter {source} belongs to the model {named}, which is not here. Put that model there, or set "
            f"base_model_name_or_path in its {ADAPTER_CONFIG} to where it is."
        )
    base = (found or [named])[0]
    if (Path(base) / ADAPTER_CONFIG).is_file():
        raise ValueError(f"the adapter {source} belongs to {base}, which is an adapter too; merge that one first.")
    return base
