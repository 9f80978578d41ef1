"""Where the pipeline gets records from: files and folders, by kind and split."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Record, Text
from rlhf_lightning.data.rows.files import files_of, holds_split, is_saved_data_set
from rlhf_lightning.data.rows.readers import SUFFIXES, SourceRow
from rlhf_lightning.data.rows.records_of import KEYS, Source, check_source, placed_records, read_records
from rlhf_lightning.parallel.processes import rank

__all__ = ["RECORD_TYPES", "DataSource", "FileData", "RecordStream", "Source", "read_records"]

RECORD_TYPES: dict[str, type[Record]] = {
    "demonstrations": Demonstration,
    "comparisons": Comparison,
    "judge_comparisons": Comparison,
    "prompts": Prompt,
    "text": Text,
}
"""What a data source may hold, by name; ``judge_comparisons`` train the reward model that judges the evaluation."""


class DataSource(Protocol):
    """What the pipeline asks of a data option."""

    def records(self, name: str, split: str) -> list[Any] | None:
        """Records of that name (see ``RECORD_TYPES``) and split; None where the source has none."""

    def fingerprint(self) -> str:
        """Changes when the data changes."""


class Quarantine(AbstractContextManager["Quarantine"]):
    """A JSONL file of malformed rows with their places and problems, written row by row.

    It appears when all is read; without a malformed row one of an earlier run goes. Where there are several processes,
    the first one writes. As a sequence it is the problems as sentences, read from the file each time.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.first = path, 0, ""
        self._unfinished = path.with_name(path.name + ".unfinished")
        self._file: TextIO | None = None

    def add(self, row: SourceRow) -> None:
        """Write one."""
        self.count += 1
        self.first = self.first or f"{row.place}: {row.problem}"
        if rank() != 0:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Half a surrogate pair cannot be written; as \\ud800, which JSON reads back, it can.
            self._file = self._unfinished.open("w", encoding="utf-8", errors="backslashreplace")
        fields = {"place": row.place, "problem": row.problem, "row": row.value}
        if row.unread:
            fields["unread"] = True
        self._file.write(json.dumps(fields, ensure_ascii=False, default=str) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file; where reading stopped before its end, it says nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if rank() != 0:
            return
        if kind is not None:
            self._unfinished.unlink(missing_ok=True)
        elif self.count:
            self._unfinished.replace(self.path)
        else:
            self.path.unlink(missing_ok=True)

    def rows(self) -> Iterator[SourceRow]:
        """The malformed rows, without their values."""
        if self.count:
            with self.path.open(encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    yield SourceRow(row["place"], None, row["problem"], row.get("unread", False))

    def __len__(self) -> int:
        """How many."""
        return self.count

    def __iter__(self) -> Iterator[str]:
        """Place and problem of each."""
        return (f"{row.place}: {row.problem}" for row in self.rows())

    def __getitem__(self, place: int) -> str:
        """Place and problem of one."""
        return self.first if place == 0 else list(self)[place]


class RecordStream:
    """Records that are read from their sources anew each time one goes through them, and never held all at once.

    Args:
        sources: One after the other; see :func:`read_records`.
        kind: The record to build.
        aside: The file that malformed rows go to, each time; None stops at them.
        told: Gets what went there, by the file's name.
    """

    def __init__(
        self, sources: Sequence[Any], kind: type[Any], aside: Path | None, told: dict[str, Quarantine]
    ) -> None:
        self.sources, self.kind, self.aside, self.told = sources, kind, aside, told
        self.quarantine: Quarantine | None = None

    def __iter__(self) -> Iterator[Any]:
        """The records."""
        return (record for _, record in self.placed())

    def placed(self) -> Iterator[tuple[str, Any]]:
        """Each record with its place.

        Raises:
            RecordError: At malformed rows that are not put aside, or a source without any other.
        """
        if self.aside is None:
            for source in self.sources:
                yield from placed_records(source, self.kind)
            return
        with Quarantine(self.aside) as quarantine:
            for source in self.sources:
                yield from placed_records(source, self.kind, quarantine.add)
        self.quarantine = quarantine
        if quarantine.count:
            self.told[str(self.aside)] = quarantine

    def malformed(self) -> Iterator[SourceRow]:
        """The malformed rows of the last time that one went through them all."""
        return iter(()) if self.quarantine is None else self.quarantine.rows()


class FileData:
    """Records in files, one entry per kind and split.

    Args:
        root: Folder that relative paths start from; None for the working directory, and for ids of the hub.
        files: ``{kind: {split: source or list of sources}}`` with the kinds of ``RECORD_TYPES`` and the splits
            ``train``, ``validation``, ``test``; see :func:`read_records` for what a source may be. A source with
            ``hub``, an id, is read from there without ``root``, and from ``path`` below it otherwise (default: the
            folder itself); what that does not hold counts as not given.
        on_error: ``stop`` at malformed rows, or ``quarantine``: write them to a file and go on.
        quarantine: Folder for malformed rows, one JSONL file per kind and split with place, problem and row.

    Raises:
        ValueError: When a kind or a key is unknown or a file does not exist.
    """

    def __init__(
        self,
        root: str | None,
        files: Mapping[str, Mapping[str, Any]],
        on_error: str = "stop",
        quarantine: str | None = None,
    ) -> None:
        if on_error not in ("stop", "quarantine"):
            raise ValueError(f"on_error must be stop or quarantine, got {on_error!r}.")
        if on_error == "quarantine" and quarantine is None:
            raise ValueError("on_error=quarantine needs the folder that malformed rows go to: quarantine=<folder>.")
        self.root = None if root is None else Path(root)
        self.quarantine = Path(quarantine) if on_error == "quarantine" and quarantine is not None else None
        self.malformed: dict[str, Quarantine] = {}
        self.files: dict[str, dict[str, list[Any]]] = {}
        absent: list[str] = []
        for name, splits in files.items():
            if name not in RECORD_TYPES:
                raise ValueError(f"data.files.{name} is unknown; the kinds are {', '.join(RECORD_TYPES)}.")
            self.files[name] = {}
            for split, sources in splits.items():
                listed = sources if isinstance(sources, list) else [sources]
                found = [self._found(source, name, split, absent) for source in listed if source]
                self.files[name][split] = [source for source in found if source]
        if absent and not any(sources for splits in self.files.values() for sources in splits.values()):
            raise ValueError(
                f"data.root={root} holds no {', '.join(SUFFIXES)} file for {', '.join(absent)}. Name the folder with "
                "the files of the set, or give data.root=null to read it from the hub."
            )

    def records(self, name: str, split: str) -> list[Record] | None:
        """Records of that kind and split; None where no file is given."""
        stream = self.stream(name, split)
        return None if stream is None else list(stream)

    def stream(self, name: str, split: str) -> RecordStream | None:
        """The same without holding them; each time one goes through it, the files are read anew."""
        sources = self.files.get(name, {}).get(split)
        if not sources:
            return None
        aside = None if self.quarantine is None else self.quarantine / f"{name}.{split}.jsonl"
        return RecordStream(sources, RECORD_TYPES[name], aside, self.malformed)

    def fingerprint(self) -> str:
        """Hash of the sources and of the bytes of every local file."""
        digest = hashlib.sha256(json.dumps(self.files, sort_keys=True, default=str).encode())
        for splits in self.files.values():
            for source in (source for sources in splits.values() for source in sources):
                path = Path(source["path"])
                files = sorted(path.rglob("*")) if is_saved_data_set(path) else files_of(path, source["split"])
                for file in (file for file in files if file.is_file()):
                    with file.open("rb") as content:
                        while block := content.read(1 << 20):
                            digest.update(block)
        return digest.hexdigest()[:16]

    def _found(self, source: Any, name: str, split: str, absent: list[str]) -> dict[str, Any] | None:
        """The source with its place filled in; None, and noted, where the root does not hold it."""
        where = f"data.files.{name}.{split}"
        found: dict[str, Any] = {"split": split, **(source if isinstance(source, Mapping) else {"path": str(source)})}
        check_source(found, where, ("hub", *KEYS))
        if not found.keys() & {"path", "hub"}:
            raise ValueError(f"{where} has the keys {', '.join(found)}, but neither path nor hub. Add one of them.")
        identifier = found.pop("hub", None)
        if identifier is not None and self.root is None:
            return {**found, "path": identifier}
        path = str(found.get("path", "."))
        local = (self.root or Path()) / path
        if local.exists() if identifier is None else holds_split(local, found["split"]):
            return {**found, "path": str(local)}
        if identifier is not None:
            absent.append(f"{identifier} ({where})")
            return None
        if path.endswith((*SUFFIXES, ".gz")) or path.startswith((".", "/")):
            raise ValueError(
                f"{where}: {local} does not exist. Set data.root to the folder that holds it (now {self.root}), or the "
                "entry to null."
            )
        return found
