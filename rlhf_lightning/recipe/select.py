"""Step select: the best of several models by the reward on validation prompts (InstructGPT, 3.5, C.1, C.5)."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from rlhf_lightning.arguments import Count, NonNegativeFloat, NonNegativeInt
from rlhf_lightning.data.loader import collate_lm, collate_prompts
from rlhf_lightning.evaluation.candidates import candidate_table
from rlhf_lightning.evaluation.intervals import Interval, first_places, mean_interval
from rlhf_lightning.evaluation.policies import PolicySamples, sample_policy, token_losses
from rlhf_lightning.evaluation.tables import REWARD
from rlhf_lightning.generation.engines import make_sampler
from rlhf_lightning.models.export import complete_folder, export_causal_lm
from rlhf_lightning.models.precision import trainer_precision
from rlhf_lightning.recipe.context import BASE, WRITES, Context, counted
from rlhf_lightning.recipe.inputs import records_lacking, rows_of, unread_prompt
from rlhf_lightning.recipe.judges import texts_lacking
from rlhf_lightning.recipe.kept import KeptPolicies, Measured
from rlhf_lightning.recipe.memory_plan import Lever, StagePlan
from rlhf_lightning.recipe.model_names import base_lacking, model_lacking, named_twice
from rlhf_lightning.recipe.reading_plan import answers_plan
from rlhf_lightning.recipe.rewards import report_cut, reward_fingerprints, reward_lacking, reward_of, reward_steps
from rlhf_lightning.recipe.schemas import Reward
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.exported import exported_model
from rlhf_lightning.runs.folders import PipelineError, read_stage
from rlhf_lightning.runs.hub import ADAPTER_CONFIG, model_folder
from rlhf_lightning.runs.identity import is_of_model
from rlhf_lightning.training.progress import progress_bar

CANDIDATES, PROMPTS, DEMONSTRATIONS = "candidates", "prompts", "demonstrations"
SPLITS = ("validation", "train")
"""Those that a model may be chosen on."""
_WEIGHTS = ".safetensors"


class SelectSettings(TypedDict):
    """Group `select`."""

    candidates: list[str]
    prefixes: list[str]
    base_stop: str | None
    reward: Reward
    split: str
    num_prompts: Count
    num_demonstrations: NonNegativeInt
    temperature: NonNegativeFloat
    batch_size: Count


@dataclass(frozen=True)
class Selection(Stage):
    """Lets every candidate answer the same prompts with the same noise, and passes the best on as ``select``."""

    schema = SelectSettings
    record_kinds: ClassVar[tuple[str, ...]] = (PROMPTS, DEMONSTRATIONS)
    leaves: ClassVar[str] = WRITES
    samples: ClassVar[bool] = True

    def parents(self, context: Context) -> dict[str, str]:
        """The candidates, and the reward models of steps."""
        options = context.config[self.name]
        return {**candidates(context, options[CANDIDATES]), **reward_steps(context, options[REWARD])}

    def models(self, context: Context) -> dict[str, str]:
        """Those, and the base model where few-shot prefixes compete."""
        return {**self.parents(context), **({BASE: BASE} if context.config[self.name]["prefixes"] else {})}

    def identity(self, context: Context) -> dict[str, Any]:
        """With every part of the reward, also those that are no models of steps, and the base model of prefixes."""
        identity, options = super().identity(context), context.config[self.name]
        base = {BASE: context.model_fingerprint(BASE)} if options["prefixes"] else {}
        rewards = reward_fingerprints(context, options[REWARD])
        return {**identity, "parents": {**identity["parents"], **rewards, **context.held(base)}}

    def lacks(self, context: Context) -> Iterator[str]:
        """Candidates, reward and prompts, which are none of the test."""
        options = context.config[self.name]
        split, reward = options["split"], {REWARD: options[REWARD]}
        if split not in SPLITS:
            yield (
                f"split={split}: what is chosen on test prompts is overrated on them. Choose on split=validation, "
                "or train."
            )
            return
        if not options[CANDIDATES]:
            yield "candidates is empty. Name what there is to choose from: select.candidates=[sft]; base is one too."
        yield from named_twice(CANDIDATES, options[CANDIDATES])
        for name in options[CANDIDATES]:
            if name.partition("/")[0] in (BASE, *context.steps) or not _folder(context, name).is_dir():
                yield from model_lacking(context, CANDIDATES, name)
        yield from records_lacking(context, PROMPTS, split)
        yield from reward_lacking(context, REWARD, options[REWARD], partial(rows_of, context, PROMPTS, split))
        yield from unread_prompt(context, reward, split, "Name another select.reward.")
        yield from base_lacking(context) if options["prefixes"] else ()
        for prefix in options["prefixes"] if not any(base_lacking(context)) else ():
            yield from texts_lacking(context, prefix, options["base_stop"])

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Write ``model/``, that of the best candidate.

        Returns:
            ``candidates``, each with ``name``, ``score``, ``length``, ``validation_loss`` and ``behind``: how much its
            score is below the best one, over the same prompts; ``best``, a name; of prefixes ``prefixes`` likewise, and
            ``best_prefix``, a text.
        """
        options, named = context.config[self.name], candidates(context, context.config[self.name][CANDIDATES])
        prefixes = {f"prefix {number}": prefix for number, prefix in enumerate(options["prefixes"], 1)}
        trial = _Trial(context, options)
        context.report_dropped(self.name, folder, trial.tokenization.tally)
        kept = KeptPolicies(folder / "measured.unfinished", {"step": read_stage(folder)["fingerprint"]})
        total, done = len(named) + len(prefixes), len(kept.measured)
        count = len(trial.questions)
        with progress_bar(context.heartbeat, self.name, total * count, done * count, "prompts") as (bar, task):
            for name in (*named, *prefixes):
                bar.update(task, figures=name)
                advance = partial(bar.advance, task)
                with trainer_precision(context.config["trainer"], context.device):
                    kept.of(name, partial(trial.measure, named.get(name, BASE), prefixes.get(name), advance))
        report_cut(context, self.name, trial.reward)
        rows = _rows({name: kept.measured[name] for name in named}, trial.questions)
        metrics: dict[str, Any] = {CANDIDATES: rows, "best": (best := _best(rows))}
        if prefixes:
            others = _rows({name: kept.measured[name] for name in prefixes}, trial.questions)
            metrics |= {"prefixes": others, "best_prefix": prefixes[_best(others)]}
        if total == 1:
            context.say(self.name, f"{best} is the only candidate, so nothing was chosen")
        _pass_on(context, named[best], folder / "model")
        context.console.print(candidate_table(metrics, count, options["split"]))
        if near := [row["name"] for row in rows if row["behind"]["low"] <= 0 and row["name"] != best]:
            as_good = f"{', '.join(near)} may be as good: the interval of the difference contains 0."
            context.say(self.name, f"{as_good} More prompts (num_prompts) tell more.")
        kept.path.unlink(missing_ok=True)
        return metrics

    def memory(self, context: Context, config: Mapping[str, Any]) -> StagePlan:
        """One candidate after the other on the longest prompts."""
        return answers_plan(context, config, self.name, config[self.name]["batch_size"])

    def levers(self, config: Mapping[str, Any]) -> list[Lever]:
        """Smaller batches."""
        size = config[self.name]["batch_size"]
        return [Lever(self.name, "batch_size", part) for part in (size // 2, size // 8) if part]


class _Trial:
    """What every candidate goes through.

    Args:
        context: Models and records of the run.
        options: The step's settings.
    """

    def __init__(self, context: Context, options: Mapping[str, Any]) -> None:
        self.context, self.options = context, options
        self.sampler = make_sampler(**context.config["generation"])
        self.reward = reward_of(context, options[REWARD])
        self.tokenization = context.tokenization
        self.tokenization.tally.part = split = options["split"]
        prompts = self.tokenization.prompts(context.records(PROMPTS, split)[: options["num_prompts"]])
        self.questions = [prompt.text for prompt in prompts]
        self.batches = context.batches(prompts, collate_prompts, options["batch_size"])
        records = context.records(DEMONSTRATIONS, split, required=False)[: options["num_demonstrations"]]
        self.demonstrations = context.batches(self.tokenization.demonstrations(records), collate_lm, 32)

    def measure(
        self, model: str, prefix: str | None, advance: Callable[[int], None]
    ) -> tuple[PolicySamples, Interval | None]:
        """Responses with their scores, and the mean loss on demonstrations, which are drawn whole.

        Args:
            model: The model, by the names of `Context.model_path`.
            prefix: The text that it reads before each prompt, or None.
            advance: Called with the number of prompts that are done.
        """
        policy = self.context.causal_lm(model)
        self.context.check_lengths(policy, model, prefix or "")
        samples = sample_policy(
            policy,
            None,
            counted(self.batches, policy.device, advance),
            self.context.tokenizer,
            judge=self.reward,
            sampler=self.sampler,
            max_new_tokens=self.tokenization.max_response_tokens,
            temperature=self.options["temperature"],
            seed=self.context.seed,
            prefix=prefix,
            stop=None if prefix is None else self.options["base_stop"],  # as `select` is sampled, uncut
        )
        losses = token_losses(policy, self.demonstrations if prefix is None else [])
        places = [place for place, row in enumerate(losses) for _ in row]
        return samples, mean_interval([loss for row in losses for loss in row], places) if places else None


def candidates(context: Context, named: Sequence[str]) -> dict[str, str]:
    """The models to choose from: what each is called, and its name for `Context.model_path`.

    Args:
        context: Where steps and runs are.
        named: The setting. A step stands for all the weights that it kept, once it is made, and for its last ones
            where those are none of them; so does a step of another run, as `<run>/<step>`, or its folder.

    Raises:
        PipelineError: When a step is not made, or a folder holds no model.
    """
    found: dict[str, str] = {}
    for name in named:
        step, _, variant = name.partition("/")
        kept: dict[str, str] = {}
        last = name
        if step in (BASE, *context.steps):
            if step != BASE and not variant and step not in context.coming:
                kept = {f"{name}/{weights}": f"{name}/{weights}" for weights in _kept(context.step_folder(step))}
        elif (folder := _folder(context, name)).is_dir():
            kept = {f"{name}/{weights}": str(path) for weights, path in _kept(folder).items()}
            try:
                last = exported_model(str(folder))
            except OSError as error:
                raise PipelineError(f"{CANDIDATES}={name}: {error}") from error
        same = kept and context.model_fingerprint(last) in map(context.model_fingerprint, kept.values())
        found |= kept if same else {**kept, name: last}
    return found


def _folder(context: Context, name: str) -> Path:
    """Where a candidate is that is no step of this run: below the folder of all runs, or where its path says."""
    within = context.runs.root / name
    return within if within.is_dir() else Path(model_folder(name))


def _kept(folder: Path) -> dict[str, Path]:
    """The weights that a step kept, in order: `epoch-1`, ..., `batch-100`, ..."""
    kept = {path.name if "-" in path.name else f"epoch-{path.name}": path for path in folder.glob("epochs/*")}
    whole = {name: path for name, path in kept.items() if name.partition("-")[2].isdecimal()}
    return dict(sorted(whole.items(), key=lambda item: (item[0][0] == "b", int(item[0].partition("-")[2]))))


def _rows(measured: Mapping[str, Measured], prompts: Sequence[str]) -> list[dict[str, Any]]:
    clusters = first_places(prompts)
    means = {name: mean_interval(samples.scores, clusters) for name, (samples, _) in measured.items()}
    best = measured[max(means, key=lambda name: means[name]["value"])][0].scores
    return [
        {
            "name": name,
            "score": means[name],
            "behind": mean_interval([most - own for most, own in zip(best, samples.scores, strict=True)], clusters),
            "length": mean_interval(samples.lengths, clusters),
            "validation_loss": loss,
        }
        for name, (samples, loss) in measured.items()
    ]


def _best(rows: Sequence[Mapping[str, Any]]) -> str:
    """The name of the first with the best mean."""
    best: str = max(rows, key=lambda row: row["score"]["value"])["name"]
    return best


def _pass_on(context: Context, name: str, target: Path) -> None:
    """Write the folder of a model again: what is fresh, on the hub, an adapter, or in another format is exported.

    Weights of a run are linked where they can be, for nobody edits them; of a user's folder the model alone is copied.
    """
    path = context.model_path(name) or context.config["model"]["causal_lm"].get("path")
    source = Path(model_folder(str(path)))
    if path is None or (source / ADAPTER_CONFIG).exists() or not any(source.glob(f"*{_WEIGHTS}")):
        export_causal_lm(context.causal_lm(name), context.export_tokenizer, target)
        return
    of_a_run = source.resolve().is_relative_to(context.runs.root.resolve())
    with complete_folder(target) as unfinished:
        for file in sorted(source.iterdir()):
            if file.is_file() and (of_a_run or is_of_model(file)):
                copy = _link_or_copy if of_a_run and file.suffix == _WEIGHTS else shutil.copyfile
                copy(file, unfinished / file.name)


def _link_or_copy(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(file, target)
