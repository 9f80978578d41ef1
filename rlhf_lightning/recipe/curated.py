"""What curation left, as a source of records for the steps after it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.data.rows.records_of import read_records
from rlhf_lightning.data.sources import RECORD_TYPES
from rlhf_lightning.runs.digests import known_digests
from rlhf_lightning.runs.folders import PipelineError, read_stage
from rlhf_lightning.runs.identity import plain, records_fingerprint
from rlhf_lightning.runs.secrets import redacted


class CuratedData:
    """The prompts, demonstrations and rankings that stage curate wrote.

    Args:
        folder: The step's folder.
        data: The fingerprint of the data option as it is now.
        config: The configuration as it is now.
        held: Puts what files hold in place of their paths; see `Context.held`.

    Raises:
        PipelineError: When the stage curated other data, or for shorter texts or another tokenizer, so that responses
            which it cut would seem to be whole.
    """

    def __init__(self, folder: Path, data: str, config: Mapping[str, Any], held: Callable[[Any], Any]) -> None:
        stage = read_stage(folder)
        if stage["identity"]["data"] != data:
            raise PipelineError(
                f"{folder} holds records curated from other data. Give the same data=..., name another run or upstream "
                "or curate these: stages=[curate,...]."
            )
        self.folder = folder
        self.fingerprint = records_fingerprint(folder, known_digests(folder, stage.get("files", {})))
        self._metrics, then = stage.get("metrics", {}), stage["identity"]["config"]
        for name in ("max_prompt_tokens", "max_response_tokens"):
            if config["data"]["lengths"][name] > then["data"][name]:
                raise PipelineError(
                    f"data.lengths.{name} is {config['data']['lengths'][name]}, but {folder} was curated for "
                    f"{then['data'][name]}, and what was longer is gone. Lower it to that, or curate again: "
                    "stages=[curate,...] in another run."
                )
        cut = any(books["changed"].get("response cut") for books in self._metrics.values())
        if cut and redacted(plain(held(config["model"]["tokenizer"]))) != then["model"]["tokenizer"]:
            raise PipelineError(
                f"{folder} holds responses that were cut by the tokens of another tokenizer. Give the same model=..., "
                "or curate again: stages=[curate,...] in another run."
            )

    def holds(self, name: str) -> bool:
        """Whether records of that kind were curated."""
        return name in self._metrics

    def has(self, name: str, split: str) -> bool:
        """Whether records of that kind and split stayed."""
        path = self.folder / f"{name}.{split}.jsonl"
        return path.exists() and path.stat().st_size > 0

    def records(self, name: str, split: str) -> list[Any] | None:
        """Records of that kind and split; None where none stayed."""
        path = self.folder / f"{name}.{split}.jsonl"
        return read_records(path, RECORD_TYPES[name]) if self.has(name, split) else None
