"""The SQLite file of a labeling: opened safely, written in whole transactions, its errors said in sentences."""

import errno
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rlhf_lightning.runs.errors import PipelineError

VERSION = 1
"""Of the schema; it goes up with each change."""
_APPLICATION = 0x524C4846
"""Says that the file is ours."""
_SCHEMA = (
    """CREATE TABLE tasks (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, batch TEXT NOT NULL,
        wanted INTEGER, lacking INTEGER NOT NULL, closed INTEGER NOT NULL DEFAULT 0, body TEXT NOT NULL)""",
    "CREATE INDEX unfinished ON tasks (number) WHERE lacking > 0 AND NOT closed",
    """CREATE TABLE labelers (
        name TEXT PRIMARY KEY, role TEXT NOT NULL, token TEXT NOT NULL UNIQUE, password TEXT)""",
    """CREATE TABLE assignments (
        id INTEGER PRIMARY KEY AUTOINCREMENT, task INTEGER NOT NULL REFERENCES tasks(number),
        labeler TEXT NOT NULL REFERENCES labelers(name), display TEXT NOT NULL, given_at REAL NOT NULL,
        touched_at REAL NOT NULL, draft TEXT, done INTEGER NOT NULL DEFAULT 0, UNIQUE (task, labeler))""",
    """CREATE TRIGGER counted AFTER UPDATE OF done ON assignments BEGIN
        UPDATE tasks SET lacking = lacking - (new.done - old.done) WHERE number = new.task AND wanted IS NOT NULL;
    END""",
    "CREATE INDEX by_labeler ON assignments (labeler, done)",
    # A row is never changed but for `undone_at`, and never deleted: the history of every answer.
    """CREATE TABLE saves (
        number INTEGER PRIMARY KEY, submission TEXT NOT NULL UNIQUE,
        assignment INTEGER NOT NULL REFERENCES assignments(id), answer TEXT NOT NULL,
        skipped INTEGER NOT NULL, seconds REAL NOT NULL, saved_at REAL NOT NULL, undone_at REAL)""",
    "CREATE UNIQUE INDEX one_answer ON saves (assignment) WHERE undone_at IS NULL",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)

_File = TypeVar("_File", bound="Database")
_Found = TypeVar("_Found")


class Database:
    """One SQLite file in WAL mode, for threads and processes at once; each process opens it anew, also after a fork.

    Args:
        path: The file; it is made where there is none.
        patience: Seconds to wait for another writer.

    Raises:
        PipelineError: When the file is damaged, of another program or of a newer version, or cannot be used here.
    """

    def __init__(self, path: Path, patience: float = 30.0) -> None:
        self.path, self._patience = path, patience
        self._idle: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        weakref.finalize(self, _close, self._idle)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._sentences():
            self._patiently(self._prepare)

    def __enter__(self: _File) -> _File:
        """The file, until the block ends."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of it."""
        self.close()

    def close(self) -> None:
        """Let go of the file; what was saved is in it and nowhere else."""
        with self._guard:
            _close(self._idle)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """See one state of the file, whatever others write meanwhile."""
        with self._sentences(), self._connection("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Write all or nothing, alone; what is written lasts through a power cut once the block has ended."""
        with self._sentences(), self._connection("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _connection(self, begin: str) -> Iterator[sqlite3.Connection]:
        connection = self._patiently(lambda: self._begun(begin))
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # Closing rolls back, also where SQLite has done so by itself.
            connection.close()
            raise
        with self._guard:
            self._idle.append(connection)

    def _begun(self, begin: str) -> sqlite3.Connection:
        with self._guard:
            connection = self._idle.pop() if self._idle else None
        connection = connection or sqlite3.connect(
            self.path, timeout=self._patience, isolation_level=None, check_same_thread=False
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(begin)
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # only now a reader has its state
        except BaseException:
            connection.close()
            raise
        return connection

    def _patiently(self, work: Callable[[], _Found]) -> _Found:
        """Wait for those who make or close the file, or mend it after a kill; SQLite waits for those who write alone.

        Source: https://www.sqlite.org/wal.html, "Sometimes Queries Return SQLITE_BUSY In WAL Mode".
        """
        until = time.monotonic() + self._patience
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() >= until:
                    raise
                time.sleep(0.02)

    def _prepare(self) -> None:
        connection = self._begun("BEGIN")  # one state, whatever a process that makes the file writes meanwhile
        try:
            self._check(connection)
            connection.execute("COMMIT")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise PipelineError(
                    f"{self.path} cannot be kept safely on this file system (SQLite has no WAL mode on it, as on "
                    "network folders). Put the run on a disk of this machine."
                )
            connection.execute("BEGIN IMMEDIATE")
            if not self._check(connection):  # another process may have been first
                for statement in _SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")
        finally:
            connection.close()

    def _check(self, connection: sqlite3.Connection) -> bool:
        """Whether the file has our tables; False where it is new."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION and tables:
            raise PipelineError(f"{self.path} is a database of another program. Move it away, or name another run.")
        if version > VERSION:
            raise PipelineError(
                f"{self.path} was written by a newer rlhf_lightning (version {version} of its tables, {VERSION} is "
                "known here). Update the package; nothing was changed."
            )
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(said)
        return bool(tables)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "SQLITE_CORRUPT")
            if name.startswith("SQLITE_BUSY"):
                raise TimeoutError(
                    f"{self.path} was busy for {self._patience:g} seconds; nothing was saved. Try again."
                ) from error
            if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
                raise OSError(
                    errno.ENOSPC if name == "SQLITE_FULL" else errno.EIO,
                    f"{error}: nothing was saved, what was saved before is kept. Make room and try again",
                    str(self.path),
                ) from error
            if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                found = " ".join(str(error).split())
                raise PipelineError(
                    f"{self.path} is damaged ({found}). Put it back from a copy, with the files {self.path.name}-wal "
                    "and -shm of that copy where it has them; or move it away to begin anew."
                ) from error
            if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
                raise PipelineError(
                    f"{self.path} cannot be written ({error}). Give this user the right to write there."
                ) from error
            raise


def _close(connections: list[sqlite3.Connection]) -> None:
    while connections:
        connections.pop().close()
