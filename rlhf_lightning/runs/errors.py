"""Why the pipeline cannot go on: what a user can do something about."""


class PipelineError(RuntimeError):
    """The pipeline cannot go on; the message says why and what to do."""


class WaitingError(PipelineError):
    """Nothing is wrong: the message says what people are still to do, and the same command goes on after that."""
