"""The error that a user can do something about."""


class PipelineError(RuntimeError):
    """The pipeline cannot go on; the message says why and what to do."""
