"""Where the pipeline gets records from: files and folders, by kind and split."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from rlhf_lightning.arguments import checked, nearest
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Record, Text
from rlhf_lightning.data.rows.files import file_book, files_of, holds_split, is_saved_data_set
from rlhf_lightning.data.rows.malformed import MalformedRows
from rlhf_lightning.data.rows.readers import SUFFIXES, SourceRow
from rlhf_lightning.data.rows.records_of import KEYS, check_source, placed_records
from rlhf_lightning.runs.identity import file_digest, fingerprint

Split = Literal["train", "validation", "test"]
Kind = Literal["demonstrations", "comparisons", "judge_comparisons", "prompts", "text"]
WRITTEN = "demonstrations.train.jsonl"
"""What people wrote, in a folder that was exported."""
RECORD_TYPES: dict[str, type[Record]] = {
    "demonstrations": Demonstration,
    "comparisons": Comparison,
    "judge_comparisons": Comparison,
    "prompts": Prompt,
    "text": Text,
}
"""What a data source may hold, by name; ``judge_comparisons`` train the reward model that judges the evaluation."""


@runtime_checkable
class DataSource(Protocol):
    """What the pipeline asks of a data option: records by kind (see ``RECORD_TYPES``) and split."""

    @property
    def malformed(self) -> Mapping[str, MalformedRows]:
        """The malformed rows that were met so far, by the file that they went to."""

    def has(self, name: str, split: str) -> bool:
        """Whether there are records of that kind and split, without reading them."""

    def records(self, name: str, split: str) -> list[Any] | None:
        """The records of that kind and split; None where the source has none."""

    def stream(self, name: str, split: str) -> Iterable[Any] | None:
        """The same as something that can be gone through again and again, and need not hold them."""

    def fingerprint(self) -> str:
        """Changes when the data changes."""


def check_data_source(source: object) -> DataSource:
    """The source, if it answers all that is asked of one; else a `ValueError` names what a user's own class lacks."""
    if isinstance(source, DataSource):
        return source
    asked = ("malformed", "has", "records", "stream", "fingerprint")
    lacking = [name for name in asked if not hasattr(source, name)]
    raise ValueError(
        f"data.source builds a {type(source).__name__} without {', '.join(lacking)}. "
        "Add what rlhf_lightning.data.sources.DataSource asks: has(name, split), records(name, split), "
        "stream(name, split), fingerprint() and the mapping malformed."
    )


