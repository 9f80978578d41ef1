"""What a command says when it cannot go on: a sentence, or where the user's own code broke."""

import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
import torch
import transformers
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text
from yaml import YAMLError

from rlhf_lightning.cli.configuration import CONFIG_DIR, composed
from rlhf_lightning.parallel.processes import says
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.recipe.settings import setting_faults
from rlhf_lightning.runs.errors import WaitingError
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
MERGED = "{0} is a node, and Hydra adds to it; to replace it write '~{0}' '+{0}=<value>'."
KNOWN = (
    (r"Error merging override ([^=]+)=", MERGED),
    (
        r"Could not append to config\. An item is already at '([^']+)'",
        "{0} has a value already: write {0}=<value>, without +.",
    ),
    (r"Could not delete from config\. [^']*'([^']+)'", "{0} is not there, so that it cannot be taken out."),
    (
        r"Multiple values for ([\w/@.]+)\.",
        "{0} is a group, of which one option holds: write {0}=<option>, without +.",
    ),
    (
        r"(?s).*Missing mandatory value: ([\w.]+)",
        "{0} has no value, and the chosen options need one. Give it: {0}=<value>.",
    ),
    (r"In '.*?': Could not load '([^']+)'", "{0} is no option. rlhf --help lists those of each group."),
    (
        r"(Cannot find primary config '.*?')",
        "{0}. The primary configuration is called config; leave --config-name out.",
    ),
    (
        "BasicSweeper does not support sweep type : INTERVAL",
        "an interval is for a sweeper that draws from it, such as that of hparams_search=tax. Name values instead.",
    ),
)
"""How Hydra's and OmegaConf's sentences begin, and ours in their place."""
PACKAGE = Path(__file__).parents[1]
LIBRARIES = [
    *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(Path(str(library.__file__)).resolve().parents[1] for library in (hydra, torch, transformers)),
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
    own = own_traceback(error)
    said = sentence(error) if own is None else traceback.format_exception_only(error)[0].strip()
    if not says(error):
        return str(redacted(said))
    where, trace = [*getattr(error, "__notes__", ())], "".join(traceback.format_exception(error))
    console = Console(stderr=True, soft_wrap=True)
    if os.environ.get("HYDRA_FULL_ERROR"):
        _print(console, trace)
    elif own is not None:
        _print(console, own)
    elif isinstance(error, FORESEEN):
        where.append("HYDRA_FULL_ERROR=1 shows where")
    elif folder is not None and _kept(folder / "error.txt", redacted(trace)):
        where.append(f"nobody foresaw this; {folder / 'error.txt'} has the traceback")
    else:
        _print(console, trace)
    note = Text(redacted(f"({'; '.join(where)})"), "dim")
    console.print("[bold red]rlhf:[/]", Text(harmless(redacted(said))), sep=" ", end="\n" if "\n" in said else " ")
    console.print(note)
    return str(redacted(said))


def _kept(file: Path, text: str) -> bool:
    """Whether a file could be written; its folder need not be there."""
    try:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return False
    return True


def print_stopped(where: str) -> None:
    """Say that a command was stopped from the keyboard, and where it goes on."""
    console = Console(stderr=True, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
    console.print("[bold red]rlhf:[/]", Text(redacted(f"stopped {where}; the same command goes on from what is done.")))


def print_waiting(waiting: WaitingError) -> None:
    """Say what people are to do, without an alarm: nothing is wrong."""
    console = Console(soft_wrap=True, quiet=not says(waiting))
    console.print("[bold]rlhf:[/]", Text(harmless(redacted(str(waiting)))))


def _print(console: Console, text: str) -> None:
    console.print(Text(harmless(redacted(text))), end="")


def sentence(error: BaseException) -> str:
    """One sentence or a few of what was wrong, by the kind of the error."""
    if isinstance(error, HydraException | OmegaConfBaseException) or "Config group override" in str(error):
        return _composition_sentence(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}."
    if isinstance(error, FORESEEN):
        return str(error) or type(error).__name__
    if isinstance(error, RuntimeError) and re.search(r"\bgloo\b|closed by peer|\bNCCL\b", str(error)):
        return "another process of this run ended, and what it said is the cause; the same command goes on from here."
    return f"{type(error).__name__}: {error}{_place(error)}"


def _composition_sentence(error: BaseException) -> str:
    """What Hydra and OmegaConf refuse, with the setting and what to write instead."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        others = ", ".join(error.options)
        named = any(each.startswith(("--config-dir", "-cd")) for each in sys.argv)
        own = "" if named else " A file of your own is found with --config-dir <folder>."
        return f"{group}={option}: there is no such option{_meant(option, error.options)} {group} has {others}.{own}"
    if isinstance(error, OverrideParseException):
        return f"{error.override} is no override of Hydra: {error.message.splitlines()[0]}. Quote what the shell reads."
    text = str(error)
    for pattern, words in KNOWN:
        if found := re.match(pattern, text):
            return words.format(*found.groups())
    if found := re.match(r"Could not override '([^']+)'", text):
        return _unknown(found[1])
    nothing = [each for each in sys.argv[1:] if each.startswith("~") or each.endswith(("=null", "=", "=[]"))]
    if "Config group override" in text:
        groups = nothing or [each for each in sys.argv[1:] if (CONFIG_DIR / each.partition("=")[0]).is_dir()]
        return f"{' '.join(groups)}: a group needs an option. rlhf --help lists those of each group."
    if "Unexpected type annotation: Set" in text:  # of Hydra's own class
        mixed = " and ".join(each for each in sys.argv[1:] if re.search(r"\b(interval|tag)\(", each) and "," in each)
        return f"{mixed}: a sweep has either values or one interval(low,high). Write one of them."
    if isinstance(error, OmegaConfBaseException):
        first = text.splitlines()[0].rstrip(".").removeprefix("ValueError raised while resolving interpolation: ")
        if nothing:
            return f"{first}. {' and '.join(nothing)} takes away what others refer to: set what it holds."
        return f"{error.full_key or 'a setting'}: {first}. Mend what it refers to."
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return " ".join(f"{text} {cause}".split())


def _unknown(setting: str) -> str:
    """Of a setting that no file of the chosen options has: whether there is one of that name, or which was meant."""
    arguments = get_args_parser().parse_args()
    added = [f"++{_one_value(each)}" if _names_a_key(each) else each for each in arguments.overrides]
    if arguments.config_dir:
        added.append(f"hydra.searchpath=[file://{Path(arguments.config_dir).absolute()}]")
    GlobalHydra.instance().clear()
    if setting.startswith("hydra."):
        return _unknown_to_hydra(setting, [each for each in added if not each.startswith("++")])
    values = [each.partition("=")[2] for each in arguments.overrides if each.startswith(f"{setting}=")]
    if not values:  # a sweeper's file names it
        added.append(f"++{setting}=null")
    try:
        faults = setting_faults(composed(added), RECIPE, [])
    except Exception:  # the command has further faults
        faults = setting_faults(composed([f"++{setting}=null"]), RECIPE, [])
    if values and values[0].startswith(("{", "[")):
        faults.append(MERGED.format(setting))
    elif not faults:
        return f"{setting} stands in no file of the chosen options; it can be set: write +{setting}=<value>."
    return "\n".join(faults)


def _unknown_to_hydra(setting: str, options: Sequence[str]) -> str:
    """The same of the node ``hydra``, as the options on the command line make it."""
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed_config = hydra.compose("config", [*options], return_hydra_config=True)
    node: Any = OmegaConf.to_container(composed_config, resolve=False)
    way, keys = [], setting.split(".")
    while len(keys) > 1 and isinstance(node.get(keys[0]), dict):
        node = node[keys[0]]
        way.append(keys.pop(0))
    parent = ".".join(way)
    if near := get_close_matches(keys[0], [str(name) for name in node], 1):
        return f"{parent}.{keys[0]} is no setting; did you mean {parent}.{near[0]}?"
    known = ", ".join(map(str, node)) or "nothing"
    return f"{parent}.{keys[0]} is not there; {parent} has {known}. +{setting}=<value> adds it."


def _one_value(override: str) -> str:
    """An override, of which a multirun tries several values, with the first of them."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    values = parsed.sweep_string_iterator() if parsed.is_choice_sweep() or parsed.is_range_sweep() else iter(["null"])
    return f"{parsed.get_key_element()}={next(values)}"


def _names_a_key(override: str) -> bool:
    """Whether an override is of a setting, and not of a group."""
    name = override.partition("=")[0].partition("@")[0]
    return not name.startswith(("+", "~")) and "/" not in name and not (CONFIG_DIR / name).is_dir()


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
