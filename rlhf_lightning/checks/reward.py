"""Checks of the reward model: one pass for K responses, all pairs, mean 0, export."""

import itertools
import statistics

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rlhf_lightning import export
from rlhf_lightning.checks.result import CheckSkippedError, close, demand
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.data.collate import collate_comparisons
from rlhf_lightning.data.tokens import ComparisonExample
from rlhf_lightning.stages.reward import RewardModule


def _one_by_one(subject: Subject) -> list[list[Tensor]]:
    """Score of every response from a row of its own, without padding."""
    batch, model, scores = subject.comparison_batch, subject.scalar, []
    for row in range(len(batch.ranks)):
        prompt, own = batch.prompt_ids[row][batch.prompt_mask[row]], []
        for ids, mask, exists in zip(batch.response_ids[row], batch.response_mask[row], batch.mask[row], strict=True):
            if exists:
                joined = torch.cat([prompt, ids[mask]])[None]
                hidden = model.backbone(input_ids=joined, attention_mask=torch.ones_like(joined)).last_hidden_state
                own.append(nn.functional.linear(hidden[0, -1], model.head.weight)[0] + model.bias)
        scores.append(own)
    return scores


@torch.no_grad()
def shared_prefix(subject: Subject) -> str:
    """Scores from one pass per prompt, and the loss over all pairs, are those of separate rows and a double loop."""
    batch = subject.comparison_batch
    module = RewardModule(subject.scalar, torch.optim.SGD)
    found, expected = module.scores(batch), _one_by_one(subject)
    flat = torch.stack(list(itertools.chain(*expected)))
    words = close(
        found[batch.mask], flat, 1e-3 if subject.exact else 0.1, "scores from one pass and from separate rows"
    )
    losses = []
    for row, own in enumerate(expected):
        ranks = batch.ranks[row].tolist()
        pairs = [
            nn.functional.softplus(own[worse] - own[better])
            for better, worse in itertools.permutations(range(len(own)), 2)
            if ranks[better] < ranks[worse]
        ]
        if pairs:
            losses.append(torch.stack(pairs).mean())
    if losses:
        close(
            module.loss(batch)[0], torch.stack(losses).mean(), 1e-3 if subject.exact else 0.1, "the losses over pairs"
        )
    return words


@torch.no_grad()
def centred(subject: Subject) -> str:
    """Demonstrations score 0 on average, as section 3.5 asks."""
    if subject.reward is None or not subject.demonstrations:
        raise CheckSkippedError("there is no trained reward model, or no demonstration")
    scores = []
    for example in subject.tokens.demonstrations(subject.demonstrations[:64]):
        prompt, response = example.input_ids[: example.loss_start], example.input_ids[example.loss_start :]
        batch = collate_comparisons([ComparisonExample(prompt, [response], [1], "")], subject.pad)
        ids = torch.cat([batch.prompt_ids, batch.response_ids[:, 0]], 1).to(subject.device)
        scores.append(float(subject.scalar(ids)[0, -1]))
    mean = statistics.mean(scores)
    error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else abs(mean)
    demand(abs(mean) <= 4 * error + 1e-3, f"the mean is {mean:.3f} ± {error:.3f} over {len(scores)} demonstrations")
    return f"the mean is {mean:.3f} ± {error:.3f} over {len(scores)} demonstrations"


@torch.no_grad()
def exported(subject: Subject) -> str:
    """The exported folder scores the same tokens the same, up to the recorded bias, in plain transformers."""
    with subject.folder() as folder:
        export.export_scalar_model(subject.scalar, subject.policy.config, subject.tokenizer, folder / "model")
        plain = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval().to(subject.device)
    bias = float(getattr(plain.config, "reward_bias", 0.0))
    found, expected = [], []
    batch = subject.comparison_batch
    for row, own in enumerate(_one_by_one(subject)):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        for ids, mask, score in zip(batch.response_ids[row], batch.response_mask[row], own, strict=False):
            joined = torch.cat([prompt, ids[mask]])[None]
            logits = plain(input_ids=joined, attention_mask=torch.ones_like(joined)).logits
            found.append(logits[0, 0] + bias)
            expected.append(score)
    tolerance = 1e-3 if subject.exact else 0.1
    return close(torch.stack(found), torch.stack(expected), tolerance, "scores of the exported and of the own model")
