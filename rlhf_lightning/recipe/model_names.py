"""The models that settings name: whether they are there, or will be, before the first step of a run is made.

Every function gives a sentence for each thing that lacks, without the name of the step. No model is loaded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode, try_to_load_from_cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_lightning.arguments import did_you_mean, nearest
from rlhf_lightning.evaluation.tables import JUDGE, REWARD
from rlhf_lightning.models.loading import model_config
from rlhf_lightning.models.scalar_head import HEAD_FILE
from rlhf_lightning.recipe.context import BASE, FEW_SHOT, MISSING, PRETRAIN, SCORES, WRITES, Context
from rlhf_lightning.recipe.messages import not_made, row_lengths, too_long
from rlhf_lightning.runs.exported import exported_model
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.hub import here_or_hub_id, is_hub_id, model_folder

_BASE_PATH = "model.path"
MEASURED = "benchmarks.policies"
_OTHER_ROWS = (REWARD, JUDGE, MEASURED)
"""Settings of models that read other rows than those of the records' lengths."""
_MODELS = {WRITES: "a model that writes responses", SCORES: "a reward model"}


def models_lacking(context: Context, models: Callable[[Context], Mapping[str, str]]) -> Iterator[str]:
    """Whether the models are there that a step names, by their role."""
    try:
        named = models(context)
    except PipelineError as error:
        yield str(error)
        return
    for role, name in named.items():
        if role == "comparisons":  # made by a step, and no model
            continue
        scores = role.startswith((REWARD, JUDGE, "value"))
        yield from model_lacking(context, role, name, (SCORES, WRITES) if scores else (WRITES,))


def model_lacking(context: Context, role: str, name: str, kinds: tuple[str, ...] = (WRITES,)) -> Iterator[str]:
    """Whether there is a model of that name, by the names of `Context.model_path`.

    Args:
        context: Models and settings of the run.
        role: The setting that names it, such as `init`.
        name: The name; `MISSING` where the option leaves it to the user.
        kinds: What it may be.
    """
    if name == MISSING:
        yield f"{role} is still to be given. {_named(context, kinds)}"
        return
    step, _, variant = name.partition("/")
    if name == BASE:
        yield from base_lacking(context)
    elif step in context.steps:
        yield from _step_lacking(context, role, name, kinds)
    elif step in (BASE, FEW_SHOT):
        only = "is only a policy of step evaluate" if name == FEW_SHOT else "has no variants"
        yield f"{role}={name}: {step} {only}. {_named(context, kinds)}"
    else:
        known = [BASE, *(other for other, leaves in context.steps.items() if leaves)]
        near = nearest(step.lower(), known)
        alike = near and (not variant or variant in ("raw", "best") or variant.startswith(("epoch-", "batch-")))
        if alike and not Path(name).exists() and not _is_cached(name):
            meant = f"{near}/{variant}" if variant else near
            yield f"{role}={name} is no step and no folder here. Did you mean {meant}? {_named(context, kinds)}"
        elif faults := list(folder_lacking(context, role, name)):
            yield from faults
        elif SCORES not in kinds and (Path(model_folder(str(context.model_path(name)))) / HEAD_FILE).exists():
            yield f"{role}={name} is a reward model, which writes no responses. {_named(context, kinds)}"


def named_twice(role: str, names: Sequence[str]) -> Iterator[str]:
    """A sentence for what a list names twice, also where the same folder has two names."""
    first: dict[str, str] = {}
    for name in names:
        place = str(Path(name).resolve()) if Path(name).exists() else name
        if place in first:
            yield f"{role} names {first[place]} twice" + (f", once as {name}" if name != first[place] else "") + "."
        first.setdefault(place, name)


def _step_lacking(context: Context, role: str, name: str, kinds: tuple[str, ...]) -> Iterator[str]:
    step, _, variant = name.partition("/")
    leaves, folder = context.steps[step], None if step in context.coming else context.runs.find(step)
    if leaves not in kinds:
        instead = _MODELS.get(leaves, "no model")
        yield f"{role}={name}: step {step} leaves {instead}. {_named(context, kinds)}"
        return
    if step not in context.coming and folder is None:
        yield not_made(context.runs, step)
        return
    if variant and not (variant == "raw" and leaves == WRITES):
        yield from _variant_lacking(context, f"{role}={name}", step, variant, folder)
    elif step not in context.coming:
        yield from folder_lacking(context, role, str(context.model_path(name)))


