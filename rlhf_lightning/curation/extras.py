"""Packages that only some of the steps need."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(what: str) -> Iterator[None]:
    """Turn the `ImportError` of a package that is missing into a sentence that says what to install."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what} needs {error.name}: pip install 'rlhf-lightning[curation]'.") from error
