"""What a step was made from, by content: never by the path or the name of a file."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import try_to_load_from_cache

from rlhf_lightning.runs.hub import ADAPTER_CONFIG, adapter_base, is_hub_id, model_folder
from rlhf_lightning.runs.row_books import first_other_row

CONTENT = "content:"
"""How a setting begins that named a file or a folder, before the digest of what that holds."""
OTHER_PLACE = ("_name_or_path", "name_or_path", "base_model_name_or_path", "transformers_version")
"""Keys of a model's JSON files that say where it was and who wrote it."""
_MODEL_SUFFIXES = (".safetensors", ".json", ".model", ".jinja", ".tiktoken")
_MODEL_NAMES = ("vocab.txt", "merges.txt")
_WEIGHTS = ("pytorch_model", "adapter_model")
"""How the names of ``.bin`` files with weights begin."""
_LEFTOVERS = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json")
_WRITERS = ("trainer", "callbacks")
"""Groups whose files are written, not read: what they name is there when a step goes on, and was not before."""
_NO_RECORDS = ("samples.", "dropped.", "tasks.", "answers.")
"""How JSONL files begin that nothing is learned from; people may go on writing answers."""
_OURS = "rlhf_lightning."
_PATIENCE = ("timeout", "retries", "concurrency", "batch_size", "api_key_env")
"""Settings of what has a ``url`` that change no answer."""
NOTHING: Mapping[Path, str] = MappingProxyType({})
MOST_SHOWN, _SHOWN = 12, 160
"""Differences that a message lists, and characters of each setting."""


def fingerprint(value: Any) -> str:
    """Short hash of plain data."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Data as JSON keeps it; what JSON does not know, as a string."""
    return json.loads(json.dumps(value, default=str))


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes; one that stayed as it is, by size and time, is read once in a process."""
    return str(once(_file_digest, file))


def model_fingerprint(path: str, code: bool = False, known: Mapping[Path, str] = NOTHING) -> str:
    """What a model is by content: a folder's weights, configuration and tokenizer, of an adapter with its model.

    Cards, code and what trainings leave beside a model do not count. A hub id is itself, with the commit that is in
    the local cache.

    Args:
        path: A folder, a file or a hub id.
        code: Whether the folder's code runs (``trust_remote_code``), and counts.
        known: Digests of files that need not be read for it, by their resolved paths.
    """
    folder = Path(path)
    if not folder.exists():
        return _hub_commit(path)
    if folder.is_file():
        return file_digest(folder)[:16]
    base = adapter_base(path)
    found = [] if base is None else [model_fingerprint(base, code, known)]
    if _holds_model(folder):
        files = sorted(file for file in folder.iterdir() if file.is_file() and is_of_model(file, code))
    else:
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    for file in files:
        digest = once(_json_digest, file) if file.suffix == ".json" else _digest(file, known)
        found.append(f"{file.relative_to(folder).as_posix()} {digest}")
    return fingerprint(found)


def is_of_model(file: Path, code: bool = False) -> bool:
    """Whether what a file holds makes its folder's model another one; code does where it runs."""
    if file.suffix == ".bin":
        return file.name.startswith(_WEIGHTS)
    if file.suffix == ".py":
        return code
    return file.name in _MODEL_NAMES or (file.suffix in _MODEL_SUFFIXES and file.name not in _LEFTOVERS)


def record_files(folder: Path) -> list[Path]:
    """The records that a step left, without what it left out, samples, and what people were asked."""
    return sorted(file for file in folder.glob("*.jsonl") if not file.name.startswith(_NO_RECORDS))


def records_fingerprint(folder: Path, known: Mapping[Path, str] = NOTHING) -> str:
    """What these hold; "" where there are none. ``known`` as for `model_fingerprint`."""
    files = record_files(folder)
    return fingerprint({file.name: _digest(file, known) for file in files}) if files else ""


