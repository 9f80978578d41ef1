"""What a configuration may build: nodes with ``_target_``, each checked before any is built."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from rlhf_lightning.runs.folders import PipelineError

LIBRARIES = ("rlhf_lightning", "torch.nn", "torch.optim", "lightning", "transformers", "peft")
"""Packages whose classes a configuration may build; none of their functions, because some run what they are given."""
FACTORIES = (
    "rlhf_lightning.models.loading.load_causal_lm",
    "rlhf_lightning.models.scalar_head.load_scalar_model",
    "rlhf_lightning.sandbox.labelers.held_out_panel",
    "rlhf_lightning.sandbox.labelers.training_panel",
    "rlhf_lightning.sandbox.labelers.screened_labelers",
    "rlhf_lightning.sandbox.probes.sandbox_probes",
    "rlhf_lightning.sandbox.tokenizer.build_tokenizer",
    "rlhf_lightning.tokenization.loading.load_tokenizer",
    *(
        f"transformers.optimization.get_{name}"
        for name in (
            "constant_schedule",
            "constant_schedule_with_warmup",
            "cosine_schedule_with_warmup",
            "cosine_with_hard_restarts_schedule_with_warmup",
            "cosine_with_min_lr_schedule_with_warmup",
            "cosine_with_min_lr_schedule_with_warmup_lr_rate",
            "inverse_sqrt_schedule",
            "linear_schedule_with_warmup",
            "polynomial_decay_schedule_with_warmup",
            "wsd_schedule",
        )
    ),
)
"""Functions that a configuration may call."""
DISPATCHERS = ("lightning.pytorch.cli",)
"""Modules of those packages whose classes build whatever a text names."""
REMOTE_CODE = "transformers_modules"
"""The package that transformers imports the code of models as."""
TRUST = "trust_remote_code"
TRUSTS_CODE = (
    "=true lets code run that comes with the model. If you read and trust it, say so once more: "
    f"allowed_targets=[{REMOTE_CODE}], the package that transformers puts it into."
)
"""The setting that lets such code run, and what is said of it."""


def builder(more_targets: Sequence[str]) -> Callable[..., Any]:
    """A function that builds the object which a node with ``_target_`` describes, if every target in it is allowed.

    Nodes are those of Hydra: ``_args_`` are positional arguments, ``_partial_: true`` leaves the call for later, nodes
    among the arguments are built first. Texts stay as they are, whatever they contain.

    Args:
        more_targets: Packages that may be used besides ``LIBRARIES`` and ``FACTORIES``, their functions too.
    """

    def build(node: Any, **arguments: Any) -> Any:
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise PipelineError(f"an object is described by a mapping with _target_, got {node!r}.")
        for target in targets(node):
            if (reason := refusal(target, more_targets)) is not None:
                raise PipelineError(reason)
        return _built({**node, **arguments}, set(arguments))

    return build


def refusal(target: str, more: Sequence[str]) -> str | None:
    """Why a configuration may not build a target; None where it may. The rest is as for `is_allowed`."""
    if is_allowed(target, LIBRARIES, more):
        return None
    return (
        f"_target_ {target} is neither a class of {', '.join(LIBRARIES)} nor one of our functions that a configuration "
        "may call. If you trust it, add its package to allowed_targets."
    )


def targets(node: Any) -> Iterator[str]:
    """Every target in a configuration, however deep."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from targets(value)


def is_allowed(target: str, libraries: Sequence[str], more: Sequence[str]) -> bool:
    """Whether a target is a class of the libraries, one of ``FACTORIES``, or anything of the further packages.

    Raises:
        PipelineError: When it might be and cannot be found.
    """
    if not _within(target, (*libraries, *more)):
        return False
    found = found_target(target)
    # The name alone proves little: torch.nn.modules.module.os.system is a name in torch.nn.
    home = getattr(found, "__module__", None) or ""
    if _within(home, more):
        return True
    if isinstance(found, type):
        return _within(home, libraries) and not _within(home, DISPATCHERS)
    return f"{home}.{getattr(found, '__qualname__', '')}" in FACTORIES


def _built(node: Any, given: set[str] | frozenset[str] = frozenset()) -> Any:
    """The node with everything in it built; arguments that are ``given`` are objects already."""
    if isinstance(node, (list, tuple)):
        return [_built(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    parts = {name: value if name in given else _built(value) for name, value in node.items()}
    if "_target_" not in parts:
        return parts
    target, positional = str(parts["_target_"]), parts.get("_args_", [])
    named = {name: value for name, value in parts.items() if name not in ("_target_", "_args_", "_partial_")}
    missing = [name for name, value in named.items() if isinstance(value, str) and value == "???"]
    if missing:
        raise PipelineError(f"{target} needs {', '.join(missing)}: the configuration has '???' there. Give a value.")
    call = partial(found_target(target), *positional, **named)
    if parts.get("_partial_", False):
        return call
    try:
        return call()
    except PipelineError:
        raise
    except Exception as error:
        raise PipelineError(f"{target} cannot be built: {error}") from error


def found_target(target: str) -> Any:
    """The class or function of that full name; a `PipelineError` where there is none."""
    names = target.split(".")
    reason: Exception = ImportError("there is no such name")
    for count in range(len(names), 0, -1):
        try:
            found = importlib.import_module(".".join(names[:count]))
        except ModuleNotFoundError as error:
            if error.name is None or not _within(target, (error.name,)):
                reason = error  # a module that is there needs another one
                break
            continue
        except Exception as error:
            reason = error
            break
        try:
            for name in names[count:]:
                found = getattr(found, name)
            return found
        except AttributeError as error:
            reason = error
            break
    raise PipelineError(f"_target_ {target} cannot be found: {reason}. Check how it is spelled.") from reason


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def named_function(name: str, more: Sequence[str]) -> Callable[..., Any]:
    """The function that a setting names as ``module:function``.

    Its module lies in the working directory, or in a package that is allowed: settings of others must not name any
    function that is installed.

    Args:
        name: The module and the function in it.
        more: Packages that may be used besides the working directory.

    Raises:
        PipelineError: When it is neither, or there is no such function.
    """
    module, _, attribute = name.partition(":")
    here = Path.cwd()
    if _is_here(here, module):
        if str(here) not in sys.path:
            sys.path.insert(0, str(here))  # as `python -m` does, and the console script does not
    elif not _within(module, more):
        raise PipelineError(
            f"{name} is no function of the working directory ({here} has no {module.replace('.', '/')}.py) nor of a "
            "package in allowed_targets. Run from the folder of the file, or, if you trust the package, add it there."
        )
    found = getattr(importlib.import_module(module), attribute, None)
    home = getattr(found, "__module__", None) or type(found).__module__
    # A module has more names than its own: system, where it says `from os import system`.
    if not callable(found) or not (_within(home, more) or _is_here(here, home)):
        file = getattr(sys.modules[module], "__file__", None)
        raise PipelineError(f"{name} cannot be used: {file or module} defines no function {attribute}. Mend the name.")
    return cast(Callable[..., Any], found)


def _is_here(folder: Path, module: str) -> bool:
    """Whether the folder has the module, and no other one of that name is loaded."""
    path = folder.joinpath(*module.split("."))
    files = {path.with_suffix(".py").resolve(), (path / "__init__.py").resolve()}
    loaded = getattr(sys.modules.get(module), "__file__", None)
    return any(file.is_file() for file in files) and (loaded is None or Path(loaded).resolve() in files)
