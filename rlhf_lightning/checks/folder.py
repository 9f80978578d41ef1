"""Checks of a model folder: its weights, its tokenizer, what an export of it says."""

import math
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from rlhf_lightning.algorithms.losses import lm_loss
from rlhf_lightning.checks.result import CheckFailedError, CheckSkippedError, close, demand
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.data.records import short
from rlhf_lightning.models import export
from rlhf_lightning.models.loading import load_weights, use_fast_kernels
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.tokenization.chat import ConversationError, Messages, rendered
from rlhf_lightning.tokenization.encoding import shared_start
from rlhf_lightning.tokenization.endings import disagreement
from rlhf_lightning.tokenization.formats import RENDERED
from rlhf_lightning.tokenization.loading import load_tokenizer, plain_tokenizer
from rlhf_lightning.tokenization.trained import as_trained
from rlhf_lightning.tokenization.unknown import MANY_UNKNOWN, unknown_tokens


@torch.no_grad()
def weights(subject: Subject) -> str:
    """The policy has the weights of its folder, all of them and no others."""
    if subject.folder is None:
        raise CheckSkippedError("the policy was not loaded from a folder")
    try:
        stored = load_weights(AutoModelForCausalLM, subject.folder, dtype=subject.policy.dtype).state_dict()
    except ValueError as error:
        raise CheckFailedError(str(error)) from error
    held = subject.policy.state_dict()
    lost = [name for name, weight in stored.items() if name not in held or not _begins_with(held[name], weight)]
    demand(not lost, f"{len(lost)} of {len(stored)} weights are not those of {subject.folder}, such as {lost[:3]}")
    return f"{len(stored)} weights are those of {subject.folder}"


def _begins_with(weight: Tensor, stored: Tensor) -> bool:
    """Whether a weight is the stored one, but for rows of tokens that were added."""
    return weight.shape[1:] == stored.shape[1:] and torch.equal(weight[: len(stored)].cpu(), stored)


@torch.no_grad()
def tokenizer(subject: Subject) -> str:
    """The tokenizer is the folder's own, every token has a row in the models, and the policy can read its tokens."""
    count = len(subject.tokenizer)
    models: dict[str, Any] = {"policy": subject.policy, "reward model": subject.scalar.backbone}
    for name, model in models.items():
        rows = len(model.get_input_embeddings().weight)
        demand(count <= rows, f"the tokenizer has {count} tokens, the {name} rows for {rows}")
    read = [prompt.prompt_ids for prompt in subject.tokens.prompts(subject.prompts)]
    share, worst = unknown_tokens(subject.tokenizer, read)
    text = str(subject.tokenizer.decode(worst))
    demand(share <= MANY_UNKNOWN, f"{share:.0%} of the prompts' tokens are unknown, as in {short(text)}")
    if subject.folder is None:
        return f"{count} tokens have rows in policy and reward model"
    same = subject.tokenizer.get_vocab() == load_tokenizer(subject.folder).get_vocab()
    demand(same, f"the vocabularies of the tokenizer and of {subject.folder} differ")
    batch, guess = subject.text_batch, math.log(count)
    generator = torch.Generator().manual_seed(0)
    shuffled = batch.input_ids.clone()
    for row, mask in enumerate(batch.mask):
        ids = batch.input_ids[row][mask]
        shuffled[row, mask] = ids[torch.randperm(len(ids), generator=generator).to(ids.device)]
    loss, other = (_loss(subject, ids, batch.mask) for ids in (batch.input_ids, shuffled))
    words = f"text costs {loss:.2f} nats per token, its words in another order {other:.2f}, a guess {guess:.2f}"
    demand(loss < max(1.2 * guess, 0.9 * other), f"{words}: the policy was not trained on these tokens")
    return words


def _loss(subject: Subject, input_ids: Tensor, mask: Tensor) -> float:
    log_probs = causal_log_probs(subject.policy, input_ids, mask, mask)
    return float(lm_loss(log_probs, mask[:, 1:])[0])


def prompt_format(subject: Subject) -> str:
    """Who asks the policy's folder, or what is exported, by chat template, asks in the format of the data."""
    dialogue = subject.tokens.dialogue
    if RENDERED in str(dialogue.format.template):
        raise CheckSkippedError("the prompts are conversations that a template wrote already")
    askers: dict[str, PreTrainedTokenizerBase] = {}
    with TemporaryDirectory() as name:
        as_trained(dialogue).save_pretrained(name)
        askers["of the export"] = AutoTokenizer.from_pretrained(name)
    if subject.folder is not None:
        with suppress(OSError, ValueError):  # nobody else reads it either
            askers[f"of {subject.folder}"] = plain_tokenizer(subject.folder)
    asked = [whose for whose, asker in askers.items() if asker.chat_template]
    for prompt in subject.prompts[:8]:
        text = prompt.prompt
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        if any(dialogue.text.as_text(message["content"]) != message["content"] for message in messages):
            continue  # transformers takes special tokens that people spell for such
        (read,) = dialogue.read([text])
        for whose in asked:
            difference = _difference(askers[whose], messages, read.ids)
            demand(
                difference is None, f"the chat template {whose} and data.format={dialogue.format} differ: {difference}"
            )
    return f"the chat template {' and that '.join(asked)} write what data.format={dialogue.format} does"


def _difference(asker: PreTrainedTokenizerBase, messages: Messages, ids: list[int]) -> str | None:
    """The first token that a chat template writes otherwise; None where it writes all of them."""
    try:
        text = rendered(asker, messages, generation_prompt=True)
    except ConversationError as error:
        return str(error)
    found: list[int] = asker(text, add_special_tokens=False)["input_ids"]
    if found == ids:
        return None
    place = shared_start(found, ids)
    first, trained = (str(asker.decode(row[place : place + 1])) for row in (found, ids))
    return f"token {place} of {short(messages[-1]['content'])} is {first!r} by the template and {trained!r} in the data"


@torch.no_grad()
def exported_policy(subject: Subject) -> str:
    """The exported folder, in plain transformers, gives the same logits, tokens, ends and template."""
    policy, own = subject.policy, subject.tokenizer
    with TemporaryDirectory() as name:
        folder = Path(name) / "model"
        export.export_causal_lm(policy, own, folder)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=policy.dtype).eval().to(subject.device)
        use_fast_kernels(plain)  # other kernels round otherwise
        fault = disagreement(own, load_tokenizer(str(folder)))
    demand(fault is None, f"the exported tokenizer and the own one differ in {fault}")
    ends: Any = plain.generation_config.eos_token_id
    listed = set(ends) if isinstance(ends, list) else {ends}
    demand(listed == set(subject.ends), f"the exported generation config ends at {listed}, not at {subject.ends}")
    row = subject.prompt_batch.prompt_ids[:1][subject.prompt_batch.prompt_mask[:1]][None]
    found, expected = (model(input_ids=row).logits.float().log_softmax(-1) for model in (plain, policy))
    return close(found, expected, subject.tolerance(1e-4, 0.1), "log-probs of the exported and of the own model")