class RecordStream:
    """Records that are read from their sources anew each time one goes through them, and never held all at once.

    Its ``malformed`` rows, and those that hold no such record (``left_out``), are those of the last time that one went
    through all.

    Args:
        sources: Read one after the other; see `read_records`.
        kind: The record to build.
        aside: The file that malformed rows go to, each time; None stops at them.
        told: Gets what went there, by the file's name.
        check: Raises a `RecordError` at records that cannot be used; they count as malformed.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        kind: type[Any],
        aside: Path | None,
        told: dict[str, MalformedRows],
        check: Callable[[Record], None] | None = None,
    ) -> None:
        self.sources, self.kind, self.aside, self.told, self.check = sources, kind, aside, told, check
        self.malformed = MalformedRows()
        self.left_out: list[SourceRow] = []

    def __iter__(self) -> Iterator[Any]:
        """The records."""
        return (record for _, record in self.placed())

    def placed(self) -> Iterator[tuple[str, Any]]:
        """Each record with its place.

        Raises:
            RecordError: At malformed rows that are not put aside, or a source without any other.
        """
        left_out: list[SourceRow] = []
        with MalformedRows(self.aside) as malformed:
            for source in self.sources:
                keep = malformed.add if self.aside else None
                yield from placed_records(source, self.kind, keep, left_out.append, self.check)
        self.malformed, self.left_out = malformed, left_out
        if malformed:
            self.told[str(self.aside)] = malformed


class FileData:
    """Records in files, one entry per kind and split.

    Args:
        root: The folder that relative paths start from; None for the working directory, and for ids of the hub.
        files: ``{kind: {split: source or list of sources}}`` with the kinds of ``RECORD_TYPES`` and the splits
            ``train``, ``validation``, ``test``; see `read_records` for what a source may be. A source with ``hub``, an
            id, is read from there without ``root``, and from ``path`` below it otherwise (default: the folder itself);
            what that does not hold counts as not given.
        on_error: ``stop`` at malformed rows, or ``quarantine``: write them to a file and go on.
        quarantine: The folder for malformed rows, one JSONL file per kind and split with place, problem and row.
        labels: A folder that ``rlhf-label --export`` wrote; its demonstrations come after those of the files.
        by_name: Whether a kind and split that `files` leaves open is looked for in `root`, as
            `demonstrations.train.jsonl` or with another suffix of a file that can be read.

    Raises:
        ValueError: When a key is unknown, a file does not exist, or `by_name` finds none.
    """

    @checked
    def __init__(
        self,
        root: str | None,
        files: Mapping[Kind, Mapping[Split, Any]],
        on_error: Literal["stop", "quarantine"] = "stop",
        quarantine: str | None = None,
        by_name: bool = False,
        labels: str | None = None,
    ) -> None:
        if on_error == "quarantine" and quarantine is None:
            raise ValueError("on_error=quarantine needs the folder that malformed rows go to: quarantine=<folder>.")
        self.root, self.by_name = None if root is None else Path(root), by_name
        self.quarantine = Path(quarantine) if on_error == "quarantine" and quarantine is not None else None
        self.malformed: dict[str, MalformedRows] = {}
        self.left_out: dict[str, dict[str, int]] = {}
        self.check: Callable[[Record], None] | None = None
        """What else speaks against a record: `Tokenization.check` where a chat template refuses it."""
        self.files: dict[str, dict[str, list[Any]]] = {}
        absent: list[str] = []
        for name, splits in files.items():
            self.files[name] = {}
            for split, sources in splits.items():
                listed = sources if isinstance(sources, list) else [sources]
                found = [self._found(source, name, split, absent) for source in listed if source]
                self.files[name][split] = [source for source in found if source]
                if by_name and not any(listed):
                    self.files[name][split] = self._named(name, split)
        if labels is not None:
            if not (written := Path(labels) / WRITTEN).is_file():
                raise ValueError(
                    f"data.labels={labels} holds no {WRITTEN}. Write it: rlhf-label <run> --export {labels}."
                )
            self.files.setdefault("demonstrations", {}).setdefault("train", []).append(
                {"split": "train", "path": str(written)}
            )
        if by_name and not self._sources():
            place = (self.root or Path()).resolve()
            if not place.is_dir():
                raise ValueError(f"data.root={root} is no folder: there is no {place}. Mend the path.")
            raise ValueError(
                f"data.root={root} holds no records: their files are called <kind>.<split>.jsonl (or "
                f"{', '.join(SUFFIXES)}), such as demonstrations.train.jsonl; the kinds are {', '.join(RECORD_TYPES)}. "
                "Mend data.root, rename the files, or name them in data.source.files."
            )
        if absent and not self._sources():
            raise ValueError(
                f"data.root={root} holds no {', '.join(SUFFIXES)} file for {', '.join(absent)}. Name the folder with "
                "the files of the set, or give data.root=null to read it from the hub."
            )

    def has(self, name: str, split: str) -> bool:
        """Whether a source is named for that kind and split; what it holds shows when it is read."""
        return bool(self.files.get(name, {}).get(split))

    def records(self, name: str, split: str) -> list[Record] | None:
        """Records of that kind and split; None where no file is given."""
        stream = self.stream(name, split)
        if stream is None:
            return None
        found = list(stream)
        if stream.left_out:
            self.left_out[f"{name}.{split}"] = dict(Counter(str(row.problem) for row in stream.left_out))
        return found

    def stream(self, name: str, split: str) -> RecordStream | None:
        """The same without holding them; each time one goes through it, the files are read anew."""
        if not self.has(name, split):
            return None
        aside = None if self.quarantine is None else self.quarantine / f"{name}.{split}.jsonl"
        return RecordStream(self.files[name][split], RECORD_TYPES[name], aside, self.malformed, self.check)

    def fingerprint(self, kinds: Collection[str] = ()) -> str:
        """Hash of what the files hold and how it is read, by kind and split; neither paths nor names of files count.

        Args:
            kinds: The kinds that count; () stands for all.
        """
        places = self._places(kinds)
        return fingerprint({place: [[_options(each), _contents(each)] for each in found] for place, found in places})

    def books(self, kinds: Collection[str] = ()) -> dict[str, list[dict[str, Any]]]:
        """Of every file its name below the root, what it holds and its rows (`file_book`), by kind and split."""
        root = (self.root or Path()).resolve()
        return {
            place: [
                {**file_book(file, root), "options": _options(source)} for source in found for file in _files(source)
            ]
            for place, found in self._places(kinds)
        }

    def unread(self) -> Iterator[tuple[str, str]]:
        """Files of the root that are not read and called almost as one that would be, and what that is called."""
        if not self.by_name or not (self.root or Path()).is_dir():
            return
        read = {str(source["path"]) for source in self._sources()}
        suffixes = "|".join(map(re.escape, SUFFIXES))
        for path in sorted((self.root or Path()).iterdir()):
            found = re.fullmatch(rf"(\w+)[.-](\w+)((?:{suffixes})(?:\.gz)?)", path.name)
            if found and str(path) not in read:
                kind, split = nearest(found[1], RECORD_TYPES, 0.8), nearest(found[2], get_args(Split))
                if kind and split and (meant := f"{kind}.{split}{found[3]}") != path.name:
                    yield path.name, meant

    def _places(self, kinds: Collection[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        return (
            (f"{name}.{split}", sources)
            for name, splits in self.files.items()
            for split, sources in splits.items()
            if sources and (not kinds or name in kinds)
        )

    def _sources(self) -> list[dict[str, Any]]:
        return [source for splits in self.files.values() for sources in splits.values() for source in sources]

    def _named(self, name: str, split: str) -> list[dict[str, Any]]:
        """The file in the root that is called by its kind and split."""
        suffixes = [*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES)]
        paths = [(self.root or Path()) / f"{name}.{split}{suffix}" for suffix in suffixes]
        found = [path for path in paths if path.is_file()]
        if len(found) > 1:
            both = " and ".join(path.name for path in found)
            raise ValueError(f"data.root={self.root} holds {both}. Name one of them: data.source.files.{name}.{split}.")
        return [{"split": split, "path": str(path)} for path in found]

    def _found(self, source: Any, name: str, split: str, absent: list[str]) -> dict[str, Any] | None:
        """The source with its place filled in; None, and noted, where the root does not hold it."""
        where = f"data.source.files.{name}.{split}"
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
            files_of(local, split)  # refuses what is no file
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


def _files(source: Mapping[str, Any]) -> list[Path]:
    """The files here that a source is read from."""
    path = Path(source["path"])
    found = sorted(path.rglob("*")) if is_saved_data_set(path) else files_of(path, source["split"])
    return [file for file in found if file.is_file()]


def _contents(source: Mapping[str, Any]) -> list[str]:
    """What a source holds; a set of the hub is its id."""
    if not Path(source["path"]).exists():
        return [str(source["path"])]
    # The name says how a file is read: one with another suffix is JSONL.
    suffixes = (*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES))
    kinds = [next((suffix for suffix in suffixes if file.name.endswith(suffix)), ".jsonl") for file in _files(source)]
    return [f"{kind} {file_digest(file)}" for kind, file in zip(kinds, _files(source), strict=True)]


def _options(source: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in source.items() if name != "path"}
