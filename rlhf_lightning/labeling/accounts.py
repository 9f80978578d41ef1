"""Who may label: a secret link each, or a name and a password."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.labeling.database import Database
from rlhf_lightning.runs.extras import needs_extra

ROLES = ("labeler", "admin")


@dataclass(frozen=True)
class Account:
    """Who it is, and whether they only label or see everything."""

    name: str
    role: str


class Accounts(Database):
    """The labelers of a labeling; secrets are kept as hashes."""

    def add_labeler(self, name: str, role: str = "labeler") -> str:
        """Add somebody.

        Returns:
            The secret of their link, which is said this once.

        Raises:
            ValueError: When the name is taken or none, or there is no such role.
        """
        if role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}.")
        if not re.fullmatch(r"[^\W_][\w.@+ -]{0,63}", name) or name != name.strip():
            raise ValueError(
                f"the name of a labeler must be 1 to 64 letters, digits, spaces or any of . @ + - _, and begin with a "
                f"letter or a digit, got {name!r}."
            )
        token = secrets.token_urlsafe(32)
        with self.writing() as connection:
            added = connection.execute(
                "INSERT OR IGNORE INTO labelers (name, role, token) VALUES (?, ?, ?)",
                (name, role, _digest(token)),
            ).rowcount
        if not added:
            raise ValueError(f"there is a labeler {name!r} already; choose another name, or give them a new link.")
        return token

    def new_token(self, name: str) -> str:
        """Give somebody a new link; the old one ends."""
        token = secrets.token_urlsafe(32)
        self._set(name, "token", _digest(token))
        return token

    def labeler_of(self, token: str) -> Account | None:
        """Whose link it is."""
        with self.reading() as connection:
            row = connection.execute("SELECT name, role FROM labelers WHERE token = ?", (_digest(token),)).fetchone()
        return Account(*row) if row else None

    def labelers(self) -> list[Account]:
        """Everybody, in the order in which they were added."""
        with self.reading() as connection:
            return [Account(*row) for row in connection.execute("SELECT name, role FROM labelers ORDER BY rowid")]

    def set_password(self, name: str, password: str) -> None:
        """Let somebody come in by name and password as well.

        Raises:
            ValueError: When it has fewer than 10 characters, or nobody has the name.
        """
        if not 10 <= len(password) <= 1000:
            raise ValueError("a password needs 10 characters at least, and has 1,000 at most.")
        self._set(name, "password", _hasher().hash(password))

    def check_password(self, name: str, password: str) -> Account | None:
        """Who comes in by this name and password; None where they are wrong."""
        with self.reading() as connection:
            row = connection.execute("SELECT name, role, password FROM labelers WHERE name = ?", (name,)).fetchone()
        hasher, stored = _hasher(), row["password"] if row else None
        from argon2.exceptions import VerifyMismatchError

        try:
            # Whoever has no password takes as long, so that nobody finds out who has one.
            known = hasher.verify(stored, password[:1000]) if stored else hasher.hash(password[:1000]) is None
        except VerifyMismatchError:
            known = False
        return Account(row["name"], row["role"]) if known else None

    def _set(self, name: str, column: str, value: str | None) -> None:
        with self.writing() as connection:
            if not connection.execute(f"UPDATE labelers SET {column} = ? WHERE name = ?", (value, name)).rowcount:
                raise ValueError(f"there is no labeler {name!r}.")


def _hasher() -> Any:
    with needs_extra("A password", "label"):
        from argon2 import PasswordHasher
    return PasswordHasher()


def _digest(token: str) -> str:
    # A secret of 256 bits cannot be guessed: a slow hash would protect nothing.
    return hashlib.sha256(token.encode()).hexdigest()
