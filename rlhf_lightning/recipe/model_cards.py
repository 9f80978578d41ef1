"""Model cards of a run: told to somebody who gets a model's folder alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_lightning.evaluation.tables import REWARD, accuracy_rows
from rlhf_lightning.models.scalar_head import HEAD_FILE
from rlhf_lightning.recipe.card_facts import (
    eval_results,
    evaluated,
    left_out,
    made_with,
    measures,
    records_table,
    settings_rows,
)
from rlhf_lightning.recipe.context import BASE, Context
from rlhf_lightning.recipe.rewards import reward_label, reward_parts
from rlhf_lightning.recipe.stage import Stage, TrainingStage
from rlhf_lightning.runs.folders import is_complete, read_stage
from rlhf_lightning.runs.hub import model_folder
from rlhf_lightning.runs.model_card import card_page, hub_id, licence, public, write_card
from rlhf_lightning.tokenization.endings import end_token_ids, turn_end


@dataclass(frozen=True)
class _Kind:
    """What a step makes.

    Args:
        what: What the model is, as a sentence.
        tags: Its tags on the hub, with spaces between them.
        is_policy: Whether it writes text; otherwise it scores some.
    """

    what: str
    tags: str
    is_policy: bool = True


_REWARD_MODEL = _Kind(
    "A reward model: it gives a prompt with a response one number, higher where people would prefer the response.",
    "rlhf instructgpt reward-model",
    is_policy=False,
)
_KINDS = {
    "text": _Kind("A base language model, trained on plain text: it goes on with what it reads.", "pretraining base"),
    "demonstrations": _Kind("A language model, fine-tuned to respond as demonstrations do.", "rlhf instructgpt sft"),
    "comparisons": _REWARD_MODEL,
    "judge_comparisons": _REWARD_MODEL,
    "prompts": _Kind("A language model, trained by PPO against a reward.", "rlhf instructgpt ppo"),
}
"""By the records that a step learns from."""
_QUESTION = "What is the capital of France?"


def write_cards(steps: Sequence[Stage], stage: Stage, context: Context) -> None:
    """Write the card of every model of a step; after an evaluation those of all steps of this run, with its results.

    A card that somebody has edited stays. One that cannot be written is told of, and the step is complete all the same.

    Args:
        steps: The steps of the recipe.
        stage: The step that is complete.
        context: Models and settings of the run.
    """
    context.runs = replace(context.runs, hidden=frozenset())
    for step in steps if stage.reported else [stage]:
        folder = context.runs.folder(step.name)
        try:
            trains = isinstance(step, TrainingStage)  # what step select passes on has its card
            for model in model_folders(folder) if trains and is_complete(folder) else ():
                if not write_card(model, _page(step, context, folder, model)):
                    context.say(step.name, f"{model / 'README.md'} was edited, so it stays as it is")
        except Exception as error:
            context.say(step.name, f"no model card in {folder}: {error or type(error).__name__}")


def model_folders(folder: Path) -> list[Path]:
    """The exported models and adapters of a step."""
    found = {path.parent for name in ("config.json", "adapter_config.json") for path in folder.rglob(name)}
    return sorted(model for model in found if model.name != BASE and not model.name.endswith(".unfinished"))


def _page(step: Stage, context: Context, folder: Path, model: Path) -> str:
    record = read_stage(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    kind = _KINDS[getattr(step, "reads", "text")]
    parents = {**_rewards(config[step.name]), **step.parents(context)}
    init = next(iter(step.parents(context).values()), BASE)
    base = config["model"]["causal_lm"].get("path") if init.partition("/")[0] in (BASE, *context.steps) else init
    base_licence = licence(base) if base else {}
    adapter = (model / "adapter_config.json").exists()
    has_adapters = adapter or bool((record["identity"]["config"][step.name].get("lora") or {}).get("rank"))
    parts = [part for part in model.relative_to(folder).parts if part != "model"]
    name = public("-".join([context.runs.run.replace("/", "-"), step.name, *parts]))
    epoch = model.name if model.parent.name == "epochs" else None
    after = epoch and (f"{epoch.removeprefix('batch-')} batches" if "-" in epoch else f"epoch {epoch}")
    evaluation = evaluated(context, step, model) if kind.is_policy else None
    data = records_table(step, folder, config)
    metadata = ModelCardData(
        **base_licence,
        base_model=hub_id(base) if base else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation" if kind.is_policy else "text-classification",
        tags=[*kind.tags.split(), *(["lora"] if has_adapters else [])],
        datasets=sorted({hub for row in data for hub in row.hubs}) or None,
        model_name=name,
        eval_results=eval_results({} if epoch else record["metrics"], evaluation, is_policy=kind.is_policy) or None,
    )
    identity = record["identity"]
    facts = {
        "name": name,
        "what": kind.what,
        "step": step.name,
        "averaged": model.name.endswith("_ema"),
        "best": record["metrics"].get("best_iteration") if model.name == "model_best" else None,
        "epoch": after,
        "is_policy": kind.is_policy,
        "base": _shown(base, context) if base else None,
        "base_id": hub_id(base) if base else None,
        "licence": base_licence,
        "parents": [
            (role, _shown(parents.get(role, role), context), made) for role, made in identity["parents"].items()
        ],
        "accuracy": [] if kind.is_policy else accuracy_rows(record),
        "evaluation": evaluation,
        "measures": [] if epoch else measures(step, record["metrics"]),
        "adapter": adapter,
        **usage(model, context.tokenizer, identity["config"]["data"], is_policy=kind.is_policy),
        "data": data,
        "data_fingerprint": identity["data"],
        "left_out": left_out(folder),
        "settings": list(settings_rows({**identity["config"], step.name: config[step.name]}, step.name)),
        "template_date": identity.get("template_date"),
        "made_with": made_with(record),
    }
    return card_page(metadata, facts)


def _rewards(settings: Mapping[str, Any]) -> dict[str, str]:
    """What a policy was trained against, by role, without paths and addresses of somebody's machines."""
    parts = reward_parts(settings[REWARD]) if settings.get(REWARD) else {}
    return {role: str(public(reward_label(part))) for role, part in parts.items()}


