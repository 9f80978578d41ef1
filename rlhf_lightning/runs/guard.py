"""What a process says of itself, in its log and on its standard error, passes here: secrets are taken out."""

import logging
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TextIO, cast

from rlhf_lightning.runs.secrets import redacted


def guard_output() -> None:
    """Take secrets out of standard error, with its warnings and tracebacks, and of every log, from now on."""
    if not isinstance(sys.stderr, _Guarded):
        sys.stderr = cast(TextIO, _Guarded(sys.stderr))
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, _Records):
        logging.setLogRecordFactory(_Records(factory))


class _Guarded:
    """A stream that writes no secrets.

    Args:
        stream: The stream behind it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Records:
    """Makes records of logs whose message and traceback hold no secrets, whatever handler writes them.

    Args:
        factory: Makes the records otherwise.
    """

    def __init__(self, factory: Callable[..., logging.LogRecord]) -> None:
        self._factory = factory

    def __call__(self, *args: Any, **options: Any) -> logging.LogRecord:
        record = self._factory(*args, **options)
        try:
            record.msg, record.args = redacted(record.getMessage()), ()
        except (TypeError, ValueError, KeyError):  # arguments that do not fit: logging says so on standard error
            return record
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redacted("".join(traceback.format_exception(record.exc_info[1])).rstrip("\n"))
        return record
