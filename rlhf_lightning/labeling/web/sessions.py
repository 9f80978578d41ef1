"""Who is signed in, in which browser; kept in the store's file, so that a restart of the server signs nobody out."""

import hashlib
import hmac
import secrets

from rlhf_lightning.labeling.accounts import Account
from rlhf_lightning.labeling.database import Database

_SECONDS = 180 * 24 * 3600
_TABLES = (
    """CREATE TABLE IF NOT EXISTS sessions (token TEXT PRIMARY KEY, labeler TEXT NOT NULL REFERENCES labelers(name),
        opened_at REAL NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS site (name TEXT NOT NULL)",
)


class Sessions:
    """Browsers that are signed in; their secrets are kept as hashes.

    Args:
        store: The file that has the labelers.
    """

    lasts = _SECONDS

    def __init__(self, store: Database) -> None:
        self._store = store
        with store.writing() as connection:
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(
                "INSERT INTO site SELECT ? WHERE NOT EXISTS (SELECT 1 FROM site)", (secrets.token_hex(8),)
            )
            self.site: str = connection.execute("SELECT name FROM site").fetchone()[0]
            """A name of this file, so that a browser does not mix up what it keeps for several."""

    def open(self, labeler: str) -> str:
        """Sign somebody in; returns the secret that their browser keeps."""
        token = secrets.token_urlsafe(32)
        with self._store.writing() as connection:
            connection.execute("DELETE FROM sessions WHERE opened_at < unixepoch() - ?", (_SECONDS,))
            connection.execute("INSERT INTO sessions VALUES (?, ?, unixepoch())", (_digest(token), labeler))
        return token

    def account(self, token: str) -> Account | None:
        """Who is signed in by this secret."""
        statement = """SELECT l.name, l.role FROM sessions s JOIN labelers l ON l.name = s.labeler
            WHERE s.token = ? AND s.opened_at > unixepoch() - ?"""
        with self._store.reading() as connection:
            row = connection.execute(statement, (_digest(token), _SECONDS)).fetchone()
        return Account(*row) if row else None

    def close(self, token: str) -> None:
        """Sign one browser out."""
        with self._store.writing() as connection:
            connection.execute("DELETE FROM sessions WHERE token = ?", (_digest(token),))

    def close_all(self, labeler: str) -> None:
        """Sign a labeler out everywhere."""
        with self._store.writing() as connection:
            connection.execute("DELETE FROM sessions WHERE labeler = ?", (labeler,))


def csrf_token(token: str) -> str:
    """What the pages of a session send along, and a page of a stranger cannot know."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
