"""What a finished step left, read for the report: a damaged file costs its own part of the page, and nothing else."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rlhf_lightning.data.tally import flat
from rlhf_lightning.runs.files import read_json, read_json_lines, read_metrics
from rlhf_lightning.runs.folders import PipelineError, read_stage

SHOWN_PROMPTS = 12
_TOXICITY = "toxicity"


class StepFiles:
    """The files of a step.

    Args:
        folder: The step's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        """A sentence about each file that could not be read."""
        self.record: dict[str, Any] = self._found("stage.json", _record, {})
        self.columns: dict[str, list[tuple[int, float]]] = self._found("metrics.csv", _columns, {})
        """The finite numbers of metrics.csv with their steps, by column."""
        self.dropped: dict[str, int] = self._found("dropped.json", lambda path: flat(read_json(path)), {})
        self.cut: dict[str, int] = self._found("cut.json", lambda path: flat(read_json(path)), {})
        self.warnings: list[str] = self._found("warnings.json", lambda path: list(map(str, read_json(path))), [])
        self.episodes: list[dict[str, Any]] = self._found("samples.jsonl", _episodes, [])
        """Training samples of the first and of the last iteration that has some."""
        demonstrations = self._found("demonstrations.json", _texts, None)
        self.samples: dict[str, Any] | None = self._found("samples.json", partial(_samples, demonstrations), None)
        """Every n-th prompt with the response of each policy, and that of a person."""
        self.toxicities: dict[str, dict[str, list[tuple[float, float]]]] = {}
        """By `<task>@<shots>` and policy, the toxicity of each prompt and of what followed."""
        for path in sorted(folder.glob("samples/*/*.jsonl")):
            if pairs := self._found(str(path.relative_to(folder)), _toxicities, []):
                self.toxicities.setdefault(unquote(path.stem), {})[unquote(path.parent.name)] = pairs

    def _found(self, name: str, read: Callable[[Path], Any], default: Any) -> Any:
        path = self.folder / name
        if not path.exists():
            return default
        try:
            return read(path)
        except (OSError, PipelineError, ValueError) as error:
            self.damaged.append(str(error))
        except Exception as error:  # JSON that holds something else
            self.damaged.append(f"{path} cannot be read ({type(error).__name__}: {error}).")
        return default


def _record(path: Path) -> dict[str, Any]:
    record = read_stage(path.parent)
    if lacking := [name for name in ("identity", "metrics") if not isinstance(record.get(name), dict)]:
        raise ValueError(f"{path} cannot be read (it holds no {' and no '.join(lacking)}).")
    return record


def _columns(path: Path) -> dict[str, list[tuple[int, float]]]:
    columns: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(path):
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                columns.setdefault(name, []).append((row["step"], value))
    return columns


def _episodes(path: Path) -> list[dict[str, Any]]:
    rows = read_json_lines(path)
    shown = ("iteration", "prompt", "response", "score")
    return [
        {name: row[name] for name in shown}
        for row in rows
        if row["iteration"] in (rows[0]["iteration"], rows[-1]["iteration"])
    ]


def _texts(path: Path) -> list[str | None]:
    texts = read_json(path)
    if not isinstance(texts, list):
        raise ValueError(f"{path} cannot be read (it holds no list).")
    return [None if text is None else str(text) for text in texts]


def _toxicities(path: Path) -> list[tuple[float, float]]:
    """Those of a task whose prompts have one."""
    rows = read_json_lines(path) if _asks_for_toxicity(path) else []
    pairs = [(row["about"]["prompt_toxicity"], row[_TOXICITY]) for row in rows]
    return [(float(asked), float(said)) for asked, said in pairs if asked is not None]


def _asks_for_toxicity(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline()
    return all(f'"{name}"'.encode() in first for name in (_TOXICITY, "prompt_toxicity"))


def _samples(demonstrations: list[str | None] | None, path: Path) -> dict[str, Any] | None:
    samples = read_json(path)
    prompts = samples.pop("prompts", [])
    count = min(SHOWN_PROMPTS, len(prompts))
    # The middles of equally long stretches of the set.
    chosen = [(2 * place + 1) * len(prompts) // (2 * count) for place in range(count)]
    rows = []
    for index in chosen:
        cells = [
            {"response": own["responses"][index], "score": own["scores"][index] if own.get("scores") else None}
            for own in samples.values()
        ]
        shown = demonstrations[index] if demonstrations and index < len(demonstrations) else None
        rows.append({"number": index + 1, "prompt": prompts[index], "demonstration": shown, "cells": cells})
    found = {"policies": list(samples), "rows": rows, "total": len(prompts)}
    return {**found, "demonstrated": demonstrations is not None} if rows else None
