"""The tokenizer of a step: every model folder brings its own, and models that work together have to share one."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.tokenization.endings import disagreement
from rlhf_lightning.tokenization.formats import PromptFormat, kept_format
from rlhf_lightning.tokenization.loading import load_tokenizer


class Tokenizers:
    """Loads the tokenizer of each model once.

    Args:
        make: Makes the tokenizer of the configuration's base model.
        path: Folder or hub id of a model by name; None for that base model.
        steps: Names of steps, whose folders have all that a tokenizer needs.
        options: Arguments of `load_tokenizer` besides the path, for every other folder.
    """

    def __init__(
        self,
        make: Callable[[], PreTrainedTokenizerBase],
        path: Callable[[str], Path | str | None],
        steps: Collection[str],
        options: Mapping[str, Any],
    ) -> None:
        self.make, self.path, self.steps, self.options = make, path, steps, options
        self._loaded: dict[str | None, PreTrainedTokenizerBase] = {}
        self._told: set[str] = set()

    def of(self, name: str) -> PreTrainedTokenizerBase:
        """The tokenizer in the folder of a model."""
        path = self.path(name)
        if path is None:
            return self.described()
        options = {} if name.partition("/")[0] in self.steps else self.options
        if str(path) not in self._loaded:
            self._loaded[str(path)] = load_tokenizer(str(path), **options)
        return self._loaded[str(path)]

    def described(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the base model as the configuration has it, whatever a step made of it."""
        if None not in self._loaded:
            self._loaded[None] = self.make()
        return self._loaded[None]

    def shared(self, step: str, models: Mapping[str, str]) -> PreTrainedTokenizerBase:
        """The tokenizer that the models of a step share, each by its role; that of the first one.

        Raises:
            PipelineError: When two of them disagree.
        """
        (first, name), *others = models.items()
        tokenizer = self.of(name)
        for role, other in others:
            if other != name and (fault := disagreement(tokenizer, self.of(other))):
                setting = f"{step}.{role}" if role.isidentifier() else f"what {step} names"
                raise PipelineError(
                    f"{step} reads the same tokens by {first} ({name}) and {role} ({other}), but they differ in "
                    f"{fault}. Name models that come from the same one: check model=, upstream and {setting}."
                )
        return tokenizer

    def other_formats(self, step: str, models: Mapping[str, str], held: PromptFormat) -> Iterator[str]:
        """A sentence for each model of a step that was trained on another format of prompts; each is said once."""
        for role, name in models.items():
            trained = kept_format(self.of(name))
            sentence = (
                f"its {role} ({name}) was trained on prompts of data.format={trained}, this step gives it "
                f"data.format={held}."
            )
            if trained not in (None, held) and f"{step} {sentence}" not in self._told:
                self._told.add(f"{step} {sentence}")
                yield sentence