def _shown(name: str, context: Context) -> str:
    """What a model is called for strangers: a step, the base model, a hub id, or the last name of its folder."""
    if name.partition("/")[0] in context.steps:
        return f"step {name}"
    if name == BASE:
        return "the base model"
    return name if hub_id(name) or model_folder(name) != name or ":" in name else Path(name).name


def usage(
    model: Path, tokenizer: PreTrainedTokenizerBase, lengths: Mapping[str, Any], *, is_policy: bool
) -> dict[str, Any]:
    """What the lines of code that use a model depend on.

    Args:
        model: Its folder.
        tokenizer: Its tokenizer, where the folder has none.
        lengths: The settings of that name of its data.
        is_policy: Whether it writes text.
    """
    if (model / "tokenizer_config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(model)
    template = lengths.get("prompt_template")
    # Where the folder says so, its chat template writes the very format of training, whichever that was.
    kept = tokenizer.init_kwargs.get("prompt_format")
    on_conversations = kept["name"] == "chat" if kept else template is None
    question = (template or "{prompt}\n\n").replace("{rendered}", "{prompt}").replace("{prompt}", _QUESTION)
    return {
        "head": (model / HEAD_FILE).exists(),
        "chat": bool(tokenizer.chat_template) and (on_conversations or (is_policy and kept is not None)),
        "question": _QUESTION,
        "prompt": question,
        "end": tokenizer.convert_ids_to_tokens(end_token_ids(tokenizer)[0]),
        "end_written": turn_end(tokenizer) is not None,
        "max_new_tokens": lengths["max_response_tokens"],
        "task": task_of(model),
    }


def task_of(model: Path) -> str | None:
    """What PEFT takes an adapter for; None of a model."""
    path = model / "adapter_config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("task_type") if path.exists() else None
