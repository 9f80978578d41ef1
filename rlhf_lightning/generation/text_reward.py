"""A reward from any sequence classification model, which reads the messages by its own tokenizer and template."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lightning.arguments import Count, checked
from rlhf_lightning.generation.function_reward import messages_of
from rlhf_lightning.models.loading import DType, freeze, load_weights, model_config
from rlhf_lightning.models.scalar_head import HEAD_FILE, ScalarHeadModel, load_scalar_model, pooled
from rlhf_lightning.runs.hub import adapter_base, model_source
from rlhf_lightning.tokenization.chat import rendered
from rlhf_lightning.tokenization.dialogue import DialogueEncoder

_PROMPT, _RESPONSE = "{prompt}", "{response}"


class TextReward(nn.Module):
    """A reward from any sequence classification model, or a reward model of ours, with a tokenizer of its own.

    It gets the messages of a prompt and never what the policy's template made of them. With a chat template it reads
    the whole conversation as that writes it. Without one an encoder reads prompt and response as a pair, a decoder the
    prompt, a blank line, the response and EOS. A reward model of ours reads the tokens that it was trained on, and its
    bias is added. Special tokens that people spell are text. The score of a decoder stands at its last real token,
    whatever its pad token is. Rows over the model's context are cut from the left, and counted
    in `cut`; the first one is warned about.

    Args:
        path: A local folder or a hub id.
        batch_size: Texts per forward pass.
        dtype: Name of the torch dtype of the body's weights; the head computes in 32 bits, as do the scores.
        label: Name or number of the label whose log-odds are the score, for two labels or more.
        template: The text that it reads instead, with `{response}`, and `{prompt}` unless it reads the response alone;
            special tokens of a decoder's template are special.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        FileNotFoundError: When there is nothing at a path that is no hub id.
        ValueError: When the folder holds no classifier, it has several labels and none is named, or the template has no
            place for the response.
    """

    @checked
    def __init__(
        self,
        path: str,
        *,
        batch_size: Count = 32,
        dtype: DType = "float32",
        label: str | int | None = None,
        template: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.batch_size, self.cut = path, batch_size, 0
        source, options = model_source(path), {"trust_remote_code": trust_remote_code}
        self.template, self.ours = template, check_classifier(path, label, template, trust_remote_code)
        model: Any
        if self.ours:
            model = load_scalar_model(path, dtype=dtype)
            if template is not None and model.pooling == "mean":
                raise ValueError(
                    f"{path} scores by the mean over a response, which a template does not show; leave it."
                )
        else:
            model = load_weights(AutoModelForSequenceClassification, path, dtype=getattr(torch, dtype), **options)
            model.base_model.register_forward_hook(_widened)
        self.model = model
        base = adapter_base(path)
        bare = base is not None and not (Path(source) / "tokenizer_config.json").exists()
        self.tokenizer = AutoTokenizer.from_pretrained(model_source(str(base)) if bare else source, **options)
        if self.tokenizer.eos_token is None:
            self.tokenizer.eos_token = self.tokenizer.sep_token
        self.label = None if self.ours else _label_number(path, model.config, label)
        # Causal models have a head over every token, and the others one over what they make of the whole.
        self.is_decoder = self.ours or isinstance(getattr(model, "score", None), nn.Module)
        config = model.backbone.config if self.ours else model.config
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        for name, child in model.named_modules():
            if name.endswith("position_embeddings") and getattr(child, "padding_idx", None) is not None:
                positions = child.num_embeddings - child.padding_idx - 1  # RoBERTa counts from behind its pad token
        self.context = min(positions or 10**9, self.tokenizer.model_max_length)
        self.dialogue = DialogueEncoder(self.tokenizer) if self.is_decoder or self.tokenizer.chat_template else None
        freeze(self)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Score of each response.

        Args:
            prompts: The prompts; plain strings are one message of a user.
            responses: A response to each.
        """
        rows = [self.row(messages_of(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
        scores = [0.0] * len(rows)
        device = next(self.parameters()).device
        # The precision of a Trainer is for what learns: 16 bits would put the scores on a coarse grid.
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(rows), self.batch_size):
                numbers = order[start : start + self.batch_size]
                found = self._scores([rows[number] for number in numbers], device)
                for number, score in zip(numbers, found.tolist(), strict=True):
                    scores[number] = score
        return scores

    def row(self, messages: list[dict[str, str]], response: str) -> dict[str, list[int]]:
        """What the model reads of a conversation and the answer to it, as its tokenizer writes it.

        Raises:
            ValueError: When the conversation cannot be written for this model.
        """
        if self.template is None:
            if self.ours:
                prompt_ids, ids = self._trained(messages, response)
                row = self._limited([*prompt_ids, *ids])
                return {**row, "counts": [*[0] * len(prompt_ids), *[1] * len(ids)][-len(row["input_ids"]) :]}
            if self.tokenizer.chat_template and self.dialogue is not None:
                text, turn = self.dialogue.text, [*messages, {"role": "assistant", "content": response}]
                spoken = [{**message, "content": text.as_text(message["content"])} for message in turn]
                return self._limited(text.rows([rendered(self.tokenizer, spoken, generation_prompt=False)])[0])
        prompt = self._plain(messages) if self.template is None or _PROMPT in self.template else ""
        if self.is_decoder and self.dialogue is not None:
            text = self.dialogue.text
            template = self.template or f"{_PROMPT}\n\n{_RESPONSE}"
            filled = _filled(template, text.as_text(prompt), text.as_text(response))
            return self._limited([*text.opening, *text.rows([filled])[0], *text.ends[: self.template is None]])
        if self.template is None:
            return self._encoded(prompt, response)
        return self._encoded(_filled(self.template, prompt, response))

    def _trained(self, messages: list[dict[str, str]], response: str) -> tuple[list[int], list[int]]:
        assert self.dialogue is not None
        single = len(messages) == 1 and messages[0]["role"] == "user"
        read = self.dialogue.read([messages[0]["content"] if single else messages])
        return read[0].ids, self.dialogue.answers(read, [response])[0]

    def _plain(self, messages: list[dict[str, str]]) -> str:
        if len(messages) != 1:
            raise ValueError(
                f"the prompt is a conversation of {len(messages)} messages, and the classifier {self.name} has no chat "
                "template to write it by. Put its chat_template.jinja into the folder, or let it read the response "
                "alone: template: '{response}'."
            )
        return messages[0]["content"]

    def _encoded(self, *texts: str) -> dict[str, list[int]]:
        """By an encoder's tokenizer: one text or a pair, with its special tokens around them."""
        options: dict[str, Any] = {"split_special_tokens": True, "verbose": False}
        row = dict(self.tokenizer(*texts, **options))
        if len(row["input_ids"]) > self.context:
            self._count_cut()
            self.tokenizer.truncation_side = "left"
            row = dict(self.tokenizer(*texts, truncation=True, max_length=self.context, **options))
        return row

    def _limited(self, ids: list[int]) -> dict[str, list[int]]:
        if len(ids) > self.context:
            self._count_cut()
            ids = ids[-self.context :]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def _count_cut(self) -> None:
        self.cut += 1
        if self.cut == 1:
            warnings.warn(
                f"a prompt with its response is over the {self.context} tokens that {self.name} reads, and is cut from "
                "the left, as others will be; TextReward.cut counts them.",
                stacklevel=2,
            )

    def _scores(self, rows: list[dict[str, list[int]]], device: torch.device) -> Tensor:
        if not self.is_decoder:
            batch = self.tokenizer.pad(rows, return_tensors="pt").to(device)
            self._widen_heads()
            return self._chosen(self.model(**batch).logits)
        ids, mask = (
            pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True).to(device)
            for name in ("input_ids", "attention_mask")
        )
        last = mask.sum(1) - 1
        if isinstance(self.model, ScalarHeadModel):
            counts = pad_sequence([torch.tensor(row.get("counts", row["attention_mask"])) for row in rows], True)
            return pooled(self.model, self.model(ids), counts.bool().to(device)).float()
        self._widen_heads()
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        return self._chosen(self.model.score(hidden[torch.arange(len(rows), device=device), last]))

    def _widen_heads(self) -> None:
        """A trainer that computes in 16 bits may have made the heads so."""
        for child in self.model.children():
            if child is not self.model.base_model:
                child.float()

    def _chosen(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        if self.label is None:
            return logits.squeeze(-1)
        own, others = logits[:, self.label], torch.cat([logits[:, : self.label], logits[:, self.label + 1 :]], 1)
        independent = self.model.config.problem_type == "multi_label_classification"
        return own if independent else own - others.logsumexp(1)


def check_classifier(
    path: str, label: str | int | None = None, template: str | None = None, trust_remote_code: bool = False
) -> bool:
    """Refuse what can be seen to be no reward without its weights, by a `ValueError`; arguments are `TextReward`'s.

    Returns:
        Whether it is a reward model of ours.
    """
    if template is not None and _RESPONSE not in template:
        raise ValueError(f"template must contain {_RESPONSE}, got {template!r}.")
    config: Any = model_config(path, trust_remote_code=trust_remote_code)
    ours = (Path(model_source(path)) / HEAD_FILE).exists() or hasattr(config, "reward_bias")
    if ours and label is not None:
        raise ValueError(f"{path} is a reward model of ours, with one score; leave label={label} out.")
    if not ours and adapter_base(path) is None:
        made = (config.architectures or [""])[0]
        if made and not made.endswith("SequenceClassification"):
            raise ValueError(f"{path} is a {made}, and a reward must be a sequence classifier. Name another folder.")
        _label_number(path, config, label)
    return ours


def _filled(template: str, prompt: str, response: str) -> str:
    # The response comes last: what people wrote may have braces.
    return response.join(part.replace(_PROMPT, prompt) for part in template.split(_RESPONSE))


def _label_number(path: str, config: Any, label: str | int | None) -> int | None:
    """Which of the labels is meant; None where there is one."""
    names = {int(number): str(name) for number, name in config.id2label.items()}
    shown = ", ".join(f"{number}: {name}" for number, name in sorted(names.items()))
    if label is None:
        if len(names) == 1:
            return None
        raise ValueError(
            f"{path} has {len(names)} labels ({shown}), and a reward is one number. Say which label is good: "
            "TextReward(path, label=...), or ppo.reward={path: ..., label: ...}."
        )
    found = [number for number, name in names.items() if label in (number, name)]
    if not found:
        raise ValueError(f"{path} has no label {label!r}; it has {shown}.")
    return found[0] if len(names) > 1 else None


def _widened(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    """What a body gives to its head, in 32 bits."""
    for name, value in output.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            output[name] = value.float()
    return output
