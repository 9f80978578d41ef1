"""Runs a task on a model: the harness builds what is asked, we answer, and every number gets its interval."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning.pytorch.utilities.seed import isolate_rng

from rlhf_lightning.arguments import Count, NonNegativeInt, checked
from rlhf_lightning.compat import harness_without_bars
from rlhf_lightning.evaluation.benchmarks.measures import corpus_bleu, judged
from rlhf_lightning.evaluation.intervals import Interval, first_places, outcome_interval, share_interval
from rlhf_lightning.evaluation.text_metrics import bleu_interval

_RESAMPLES = 300
"""Bootstrap samples of measures of the harness that are no means, each of which takes a while."""


@dataclass(frozen=True)
class TaskResult:
    """What a model did on a task.

    Args:
        figures: ``metric``, ``value``, ``low``, ``high``, ``items``, ``left_out``, ``shots`` and ``further``, the other
            measures by name, each with its own ``items``; where every item was left out, ``items`` is 0 and there is
            no value.
        samples: One row per item: its number, what the model read and said, and what was found of it.
    """

    figures: dict[str, Any]
    samples: list[dict[str, Any]]


@checked
def run_task(
    lm: Any,
    task: Any,
    *,
    shots: NonNegativeInt = 0,
    limit: Count | None = None,
    chat_template: bool = False,
    judges: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> TaskResult:
    """Measure a model on one task of the harness.

    The random states of Python, numpy and torch are as before afterwards.

    Args:
        lm: A `rlhf_lightning.evaluation.benchmarks.model.HarnessModel`.
        task: A task of `rlhf_lightning.evaluation.benchmarks.harness.load_tasks`.
        shots: Few-shot examples, drawn anew for each item.
        limit: Items at most, drawn from all, so that a sorted set is not measured by its beginning; None takes all.
        chat_template: Whether the model's chat template writes instruction, examples and question as a conversation.
        judges: Who judges texts, by measure; see `rlhf_lightning.evaluation.benchmarks.measures.judged`.
        seed: Seed of the draw of items and examples.

    Raises:
        ValueError: When there are fewer examples than `shots`, or a task wants what the model does not do.
    """
    lm.chat = chat_template
    lm.greedy = task.OUTPUT_TYPE == "loglikelihood" or "exact_match" in task.aggregation()
    with isolate_rng():
        count = len(task.eval_docs)
        # In the set's order, in which the harness goes through them.
        chosen = sorted(random.Random(seed).sample(range(count), min(count, limit or count)))
        instances = _built(lm, task, shots, chosen, seed, chat_template)
        unread = set[int]()
        for kind in dict.fromkeys(each.request_type for each in instances):
            asked = [each for each in instances if each.request_type == kind for _ in range(each.repeats)]
            for instance, answer in zip(asked, getattr(lm, kind)(asked), strict=True):
                instance.resps.append(_NOTHING[kind] if answer is None else answer)
                unread |= {instance.doc_id} if answer is None else set()
        task.apply_filters()
        items = [
            _Item(chosen[number], parts[0].doc, parts) for number, parts in _by_item(instances) if number not in unread
        ]
        found = _found(task, items, judges or {})
    figures = _figures(task, found, first_places([each.cluster for each in items])) if items else {}
    samples = [each.sample(place, found) for place, each in enumerate(items)]
    return TaskResult({"items": len(items), **figures, "left_out": len(unread), "shots": shots}, samples)


_NOTHING: dict[str, Any] = {"loglikelihood": (0.0, False), "generate_until": ""}
"""Stands for the answer to what was not read, which no figure sees."""


@dataclass(frozen=True)
class _Item:
    """A document with its requests, which have their answers."""

    number: int
    doc: Mapping[str, Any]
    parts: Sequence[Any]

    @property
    def cluster(self) -> Any:
        """What it shares with others, such as a passage, or the item alone."""
        return self.doc.get("about", {}).get("cluster", self.number)

    def sample(self, place: int, found: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """What is kept of it, with its place among the values of each measure."""
        values = {name: each[place] for name, each in found.items() if each[place] is not None}
        about = {"about": self.doc["about"]} if "about" in self.doc else {}
        said = [part.resps[0] for part in self.parts]
        return {"item": self.number, "read": self.parts[0].args[0], "said": said, **about, **values}


def _built(lm: Any, task: Any, shots: int, chosen: list[int], seed: int, chat_template: bool) -> list[Any]:
    """The requests of a task, with few-shot examples in the form of the query."""
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed)
    options = {"apply_chat_template": chat_template, "fewshot_as_multiturn": chat_template}
    template = {"chat_template": lm.apply_chat_template} if chat_template else {}
    try:
        with harness_without_bars():
            task.build_all_requests(samples=set(chosen), rank=0, world_size=1, **options, **template)
    except (AssertionError, ValueError) as error:
        if shots == 0:
            raise
        raise ValueError(
            f"{task.get_config('task')} cannot be asked with benchmarks.shots={shots}: {error or 'too few examples'}. "
            "Ask with fewer."
        ) from error
    return list(task.instances)


def _by_item(instances: Sequence[Any]) -> list[tuple[int, list[Any]]]:
    parts: dict[int, list[Any]] = defaultdict(list)
    for instance in instances:
        parts[instance.doc_id].append(instance)
    return [(number, sorted(each, key=lambda part: int(part.idx))) for number, each in parts.items()]


def _found(task: Any, items: Sequence[_Item], judges: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Values of every measure, one per item, None where an item has none; of each filter where a task has several."""
    found: dict[str, list[Any]] = {}
    for name in items[0].parts[0].filtered_resps if items else ():
        results = [task.process_results(each.doc, [part.filtered_resps[name] for part in each.parts]) for each in items]
        rows = judged(results, [each.doc for each in items], judges)
        suffix = f",{name}" if found else ""
        measures = dict.fromkeys(measure for row in rows for measure in row)
        found |= {f"{measure}{suffix}": [row.get(measure) for row in rows] for measure in measures}
    return found


