"""What the results of step benchmarks depend on beside the model: sets, judges, and the code that measures."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rlhf_lightning
from rlhf_lightning.evaluation.benchmarks.documents import files
from rlhf_lightning.evaluation.benchmarks.harness import TRUTH_JUDGED, can_load, source_of, task_names
from rlhf_lightning.evaluation.toxicity import ToxicityModel
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.inputs import POLICIES
from rlhf_lightning.recipe.judges import will_be
from rlhf_lightning.recipe.model_names import MEASURED, model_lacking
from rlhf_lightning.recipe.rewards import reward_fingerprints
from rlhf_lightning.runs.identity import file_digest

TOXICITY_JUDGE, TRUTH_JUDGE = "toxicity", "truth_judge"
"""Settings that name judges."""
TOXIC_TASKS = "real_toxicity_prompts"
"""How the names of the tasks begin that ask a judge of toxicity."""
_MEASURING = (
    *("evaluation/benchmarks/**/*.py", "evaluation/text_metrics.py", "evaluation/intervals.py", "evaluation/toxicity*"),
    *("algorithms/*.py", "generation/*.py", "data/loader.py", "models/**/*.py", "tokenization/**/*.py"),
)
"""The code on which numbers depend, below the package."""
_LIBRARIES = ("lm_eval", "datasets", "transformers", "tokenizers", "torch", "sacrebleu", "rouge_score")


def ours(options: Mapping[str, Any]) -> list[str]:
    """Those of our tasks whose sets can be had."""
    return [name for name in options["tasks"] if name in task_names() and can_load(name, options["root"])]


def content(name: str, root: str | None) -> Any:
    """What the files of a task's set hold; those of the hub are known by their names."""
    source = source_of(name)
    paths = files(source, root) if root is not None else []
    return [source, *(file_digest(path) for path in paths if path.is_file())]


def measured_by(context: Context) -> list[str]:
    """The code that measures, on what device: with another one nothing is taken over."""
    package = Path(rlhf_lightning.__path__[0])
    code = sorted(file_digest(path) for each in _MEASURING for path in package.glob(each) if path.is_file())
    return [*code, *(f"{name} {version(name)}" for name in _LIBRARIES), context.device.type]


def judge_digests(context: Context, options: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, str]:
    """What the judges are that these tasks ask, with the source of their functions."""
    asked = {
        TOXICITY_JUDGE: any(name.startswith(TOXIC_TASKS) for name in tasks),
        TRUTH_JUDGE: any(name.endswith(TRUTH_JUDGED) for name in tasks),
    }
    roles = [role for role, each in asked.items() if each and options[role]]
    return {role: reward_fingerprints(context, options[role])["reward"] for role in roles}


def toxicity_judge(context: Context, options: Mapping[str, Any]) -> Any:
    """The judge that the setting names, or the package's own."""
    if options[TOXICITY_JUDGE]:
        return context.build(options[TOXICITY_JUDGE])
    return ToxicityModel.load()


def judges_lacking(context: Context, options: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each judge that the tasks ask and that is not there."""
    if any(name.startswith(TOXIC_TASKS) for name in options["tasks"]):
        try:
            toxicity_judge(context, options)
        except (ImportError, OSError, ValueError) as error:
            yield f"{error} Or name a callable in benchmarks.toxicity, or leave {TOXIC_TASKS} out of benchmarks.tasks."
    judged = [name for name in options["tasks"] if name.endswith(TRUTH_JUDGED)]
    if judged and not options[TRUTH_JUDGE]:
        yield (
            f"{', '.join(judged)}: nobody judges whether answers are true. Name a callable in benchmarks.truth_judge, "
            f"or take the form with choices, {judged[0].removesuffix(TRUTH_JUDGED)}."
        )


def policies_lacking(context: Context, options: Mapping[str, Any]) -> Iterator[str]:
    """What lacks of the policies: the model, its chat template where one is asked for, any at all."""
    there = [name for name in options[POLICIES] if will_be(context, name, {"few_shot_prefix": None})]
    for name in options[POLICIES]:
        if name in there or name.partition("/")[0] not in context.steps:
            faults = list(model_lacking(context, MEASURED, name))
            coming = name.partition("/")[0] in context.coming
            if options["chat_template"] and not (faults or coming or context.tokenizers.of(name).chat_template):
                faults = [f"benchmarks.chat_template=true, but {name} has no chat template. Set it to false."]
            yield from faults
    if not there:
        yield f"none of benchmarks.policies ({', '.join(options[POLICIES])}) is there. Name a step or a folder."
