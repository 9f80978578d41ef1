"""What a step's artifacts say for its model cards: how good, on which data, with which settings."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from rlhf_lightning.data.tally import flat
from rlhf_lightning.evaluation.plots import number
from rlhf_lightning.evaluation.tables import (
    COLUMNS,
    EVALUATE,
    SHARES,
    cell,
    judge_of,
    judge_sentence,
    measure_table,
    measured,
    split_tables,
)
from rlhf_lightning.recipe.context import COLLECT, Context
from rlhf_lightning.recipe.preferences import temperature_of
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.files import read_json
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.runs.model_card import public

_TITLES = {key: f"{title}, {unit}" for key, title, unit in COLUMNS}


def evaluated(context: Context, step: Stage, model: Path) -> dict[str, Any] | None:
    """What step evaluate found on these very weights; None where it is not complete or did not ask them.

    Args:
        context: Where the steps are.
        step: The step that made the model.
        model: The model's folder.
    """
    folder = context.runs.find(EVALUATE)
    record = read_stage(folder) if folder is not None else {}
    merged = model.with_name(model.name.replace("adapter", "model"))
    for name, found in record.get("metrics", {}).get("policies", {}).items():
        asked = record["identity"]["parents"].get(name)
        mine = name.partition("/")[0] == step.name and context.model_path(name) in (model, merged)
        if mine and asked == context.model_fingerprint(name):
            return _evaluation(record, name, found)
    return None


def _evaluation(record: Mapping[str, Any], name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    metrics, options = record["metrics"], record["identity"]["config"][EVALUATE]
    is_baseline = name == metrics["baseline"]
    values = {
        key: measure
        for key, *_ in COLUMNS
        if (measure := measured(found, key)) is not None and not (is_baseline and key in SHARES)
    }
    rows = [(_TITLES[key], *cell(measure, 100.0 if key in SHARES else 1.0).values()) for key, measure in values.items()]
    for key in ("likert", "metadata", "probes") if is_baseline else ("judges", "likert", "metadata", "probes"):
        table = measure_table({"policies": {name: found}}, key)
        rows += [(f"{table['title']}: {title}", *cells[0].values()) for title, cells in table["rows"]] if table else []
    return {
        "prompts": metrics["prompts"],
        "baseline": None if is_baseline else metrics["baseline"],
        "reference": options["reference"],
        "temperature": temperature_of(options, name),
        "judged_by": _public_judge(judge_of(metrics, options, record["identity"]["parents"])),
        "rows": rows,
        "values": {key: measure["value"] for key, measure in values.items()},
    }


def _public_judge(judge: Mapping[str, Any]) -> str:
    """Who judged, without paths and addresses of somebody's machines."""
    name = " ".join(str(public(word)) for word in judge["name"].split(" "))
    return judge_sentence({**judge, "name": name})


def eval_results(
    metrics: Mapping[str, Any], evaluation: Mapping[str, Any] | None, *, is_policy: bool
) -> list[EvalResult]:
    """The figures of the metadata: accuracies of a reward model; of a policy its evaluation, or else its loss."""
    loss = metrics.get("validation/loss")
    if not is_policy:
        found = [
            (split, "accuracy", "Accuracy, share of pairs", groups["all"]["accuracy"]["value"])
            for split, groups in split_tables({"metrics": metrics}).items()
            if "all" in groups
        ]
    elif evaluation is not None:
        units = {key: f"{title}, share of prompts" for key, title, _ in COLUMNS if key in SHARES}
        found = [("test", key, units.get(key, _TITLES[key]), value) for key, value in evaluation["values"].items()]
    else:
        found = [] if loss is None else [("validation", "loss", "Loss, nats per token", loss)]
    return [
        EvalResult(
            task_type="text-generation" if is_policy else "text-classification",
            dataset_type="private",
            dataset_name=f"{split} records of the run",
            dataset_split=split,
            metric_type=key,
            metric_name=title,
            metric_value=value,
        )
        for split, key, title, value in found
    ]