def _figures(task: Any, found: Mapping[str, Sequence[Any]], clusters: Sequence[int]) -> dict[str, Any]:
    """The first measure that the task names, and the further ones."""
    aggregations, intervals = task.aggregation(), dict[str, dict[str, Any]]()
    for name, values in found.items():
        places = [place for place, value in enumerate(values) if value is not None]
        known, own = [values[place] for place in places], [clusters[place] for place in places]
        interval = interval_of(known, aggregations.get(name.partition(",")[0]), own)
        intervals[name] = {**interval, "items": len(known)}
    main = next((name for name in aggregations if name in intervals), next(iter(intervals)))
    return {"metric": main, **intervals.pop(main), "further": intervals}


def interval_of(values: Sequence[Any], aggregation: Any, clusters: Sequence[int]) -> Interval:
    """Of a mean, as everywhere; of what is no mean a bootstrap.

    Args:
        values: What was found of each item.
        aggregation: How the task makes one number of them; None is their mean.
        clusters: The number of each item's cluster, which counts as a whole.
    """
    if all(isinstance(value, bool | int | float) for value in values) and _is_mean(aggregation):
        numbers = [float(value) for value in values]
        alone = len({*clusters}) == 1 and min(numbers) >= 0 and max(numbers) <= 1
        # One cluster says nothing about others; a bootstrap of it would be a point.
        return (share_interval if alone else outcome_interval)(numbers, clusters)
    if aggregation is corpus_bleu:
        predictions, references = zip(*values, strict=True)
        return bleu_interval(predictions, references, clusters=clusters)
    groups = [np.flatnonzero(np.asarray(clusters) == each) for each in dict.fromkeys(clusters)]
    drawn = np.random.default_rng(0).integers(len(groups), size=(_RESAMPLES, len(groups)))
    chosen = [np.concatenate([groups[place] for place in places]) for places in drawn]
    means = [float(aggregation([values[place] for place in places])) for places in chosen]
    low, high = np.percentile(means, [2.5, 97.5])
    value = float(aggregation(list(values)))
    return {"value": value, "low": min(value, float(low)), "high": max(value, float(high))}


def _is_mean(aggregation: Any) -> bool:
    return aggregation is None or getattr(aggregation, "__name__", "") in ("mean", "nanmean")
