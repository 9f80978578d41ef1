"""Scores of responses: by a reward model over the same tokens, by any classifier over texts, or by a function."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from rlhf_lightning.algorithms.batch import Rollout
from rlhf_lightning.generation.sample import joined, response_texts
from rlhf_lightning.models.forward import reads_tokens, token_scores
from rlhf_lightning.models.loading import freeze, load_weights
from rlhf_lightning.models.scalar_head import HEAD_FILE, ScalarHeadModel, load_scalar_model
from rlhf_lightning.runs.hub import model_source
from rlhf_lightning.tokenization.endings import turn_end

TextScorer: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""From prompt texts and response texts to scores; higher is better."""


def response_scores(
    reward: nn.Module | TextScorer, rollout: Rollout, tokenizer: PreTrainedTokenizerBase
) -> Float[Tensor, " rows"]:
    """Score of each response: at its last token, or from its text.

    The last token is EOS where there is one, so the action that ends a response gets its due.
    """
    if not isinstance(reward, nn.Module) or not reads_tokens(reward):
        return torch.tensor(list(reward(rollout.prompts.texts, response_texts(tokenizer, rollout))), dtype=torch.float)
    input_ids, mask, _ = joined(rollout)
    return token_scores(reward, input_ids, mask).gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)


class TextReward:
    """A reward from any sequence classification model with one label, or a reward model of ours, and its own tokenizer.

    Args:
        path: A local folder or a hub id.
        batch_size: Texts per forward pass.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        FileNotFoundError: When there is nothing at a path that is no hub id.
    """

    def __init__(self, path: str, *, batch_size: int = 32, trust_remote_code: bool = False) -> None:
        source, options = model_source(path), {"trust_remote_code": trust_remote_code}
        ours = (Path(source) / HEAD_FILE).exists()
        model: Any
        model = load_scalar_model(path) if ours else load_weights(AutoModelForSequenceClassification, path, **options)
        self.model = freeze(model)
        self.tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # hidden by the attention mask
        if not ours and self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.batch_size = batch_size
        self.bias = 0.0 if ours else float(getattr(self.model.config, "reward_bias", 0.0))

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Score of each response, one number per text, with the end of a turn or of a text behind it."""
        scores: list[float] = []
        turn, text_end = turn_end(self.tokenizer), self.tokenizer.eos_token
        rows = []
        for prompt, response in zip(prompts, responses, strict=True):
            response_ids = self.tokenizer(response, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            # A conversation that a chat template wrote has its BOS.
            opens = self.tokenizer.bos_token is not None and prompt.startswith(self.tokenizer.bos_token)
            # And turns that end, as the answer's does.
            last = turn if turn is not None and turn in prompt else text_end
            end = [] if last is None else [self.tokenizer.convert_tokens_to_ids(last)]
            rows.append([*self.tokenizer(prompt, add_special_tokens=not opens)["input_ids"], *response_ids, *end])
        for start in range(0, len(rows), self.batch_size):
            part = {"input_ids": rows[start : start + self.batch_size]}
            batch = self.tokenizer.pad(part, padding_side="right", return_tensors="pt")
            scores += self._scores(batch["input_ids"], batch["attention_mask"]).tolist()
        return scores

    def _scores(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        if isinstance(self.model, ScalarHeadModel):
            return cast(Tensor, self.model(input_ids).gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1))
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=mask).logits
        return logits.squeeze(-1).float() + self.bias
