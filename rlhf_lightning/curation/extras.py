"""Packages that only some of the steps need."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(what: str) -> Iterator[None]:
    """Turn a failing import into a sentence that says what to install.

    Raises:
        ImportError: When a package imported inside is missing.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what} needs {error.name}: pip install 'rlhf-lightning[curation]'.") from error
