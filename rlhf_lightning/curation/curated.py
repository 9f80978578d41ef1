"""What curation left, as a source of records for the stages after it."""

from pathlib import Path
from typing import Any

from rlhf_lightning.artifacts import PipelineError, read_stage
from rlhf_lightning.data.sources import RECORD_TYPES, read_records


class CuratedData:
    """The prompts, demonstrations and rankings that stage curate wrote.

    Args:
        folder: Of the stage.
        data: Fingerprint of the data option as it is now.

    Raises:
        PipelineError: When the stage curated other data.
    """

    def __init__(self, folder: Path, data: str) -> None:
        stage = read_stage(folder)
        if stage["identity"]["data"] != data:
            raise PipelineError(
                f"{folder} holds records curated from other data. Give the same data=..., name another run or upstream "
                "or curate these: stages=[curate,...]."
            )
        self.folder, self.fingerprint = folder, str(stage["fingerprint"])

    def records(self, name: str, split: str) -> list[Any] | None:
        """Records of that kind and split; None where none stayed."""
        path = self.folder / f"{name}.{split}.jsonl"
        return read_records(path, RECORD_TYPES[name]) if path.exists() and path.stat().st_size else None