def by_content(value: Any, names: Collection[str] = (), code: bool = False, key: str = "") -> Any:
    """Settings in which a digest stands for each file and each model folder that they name.

    Args:
        value: Settings as plain types.
        names: Names of steps; no path, whatever lies here.
        code: As for `model_fingerprint`.
        key: The key that the value stands under; a folder under ``path`` counts, whatever is in it.
    """
    if key in _WRITERS:
        return value
    if isinstance(value, Mapping):
        # How somebody behind an address is asked is nothing to what they say; what a user's object does is not known.
        ours = str(value.get("_target_", _OURS)).startswith(_OURS)
        patience = _PATIENCE if ours and isinstance(value.get("url"), str) else ()
        return {name: by_content(item, names, code, name) for name, item in value.items() if name not in patience}
    if isinstance(value, list | tuple):
        return [by_content(item, names, code, key) for item in value]
    if not isinstance(value, str) or value.partition("/")[0] in names:
        return value
    value = model_folder(value) if key == "path" else value
    if not os.path.exists(value):
        return value
    path = Path(value)
    if path.is_dir():
        counts = _holds_model(path) or (key == "path" and not Path.cwd().is_relative_to(path.resolve()))
    else:
        # A bare word such as `source` is an option, even where a file is called so.
        counts = path.is_file() and (path.suffix != "" or len(path.parts) > 1)
    return CONTENT + model_fingerprint(value, code) if counts else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """How what a step was made from differs from what it would be made from: settings, files, rows.

    Args:
        old: The step's ``stage.json``: ``identity``, and ``records`` where it is known which rows there were.
        new: The same as it would be now.
    """
    before, now = old["identity"], new["identity"]
    for key in sorted(before.keys() | now.keys()):
        empty: Any = {} if key in ("config", "parents") else None
        one, other = before.get(key, empty), now.get(key, empty)
        if key == "config":
            # Of the data a step's configuration has the lengths alone.
            there, here = ({**each, "data": {"lengths": each.get("data")}} for each in (one, other))
            yield from _setting_differences(there, here, "")
        elif key == "parents":
            for role in sorted(one.keys() | other.keys()):
                # What a setting names is told of as a setting.
                if not role.startswith(CONTENT) and not _same_model(one.get(role), other.get(role)):
                    yield f"parents.{role}: {one.get(role)!r} there, {other.get(role)!r} now, by content"
        elif key == "data" and one != other:
            found = list(_record_differences(old, new))
            yield from found or [f"data: other records ({one!r} there, {other!r} now)"]
        else:
            yield from _setting_differences(one, other, key)


def listed(old: Mapping[str, Any], new: Mapping[str, Any], found: Sequence[str]) -> str:
    """The differences, as far as a message can show them; arguments as those of `differences`."""
    if "environment" in new and "environment" not in old:
        return (
            "an earlier version of rlhf_lightning made it, which knew data and models by their paths, so whether they "
            f"are the same cannot be told ({len(found)} differences)."
        )
    more = [f"and {len(found) - MOST_SHOWN} more"] if len(found) > MOST_SHOWN else []
    return "\n  ".join([*found[:MOST_SHOWN], *more])


def git_commit() -> str | None:
    """The commit of the checkout that holds the package, with ``-dirty`` where files differ; None of an installed one.

    The working directory does not matter.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def processor() -> str:
    """The name of the CPU."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def once(value_of: Callable[..., Any], file: Path) -> Any:
    """What a cached function finds of a file and its state: as long as the file stays as it is, it is read once."""
    state = file.stat()
    return value_of(file.resolve(), state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@cache
def _file_digest(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _json_digest(path: Path, *state: int) -> str:
    """Of what the file says: neither the order of keys counts, nor where the model was."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return _file_digest(path, *state)
    kept = {key: item for key, item in value.items() if key not in OTHER_PLACE} if isinstance(value, dict) else value
    return fingerprint(kept)


def _digest(file: Path, known: Mapping[Path, str]) -> str:
    return known.get(file.resolve()) or file_digest(file)


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def _hub_commit(name: str) -> str:
    if not is_hub_id(name):
        return name
    cached = (try_to_load_from_cache(name, file) for file in ("config.json", ADAPTER_CONFIG))
    found = next((Path(file).parent.name for file in cached if isinstance(file, str)), None)
    return f"{name}@{found}" if found else name


def _same_model(old: str | None, new: str | None) -> bool:
    """Whether two digests are equal, or the same hub id, of which one time no commit was known."""
    (one, _, commit), (other, _, another) = (str(name).partition("@") for name in (old, new))
    return old == new or (one == other and not (commit and another))


def _records(stage: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (stage.get("records") or {}).get(part) or {}
    return found


def _setting_differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Differences of settings, each with the name that overrides it."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _setting_differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for one, other in zip(old, new, strict=True):
            yield from _setting_differences(one, other, path)
    elif old != new:
        yield f"{path}: {_shown(old)} there, {_shown(new)} now"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _record_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """By kind and split: which file, which rows; of sources without files, which argument."""
    if _records(old, "source") and _records(new, "source"):
        yield from _setting_differences(_records(old, "source"), _records(new, "source"), "data.source")
        return
    before, now = _records(old, "files"), _records(new, "files")
    for name in sorted(before.keys() | now.keys()) if before and now else ():
        books = before.get(name, []), now.get(name, [])
        if len(books[0]) != len(books[1]):
            names = [", ".join(book["file"] for book in one) or "no file" for one in books]
            yield f"data.{name}: {names[0]} there, {names[1]} now"
            continue
        for one, other in zip(*books, strict=True):
            yield from _setting_differences(one["options"], other["options"], f"data.source.files.{name}")
            if one["digest"] != other["digest"]:
                yield f"data.{name}: {other['file']} {_rows_that_differ(one, other)}"


def _rows_that_differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    place = first_other_row(old, new) if "rows" in old and "rows" in new else None
    if place is None:
        return "differs"
    rows = f"row {place[0]:,}" if place[0] == place[1] else f"one of the rows {place[0]:,} to {place[1]:,}"
    if old["rows"] == new["rows"]:
        return f"{rows} differs" if place[0] == place[1] else f"differs, first in {rows}"
    return f"has {old['rows']:,} rows there, {new['rows']:,} now; the first other one is {rows}"
