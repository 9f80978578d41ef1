"""What a step would start from: whether data and models bring it, before the first step of a run is made.

Every function gives a sentence for each thing that lacks, without the name of the step. Of records the first row alone
is read.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rlhf_lightning.data.records import Comparison
from rlhf_lightning.data.rows.readers import SourceRow
from rlhf_lightning.data.rows.records_of import placed_records
from rlhf_lightning.data.sources import RECORD_TYPES, DataSource, FileData
from rlhf_lightning.generation.engines import NEEDS_VLLM, NO_GRAPHS
from rlhf_lightning.generation.vllm_server import VLLMServerSampler
from rlhf_lightning.models.gradients import check_gradient_settings
from rlhf_lightning.models.loading import model_config
from rlhf_lightning.models.lora import with_adapters
from rlhf_lightning.recipe.context import BASE, COLLECT, CURATE, Context
from rlhf_lightning.recipe.curated import CuratedData
from rlhf_lightning.recipe.messages import no_rankings, no_records
from rlhf_lightning.recipe.model_names import model_lacking
from rlhf_lightning.recipe.turns import shares_lacking
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.hub import model_folder

POLICIES = "policies"
_WORLD = "rlhf_lightning.sandbox."
"""Objects that know one world of prompts alone."""


def records_lacking(context: Context, kind: str, split: str = "train", curated: bool = True) -> Iterator[str]:
    """Whether there are records of a kind and split; step curate, if it is still to run, splits and expands them."""
    data = _source(context, kind, curated)
    if data.has(kind, split):
        yield from _no_row(data, kind, split) if isinstance(data, FileData) else ()
        return
    if CURATE in context.coming and curated:
        few_shot = kind == "demonstrations" and context.config[CURATE]["few_shot"]
        if few_shot or (kind != "text" and data.has(kind, "train")):
            return
    yield no_records(kind, split)


def _no_row(data: FileData, kind: str, split: str) -> Iterator[str]:
    """Files without a single record."""
    try:
        _first_row(data, kind, split)
    except ValueError as error:  # a RecordError names the file
        yield str(error)


def _first_row(data: DataSource | CuratedData, kind: str, split: str) -> Any:
    """The first record of files; None for all that takes longer: folders, sets of the hub, records that are made."""
    sources = data.files.get(kind, {}).get(split) if isinstance(data, FileData) else None
    cheap = sources and all(Path(source["path"]).is_file() for source in sources)
    return next(_rows(data, kind, split), None) if cheap else None


def rows_of(context: Context, kind: str, split: str = "train") -> Iterator[Any]:
    """Records as far as one reads them; malformed rows that are put aside are so when the step reads them."""
    return _rows(_source(context, kind), kind, split)


def _rows(data: DataSource | CuratedData, kind: str, split: str) -> Iterator[Any]:
    if not isinstance(data, FileData):
        yield from data.records(kind, split) or []
        return
    for source in data.files.get(kind, {}).get(split) or []:
        keep = None if data.quarantine is None else _pass_over
        yield from (record for _, record in placed_records({**source, "sample": None}, RECORD_TYPES[kind], keep))


def _pass_over(row: SourceRow) -> None:
    return None


def _source(context: Context, kind: str, curated: bool = True) -> DataSource | CuratedData:
    return context.source(kind) if curated and CURATE not in context.coming else context.data


def training_lacking(context: Context, step: str, kind: str, curated: bool) -> Iterator[str]:
    """Records to learn from, text beside them, and what a reward model is centred and measured on."""
    yield from _learned_lacking(context, kind, "train", curated)
    options = context.config[step]
    if options["data"].get("text_share") or options["data"].get("text_batch_size"):
        yield from records_lacking(context, "text")
    if options.get("bias_demonstrations"):
        yield from records_lacking(context, "demonstrations")
    if options.get("folds"):
        yield from _learned_lacking(context, kind, "validation", curated)
    yield from _adapters_lacking(context, options.get("lora") or {})


def _adapters_lacking(context: Context, options: Mapping[str, Any]) -> Iterator[str]:
    """Layers of the base model that are to have adapters, tried on one without weights."""
    if not options.get("rank") or isinstance(options.get("targets", ""), str):
        return
    path = model_folder(str(context.model_path(BASE) or context.config["model"]["causal_lm"].get("path") or ""))
    if (Path(path) / "config.json").exists():
        try:
            with torch.device("meta"):
                with_adapters(AutoModelForCausalLM.from_config(model_config(path)), **options)
        except (ImportError, ValueError) as error:
            yield str(error)


def check_sources(setting: str, named: Iterable[str], records: Iterable[Any]) -> None:
    """Refuse sources that no record has, with a `PipelineError` that says which there are.

    Args:
        setting: The setting that names them.
        named: The names.
        records: The records.
    """
    sources = {record.source for record in records} if named else set()
    if unknown := [name for name in named if name not in sources]:
        there = ", ".join(sorted(source for source in sources if source)) or "none"
        raise PipelineError(f"{setting} names {unknown[0]}, which is the source of no record. There are {there}.")


def _learned_lacking(context: Context, kind: str, split: str, curated: bool) -> Iterator[str]:
    """Rankings may also be those that step collect made or will make."""
    if RECORD_TYPES[kind] is not Comparison or context.brings(kind):
        yield from records_lacking(context, kind, split, curated)
    elif kind != "comparisons" or (COLLECT not in context.coming and context.runs.find(COLLECT) is None):
        yield no_rankings(kind)
    elif COLLECT in context.coming and not context.config[COLLECT]["prompts"].get(split):
        yield f"there are no {kind} for the split {split}: collect.prompts.{split} is 0. Set how many to rank."


def collection_lacking(context: Context, options: Mapping[str, Any]) -> Iterator[str]:
    """Policies, prompts, somebody to ask who can read them, and so many responses that there is something to rank."""
    for name in options[POLICIES]:
        yield from model_lacking(context, POLICIES, name)
    yield from records_lacking(context, "prompts")
    rankings = "bring rankings (comparisons.train.jsonl), or leave the step and those after it out: stages=[sft]."
    if not options[POLICIES]:
        yield "policies is empty. Name whose responses are ranked: collect.policies=[sft]."
    if not options["labelers"]:
        yield (
            "labelers is null, and the data option has no rankings. Name an object that ranks responses "
            f"(collect.labelers) or let people do it (collect.labelers=people), {rankings}"
        )
    yield from unread_prompt(context, {"labelers": options["labelers"]}, "train", f"Name others, {rankings}")


def counts_lacking(least: int, most: int) -> Iterator[str]:
    """Whether there is a K, the number of responses to a prompt."""
    if least > most:
        yield f"K is from min_responses={least} to max_responses={most}: there is none. Raise max_responses."


def sampling_lacking(options: Any) -> Iterator[str]:
    """The same of the settings of step collect, of any type."""
    sampling = options.get("sampling") if isinstance(options, Mapping) else None
    if isinstance(sampling, Mapping):
        least, most = sampling.get("min_responses"), sampling.get("max_responses")
        yield from counts_lacking(least, most) if type(least) is int and type(most) is int and most > 1 else ()
        policies, shares = options.get(POLICIES), sampling.get("shares")
        yield from shares_lacking(policies, shares) if isinstance(policies, list) and isinstance(shares, list) else ()


def rollouts_lacking(context: Context, options: Mapping[str, Any]) -> Iterator[str]:
    """A batch for every minibatch, and that the trainer clips no gradient."""
    count, size = options["module"]["num_minibatches"], options["data"]["batch_size"]
    if count > size:
        yield f"data.batch_size={size} episodes cannot be split into module.num_minibatches={count}. Lower the latter."
    try:
        check_gradient_settings(1, context.config["trainer"].get("gradient_clip_val"), automatic=False)
    except ValueError as error:
        yield str(error)


def engine_lacking(context: Context) -> Iterator[str]:
    """The library that samples, or the servers that do, and the GPU for graphs."""
    engine, options = context.config["generation"]["engine"], context.config["generation"]["options"]
    if context.config["generation"].get("cuda_graphs"):
        if engine != "loop":
            yield NO_GRAPHS.format(engine)
        elif context.device.type != "cuda":
            yield f"generation.cuda_graphs=true needs a GPU, and this runs on {context.device.type}. Leave it false."
    lengths = context.config["data"]["lengths"]
    if engine == "vllm" and find_spec("vllm") is None:
        yield NEEDS_VLLM
    if engine == "vllm_server":
        try:
            servers = VLLMServerSampler(**{**options, "retries": 0})
        except ValueError as error:
            yield str(error)
        else:
            yield from servers.lacking(lengths["max_prompt_tokens"] + lengths["max_response_tokens"])


def first_prompt(context: Context, split: str) -> str | None:
    """The first prompt of the data option's own, as text; None where none is found cheaply."""
    try:
        first = _first_row(context.data, "prompts", split)
    except ValueError:  # a RecordError, which is said of the records
        return None
    return None if first is None else first.prompt if isinstance(first.prompt, str) else first.prompt[-1]["content"]


def unread_prompt(context: Context, objects: Mapping[str, Any], split: str, remedy: str) -> Iterator[str]:
    """Which objects of the sealed world, by their setting, cannot read the prompts of the data option."""
    targets = {role: str(node.get("_target_")) for role, node in objects.items() if isinstance(node, Mapping)}
    worldly = [role for role, target in targets.items() if target.startswith(_WORLD)]
    prompt = first_prompt(context, split) if worldly else None
    unread: list[str] = []
    reason = ""
    for role in worldly if prompt is not None else []:
        made = context.build(objects[role])
        try:
            made[0].rank(prompt, ["yes .", "no ."]) if isinstance(made, list) else made([prompt], ["yes ."])
        except ValueError as error:
            unread, reason = [*unread, role], str(error)
    if unread:
        yield f"{', '.join(unread)} of the sealed world cannot read the prompts of the data option: {reason} {remedy}"
