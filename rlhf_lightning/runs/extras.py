"""Packages that only some of the commands need."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Turn the `ImportError` of a package that is missing into a sentence that says what to install.

    Args:
        what: What needs the package.
        extra: The extra of this package that brings it.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what} needs {error.name}: pip install 'rlhf-lightning[{extra}]'.") from error