def _variant_lacking(context: Context, where: str, step: str, variant: str, folder: Path | None) -> Iterator[str]:
    """Whether a step keeps, or has kept in its folder, other weights than its last."""
    unit, _, number = variant.partition("-")
    options = context.config.get(step, {})
    if variant == "best" and "keep" in options:
        if folder is None and options["keep"] != "best":
            yield f"{where}: {step} keeps the last weights alone. Set {step}.keep=best."
        elif folder is not None and not (folder / "model_best").is_dir():
            yield f"{where}: {folder} holds the last weights alone; {step}.keep=best keeps those too. Mend the name."
    elif unit not in ("epoch", "batch") or not number.isdecimal() or "keep_epochs" not in options:
        raw = " but raw" * (context.steps[step] == WRITES) + ", and best" * ("keep" in options)
        raw += ", and its epochs, such as epoch-1, and batch-400" * ("keep_epochs" in options)
        yield f"{where}: {step} has no variant{raw}. Mend the name."
    elif folder is None:
        yield from _kept_lacking(where, step, unit, int(number), options)
    elif not (folder / "epochs" / variant.removeprefix("epoch-")).is_dir():
        kept = sorted(path.name for path in folder.glob("epochs/*"))
        held = f"holds epochs {', '.join(kept)}" if kept else f"kept no epochs; {step}.keep_epochs=true keeps them"
        yield f"{where}: {folder} {held}. Mend the name."


def _kept_lacking(where: str, step: str, unit: str, number: int, options: Mapping[str, Any]) -> Iterator[str]:
    """Whether a step that is still to run will keep the weights after an epoch, or so many batches."""
    epochs, every = options["fit"]["epochs"], options["keep_every"]
    if unit == "batch" and (every is None or number == 0 or number % every):
        kept = "no batches" if every is None else f"each {every}th batch"
        yield f"{where}: {step} keeps {kept}. Set {step}.keep_every={number or 100}."
    elif unit == "epoch" and not options["keep_epochs"]:
        yield f"{where}: {step} keeps no epochs. Set {step}.keep_epochs=true."
    elif unit == "epoch" and not 1 <= number <= epochs:
        yield f"{where}: {step}.fit.epochs is {epochs}, so that there are epoch-1 to epoch-{epochs}."


def folder_lacking(context: Context, role: str, name: str) -> Iterator[str]:
    """Whether a folder holds a model whose context the lengths fit, or the hub may be asked for it."""
    shown = f"{BASE} ({name})" if role == _BASE_PATH else name
    try:
        path = name if role == _BASE_PATH else str(context.model_path(name))
        if Path(model_folder(path)).exists():
            node = context.config["model"]["causal_lm"]
            config = model_config(path, trust_remote_code=node.get("trust_remote_code", False))
            fault = None if role in _OTHER_ROWS else too_long(row_lengths(context.config, context.data), config, shown)
            if fault:
                yield fault
            return
        here_or_hub_id(name)
    except PipelineError as error:
        yield f"{role}={error}"
        return
    except (OSError, ValueError) as error:
        try:
            within = exported_model(name)
        except (OSError, ValueError):
            within = name
        yield f"{role}={name}: {error}" + (f" Did you mean {within}?" if within != name else "")
        return
    if is_offline_mode() and not _is_cached(name):
        yield (
            f"{role}={name} is no folder here, and HF_HUB_OFFLINE is set, but the cache of the hub does not hold it. "
            f"Mend the name, fetch it on a machine with a network (hf download {name}), or give a folder."
        )


def _is_cached(name: str) -> bool:
    return is_hub_id(name) and any(
        isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "tokenizer.json")
    )


def base_lacking(context: Context, anew: bool = False) -> Iterator[str]:
    """Whether the base model is there: made by step pretrain unless it is made anew, or as the configuration has it."""
    if anew or PRETRAIN in context.coming or context.model_path(BASE) is None:
        node = context.config["model"]["causal_lm"]
        attention = node.get("attention", "sdpa")
        kernels = ["sdpa", "eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
        if attention not in kernels and "/" not in str(attention):
            meant = did_you_mean(str(attention), kernels)
            yield f"model.causal_lm.attention={attention} is unknown.{meant} There are sdpa, eager, flex_attention."
        if attention == "flex_attention" and context.device.type == "cpu":
            yield "model.causal_lm.attention=flex_attention has no backward pass on a CPU. Take sdpa there."
        path = node.get("path")
        if path is not None and str(node.get("_target_")).startswith("rlhf_lightning."):
            yield from folder_lacking(context, _BASE_PATH, path)
        elif isinstance(node.get("config"), Mapping) and "model_type" in node["config"]:
            try:
                fault = too_long(row_lengths(context.config, context.data), model_config(config=node["config"]), BASE)
            except (ValueError, KeyError) as error:
                fault = f"model.causal_lm.config: {error}"
            if fault:
                yield fault


def _named(context: Context, kinds: tuple[str, ...]) -> str:
    steps = [step for step, leaves in context.steps.items() if leaves in kinds]
    base = [BASE] if WRITES in kinds else []
    return f"Name {', '.join((*base, *steps))}, a folder, or an id of the hub (owner/name)."
