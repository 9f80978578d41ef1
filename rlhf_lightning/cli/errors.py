"""What a command says when it cannot go on: a sentence, or where the user's own code broke."""

import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
import torch
import transformers
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text
from yaml import YAMLError

from rlhf_lightning.cli.configuration import composed
from rlhf_lightning.parallel.processes import says
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.secrets import redacted
from rlhf_lightning.runs.terminal import harmless

FORESEEN = (
    PipelineError,
    MisconfigurationException,
    ValueError,
    OSError,
    ImportError,
    SyntaxError,
    YAMLError,
    HydraException,
    OmegaConfBaseException,
)
"""Errors whose message is a sentence for the user; of any other the place in the code is said too."""
PACKAGE = Path(__file__).parents[1]
LIBRARIES = [
    *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(Path(library.__file__).resolve().parents[1] for library in (hydra, torch, transformers)),
]
"""Where code lies that is nobody's here; libraries may also be somewhere else on the path."""


def report(error: BaseException, folder: Path | None = None) -> str:
    """Print what was wrong to standard error, without secrets.

    Args:
        error: What was raised.
        folder: The run's folder, which gets `error.txt` with the traceback of an error that nobody foresaw.

    Returns:
        The sentence.
    """
    said, where = sentence(error), [*getattr(error, "__notes__", ())]
    if not says(error):
        return str(redacted(said))
    trace = "".join(traceback.format_exception(error))
    own = own_traceback(error)
    console = Console(stderr=True, soft_wrap=True)
    if os.environ.get("HYDRA_FULL_ERROR"):
        _print(console, trace)
    elif own is not None:
        _print(console, own)
    elif isinstance(error, FORESEEN):
        where.append("HYDRA_FULL_ERROR=1 shows where")
    elif folder is not None and folder.is_dir():
        (folder / "error.txt").write_text(redacted(trace), encoding="utf-8", errors="backslashreplace")
        where.append(f"nobody foresaw this; {folder / 'error.txt'} has the traceback")
    else:
        _print(console, trace)
    note = Text(redacted(f"({'; '.join(where)})"), "dim")
    console.print("[bold red]rlhf:[/]", Text(harmless(redacted(said))), sep=" ", end="\n" if "\n" in said else " ")
    console.print(note)
    return str(redacted(said))


def print_stopped(where: str) -> None:
    """Say that a command was stopped from the keyboard, and where it goes on."""
    console = Console(stderr=True, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
    console.print("[bold red]rlhf:[/]", Text(redacted(f"stopped {where}; the same command goes on from what is done.")))


def _print(console: Console, text: str) -> None:
    console.print(Text(harmless(redacted(text))), end="")


def sentence(error: BaseException) -> str:
    """One sentence or a few of what was wrong, by the kind of the error."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        others = ", ".join(error.options)
        return f"{group}={option}: there is no such option{_meant(option, error.options)} {group} has {others}."
    if isinstance(error, OverrideParseException):
        return f"{error.override} is no override of Hydra: {error.message.splitlines()[0]}. Quote what the shell reads."
    if isinstance(error, ConfigCompositionException):
        return _composition_sentence(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}."
    if "Config group override must be a string" in str(error):
        without = [argument for argument in sys.argv[1:] if argument.endswith(("=null", "=", "=[]"))]
        return f"{' '.join(without)}: a group needs an option. rlhf --help lists those of each group."
    if isinstance(error, FORESEEN):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}{_place(error)}"


def _composition_sentence(error: ConfigCompositionException) -> str:
    text = str(error)
    if found := re.match(r"Could not (?:override|append to|delete)[^']*'([^']+)'", text):
        return unknown_key(found[1], _known())
    if found := re.match(r"Multiple values for ([\w/@.]+)\.", text):
        return f"{found[1]} is a group, of which one option holds: write {found[1]}=<option>, without +."
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return " ".join(f"{text} {cause}".split())


def unknown_key(path: str, known: Mapping[str, Any]) -> str:
    """That a setting is not known, and which one may have been meant.

    Args:
        path: The setting, such as `sft.fit.epoch`.
        known: The whole configuration.
    """
    node: Any = known
    parts = path.split(".")
    for number, part in enumerate(parts):
        if not isinstance(node, Mapping) or part not in node:
            there = list(node) if isinstance(node, Mapping) else []
            near = get_close_matches(part, map(str, there), 1) or [name for name in there if name == parts[-1]]
            before = ".".join(parts[:number])
            meant = [".".join([*parts[:number], *near[:1], *parts[number + 1 :]])] if near else []
            meant = meant or [each for each in _paths(known) if each.endswith(f".{parts[-1]}")][:3]
            of_it = f" {before} has {', '.join(map(str, there))}." if number and there else ""
            did = f"; did you mean {' or '.join(meant)}?" if meant else "."
            return f"{path} is no setting{did}{of_it} rlhf --cfg job prints all of them."
        node = node[part]
    return f"{path} cannot be set so."


def _paths(node: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{before}{name}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{before}{name}.")


def _known() -> dict[str, Any]:
    GlobalHydra.instance().clear()
    return composed([])


def _meant(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else "."


def _place(error: BaseException) -> str:
    """The last line of the package on the way to an error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_below(frame.filename, [PACKAGE])]
    return f" (in {Path(frames[-1].filename).relative_to(PACKAGE)}, line {frames[-1].lineno})" if frames else ""


def own_traceback(error: BaseException) -> str | None:
    """The traceback from the first line of the user's own code on; None where none of it was on the way."""
    each: BaseException | None = error
    while each is not None:
        trace = each.__traceback__
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            if not file.startswith("<") and not _is_below(file, [PACKAGE, *LIBRARIES]):
                return "".join(traceback.format_exception(type(each), each, trace, chain=False))
            trace = trace.tb_next
        each = each.__cause__
    return None


def _is_below(file: str, folders: Iterable[Path]) -> bool:
    path = Path(file).resolve()
    return any(path.is_relative_to(folder) for folder in folders)