def measures(step: Stage, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The last value of what the report draws of a step, but for times and gradients."""
    return [
        (f"{curve.title}{f' ({label})' if len(curve.columns) > 1 else ''}, {curve.unit}", number(metrics[key]))
        for curve in step.curves
        for label, key in curve.columns.items()
        if key in metrics and not key.startswith("time/") and "grad" not in key
    ]


class Records(NamedTuple):
    """A row of the card's table of data."""

    what: str
    source: str
    train: int | str
    validation: int | str
    hubs: tuple[str, ...] = ()


def records_table(step: Stage, folder: Path, config: Mapping[str, Any]) -> list[Records]:
    """What a step learned from: kinds of records, where they are from, how many examples they made.

    Args:
        step: The step.
        folder: Its folder.
        config: The resolved configuration that it was made with.
    """
    kind, counts = getattr(step, "reads", "text"), _read(folder / "examples.json")
    collected = "comparisons" in read_stage(folder)["identity"]["parents"]
    number = config[COLLECT].get("round", 1)
    sampled = f"rankings of what step {COLLECT} sampled" + (f" in rounds 1 to {number}" if number > 1 else "")
    source, hubs = (sampled, ()) if collected else _source(config, kind)
    rows = [Records(kind, source, counts.get("train", "-"), counts.get("validation") or "-", hubs)]
    if "text" in counts:
        source, hubs = _source(config, "text")
        rows.append(Records("pretraining text", source, counts["text"], "-", hubs))
    return rows


def _source(config: Mapping[str, Any], kind: str) -> tuple[str, tuple[str, ...]]:
    """Names of files, hub sets or of the class that makes the records; and the hub sets."""
    node = config["data"]["source"]
    files = node.get("files")
    if not files:
        return str(node["_target_"]), ()
    hubs, paths = set(), set()
    splits = files.get(kind) or {}
    if node.get("by_name"):
        splits = {split: part or f"{kind}.{split}.jsonl" for split, part in splits.items() if part or split == "train"}
    for part in _parts(splits):
        if isinstance(part, Mapping) and part.get("hub"):
            hubs.add(str(part["hub"]))
        else:
            paths.add(Path(str(part["path"] if isinstance(part, Mapping) else part)).name)
    return ", ".join([*sorted(hubs), *sorted(paths)]) or "-", tuple(sorted(hubs))


def _parts(splits: Mapping[str, Any]) -> Iterator[Any]:
    for split in (splits.get("train"), splits.get("validation")):
        yield from split if isinstance(split, list) else [split] if split else []


def left_out(folder: Path) -> list[tuple[str, int]]:
    """Records that a step left out or cut, by reason."""
    counts = {what: _read(folder / f"{name}.json") for name, what in (("dropped", "left out"), ("cut", "cut"))}
    return list(flat(counts).items())


def settings_rows(config: Mapping[str, Any], step: str) -> Iterator[tuple[str, Any]]:
    """The settings of a step that its artifact depends on, as `name.of.it` and value, without secrets and paths."""
    shared = {name: value for name, value in config.items() if name not in ("model", "data", step)}
    yield from _leaves(public({step: config[step], "data.lengths": config["data"], **shared}))


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            if str(value.get("_target_", "")).startswith(("torch.", "transformers.")):
                yield f"{path}{name}", value["_target_"]
            yield from _leaves(value, f"{path}{name}.")
        elif value is not None and not name.startswith("_"):
            yield f"{path}{name}", value


def made_with(record: Mapping[str, Any]) -> str:
    """Day, seed, commit and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    commit = f", commit {record['git_commit'][:12]}" if record["git_commit"] else ""
    day = f"On {record['date']} with " if "date" in record else "With "
    return f"{day}seed {record['seed']}{commit}; {versions}. Fingerprint of the step: `{record['fingerprint']}`"


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}
