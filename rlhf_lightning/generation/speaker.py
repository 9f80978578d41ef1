"""A model that one talks to: it remembers the conversation, and its answers come token by token."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from rlhf_lightning.models.loading import DType, fit_to_tokenizer, load_causal_lm, model_config
from rlhf_lightning.models.scalar_head import HEAD_FILE
from rlhf_lightning.runs.exported import data_settings, exported_model
from rlhf_lightning.runs.hub import model_source
from rlhf_lightning.tokenization.dialogue import DialogueEncoder
from rlhf_lightning.tokenization.endings import end_token_ids, stop_strings
from rlhf_lightning.tokenization.loading import load_tokenizer
from rlhf_lightning.tokenization.unknown import unknown_tokens

LIMIT = 512
"""Tokens of an answer where neither the user nor the model's folder says."""


class Speaker:
    """A model with its conversation.

    Args:
        path: A folder of a model, of an adapter or of a step, a shipped model, or a hub id.
        temperature: What divides the logits; 0 takes the likeliest token. None samples by its generation config.
        max_new_tokens: Limit of an answer; None is that of its folder, or `LIMIT`.
        seed: Seed of the sampling.
        system: The system message.
        device: Name of the torch device.

    Raises:
        FileNotFoundError: As `exported_model`.
        ValueError: When it is a reward model, or has no place for a system message.
    """

    def __init__(
        self,
        path: str,
        *,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        system: str | None = None,
        device: str = "cpu",
    ) -> None:
        self.name, self.temperature, self.seed = path, temperature, seed
        source = exported_model(path)
        _check_writes(source, path)
        self.tokenizer = load_tokenizer(source)
        dtype: DType = "float32" if device == "cpu" else "bfloat16"
        model = fit_to_tokenizer(load_causal_lm(source, dtype=dtype), self.tokenizer)
        self.model: Any = torch.nn.Module.to(model, device).eval()
        data = data_settings(source)
        self.encoder = DialogueEncoder(self.tokenizer, data.get("prompt_template"))
        own = self.model.generation_config
        self.limit = max_new_tokens or own.max_new_tokens or data.get("max_response_tokens") or LIMIT
        self.context: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.messages: list[dict[str, str]] = []
        self.answers = 0
        self.system: str | None = None
        if system is not None:
            self.reset(system)

    @property
    def has_turns(self) -> bool:
        """Whether its format holds a conversation; otherwise each message stands alone."""
        return self.encoder.uses_chat

    def reset(self, system: str | None = None) -> None:
        """Forget the conversation; with a text, begin the next one with that system message."""
        if system is not None:
            if not self.has_turns:
                raise ValueError(
                    f"{self.name} was not trained on conversations, so it has no place for a system message."
                )
            self.encoder.prompt_text([{"role": "system", "content": system}, {"role": "user", "content": "Hello"}])
            self.system = system
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, message: str, show: Callable[[str], None]) -> str | None:
        """Answer a message, and remember both.

        Args:
            message: What the user says.
            show: Gets the text of the answer so far, each time that it grows.

        Returns:
            What is to be said about the answer: that it was cut or stopped, or what of the message its tokenizer does
            not know; None where nothing is.

        Raises:
            ValueError: When the conversation does not fit into the model's context, or its template refuses it.
        """
        if self.has_turns:
            asked = [*self.messages, {"role": "user", "content": message}]
            ids = self.encoder.read([asked])[0].ids
        else:
            asked, ids = [], self.encoder.read([message])[0].ids
        room = self.limit if self.context is None else self.context - len(ids)
        if room < 1:
            raise ValueError(
                f"the conversation has {len(ids)} tokens now, and {self.name} reads {self.context}: say it shorter, or "
                "/reset."
            )
        limit = min(self.limit, room)
        unknown, row = unknown_tokens(self.tokenizer, [ids])
        notes = [f"its tokenizer has no tokens for a part, and reads {self.tokenizer.decode(row)!r}"] if unknown else []
        self.answers += 1
        stream = _Stream(self.tokenizer, show)
        stopped = False
        try:
            self._generate(ids, limit, stream)
        except KeyboardInterrupt:
            stopped = True
        if self.has_turns:
            self.messages = [*asked, {"role": "assistant", "content": stream.text}]
        if stopped:
            notes.append("stopped")
        elif not stream.ended:
            why = "--max-new-tokens gives more" if limit == self.limit else "the model's context is full: /reset"
            notes.append(f"cut at {limit} tokens, before its end; {why}")
        return "; ".join(notes) or None

    def _generate(self, ids: Sequence[int], limit: int, stream: "_Stream") -> None:
        config = copy.deepcopy(self.model.generation_config)
        temperature = self.temperature
        if temperature is not None:
            config.do_sample, config.temperature = temperature > 0, temperature or None
        if not config.do_sample:  # these would only be warned of
            config.temperature = config.top_p = config.top_k = None
        elif config.top_k is None:
            config.top_k = 0  # or transformers takes 50
        config.max_new_tokens, config.max_length = limit, None
        config.eos_token_id, config.pad_token_id = list(end_token_ids(self.tokenizer)), self.tokenizer.pad_token_id
        stops = list(stop_strings(self.tokenizer))
        extra = {"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}
        torch.manual_seed(self.seed + self.answers)
        row = torch.tensor([list(ids)], device=self.model.device)
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        self.model.generate(**inputs, generation_config=config, streamer=stream, **extra)


class _Stream(BaseStreamer):
    """Turns the tokens of an answer into its text while they come.

    Args:
        tokenizer: The tokenizer.
        show: Gets the whole text so far, each time that it grows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None]) -> None:
        self.tokenizer, self.show = tokenizer, show
        self.ends, self.stops = set(end_token_ids(tokenizer)), stop_strings(tokenizer)
        self.ids: list[int] | None = None
        self.text, self.ended = "", False

    def put(self, value: Tensor) -> None:
        """Take the prompt, then a token each time."""
        if self.ids is None:
            self.ids = []
            return
        token = int(value.flatten()[-1])
        if token in self.ends:
            self.ended = True
            return
        self.ids.append(token)
        text = str(self.tokenizer.decode(self.ids, skip_special_tokens=True))
        places = [text.find(stop) for stop in self.stops if stop in text]
        if places:
            text, self.ended = text[: min(places)], True
        self.text = text
        if not text.endswith("\ufffd"):  # half a character
            self.show(text[: len(text) - self._begun(text)])

    def end(self) -> None:
        """Show what was held back."""
        self.show(self.text)

    def _begun(self, text: str) -> int:
        """How many characters at the end may become a stop string."""
        return max((size for stop in self.stops for size in range(len(stop)) if text.endswith(stop[:size])), default=0)


def _check_writes(source: str, path: str) -> None:
    """Refuse models that score text."""
    folder = Path(model_source(source))
    is_adapter, has_head = (folder / "adapter_config.json").exists(), (folder / HEAD_FILE).exists()
    architectures = [] if is_adapter or has_head else model_config(source).architectures or []
    if has_head or any("Classification" in name for name in architectures):
        raise ValueError(
            f"{path} is a reward model: it scores text and writes none. Name a policy, such as step sft's."
        )
