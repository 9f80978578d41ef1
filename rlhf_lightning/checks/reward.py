"""Checks of the reward model: one pass for K responses, all pairs, mean 0, export."""

import itertools
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.checks.result import CheckSkippedError, close, demand
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.generation.rewards import response_scores
from rlhf_lightning.generation.sample import select_rows
from rlhf_lightning.models import export
from rlhf_lightning.models.architecture import unwindowed_tokens
from rlhf_lightning.models.scalar_head import HEAD_FILE, load_scalar_model, pooled
from rlhf_lightning.modules.reward import RewardModule

LONG = 2048
"""Tokens of the longest window that is filled."""
ENOUGH = 5e11
"""Tokens times parameters that are read for the mean score: a few seconds."""


def _one_by_one(subject: Subject, batch: ComparisonBatch) -> list[list[Tensor]]:
    """Score of every response from a row of its own, without padding."""
    model, rows = subject.scalar, []
    for row in range(len(batch.ranks)):
        prompt, scores = batch.prompt_ids[row][batch.prompt_mask[row]], []
        for ids, mask, exists in zip(batch.response_ids[row], batch.response_mask[row], batch.mask[row], strict=True):
            if exists:
                joined = torch.cat([prompt, ids[mask]])[None]
                hidden = model.backbone(input_ids=joined, attention_mask=torch.ones_like(joined)).last_hidden_state
                read = hidden[0, -1] if model.pooling == "last" else hidden[0, len(prompt) :].float().mean(0)
                state = read.to(model.head.weight.dtype)
                scores.append((nn.functional.linear(state, model.head.weight)[0] + model.bias).float())
        rows.append(scores)
    return rows


@torch.no_grad()
def shared_prefix(subject: Subject) -> str:
    """Scores from one pass per prompt, and the loss over all pairs, are those of separate rows and a double loop."""
    batch = subject.comparison_batch
    module = RewardModule(subject.scalar, torch.optim.SGD)
    found, expected = module.scores(batch).float(), _one_by_one(subject, batch)
    flat = torch.stack(list(itertools.chain(*expected)))
    tolerance = subject.tolerance(1e-3, 0.1)
    words = close(found[batch.mask], flat, tolerance, "scores from one pass and from separate rows")
    losses = []
    for row, scores in enumerate(expected):
        ranks = batch.ranks[row].tolist()
        pairs = [
            nn.functional.softplus(scores[worse] - scores[better])
            for better, worse in itertools.permutations(range(len(scores)), 2)
            if ranks[better] < ranks[worse]
        ]
        if pairs:
            losses.append(torch.stack(pairs).mean())
    if losses:
        close(module.loss(batch)[0], torch.stack(losses).mean(), tolerance, "the losses over pairs")
    return words


@torch.no_grad()
def long_rows(subject: Subject) -> str:
    """Scores of rows that are longer than the model's window are those of separate rows."""
    window, tokens = unwindowed_tokens(subject.policy.config), subject.tokens
    longest = tokens.max_prompt_tokens + tokens.max_response_tokens
    if window is None or window >= longest:
        raise CheckSkippedError("no row is longer than a window" if window else "the architecture has no window")
    if window > LONG:
        raise CheckSkippedError(f"the window has {window} tokens, which would take minutes")
    batch = subject.comparison_batch
    times = -(-(window + 8) // batch.prompt_ids.shape[1])
    whole = batch._replace(prompt_ids=batch.prompt_ids.repeat(1, times), prompt_mask=batch.prompt_mask.repeat(1, times))
    module = RewardModule(subject.scalar, torch.optim.SGD)
    module.scores(batch)  # the first batch is short, as it may be in training
    found, expected = module.scores(whole).float(), torch.stack(list(itertools.chain(*_one_by_one(subject, whole))))
    words = close(found[whole.mask], expected, subject.tolerance(1e-3, 0.1), "scores from one pass and separate rows")
    return f"{words}; window {window}, rows of up to {int(whole.prompt_mask.sum(1).max())} tokens and a response"


@torch.no_grad()
def interface(subject: Subject) -> str:
    """The reward gives each response one finite score, the same alone as beside others, and not one for all."""
    module, rollout = subject.sampled
    scores = response_scores(module.reward, rollout, subject.tokenizer)
    demand(scores.shape == rollout.ended.shape, f"{len(rollout.ended)} responses have scores of shape {scores.shape}")
    demand(bool(scores.isfinite().all()), f"the scores are {scores.tolist()}")
    rows = [torch.tensor([row], device=subject.device) for row in range(2)]
    alone = torch.cat([response_scores(module.reward, select_rows(rollout, row), subject.tokenizer) for row in rows])
    words = close(scores[:2].cpu(), alone.cpu(), subject.tolerance(1e-3, 0.1), "scores alone and beside others")
    demand(float(scores.max() - scores.min()) > 0, f"all {len(scores)} responses score {float(scores[0]):.3g}")
    return words


@torch.no_grad()
def centred(subject: Subject) -> str:
    """Demonstrations score 0 on average, as section 3.5 asks."""
    written = subject.demonstrations if subject.centring is None else subject.centring
    if subject.reward is None or not written:
        raise CheckSkippedError("there is no trained reward model, or no demonstration")
    examples = subject.tokens.demonstrations(written)
    rows, starts = [torch.tensor(each.input_ids) for each in examples], [each.loss_start for each in examples]
    size = sum(weight.numel() for weight in subject.scalar.parameters())
    # A sample where all would take minutes; evenly spaced, because demonstrations may be sorted.
    count = max(1, min(len(rows), int(len(rows) * ENOUGH / (size * sum(len(row) for row in rows)))))
    places = [place * len(rows) // count for place in range(count)]
    scores = []
    for start in range(0, count, 16):
        chosen = places[start : start + 16]
        part = [rows[place] for place in chosen]
        ids = nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=int(part[0][0])).to(subject.device)
        counts = [torch.arange(len(rows[place])) >= starts[place] for place in chosen]
        mask = nn.utils.rnn.pad_sequence(counts, batch_first=True).to(subject.device)
        scores += pooled(subject.scalar, subject.scalar(ids), mask).tolist()
    mean, deviation = statistics.mean(scores), statistics.stdev(scores) if count > 1 else 0.0
    allowed = 1e-3 if subject.exact else 0.05 * deviation + 1e-2
    if count < len(rows):
        allowed += 3 * deviation * ((1 / count) - (1 / len(rows))) ** 0.5
    over = f"the mean over {count} of {len(rows)} demonstrations"
    words = f"{over} is {mean:.3g}, their standard deviation {deviation:.3g}"
    demand(abs(mean) <= allowed, f"{words}; at most {allowed:.2g} was expected")
    return words


@torch.no_grad()
def exported(subject: Subject) -> str:
    """The exported folder, in plain transformers where it has a class for it, scores a batch of texts the same."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "model"
        export.export_scalar_model(subject.scalar, subject.policy.config, subject.tokenizer, folder)
        ours = (folder / HEAD_FILE).exists()
        load = load_scalar_model if ours else AutoModelForSequenceClassification.from_pretrained
        plain: Any = load(str(folder)).eval().to(subject.device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = subject.comparison_batch
    prompts = [ids[mask] for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
    joined = [
        torch.cat([prompts[row], batch.response_ids[row, number][batch.response_mask[row, number]]])
        for row, number in batch.mask.nonzero().tolist()
    ]
    texts = [tokenizer.decode(ids) for ids in joined]
    # Where several splits into tokens give one text, it is the tokenizer's own that is scored, by both models.
    options = {"padding": True, "padding_side": "right", "add_special_tokens": False, "return_tensors": "pt"}
    read = tokenizer(texts, **options).to(subject.device)
    ids, mask = read["input_ids"], read["attention_mask"]
    if ours:
        found = plain(ids).gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
    else:
        found = plain(input_ids=ids, attention_mask=mask).logits[:, 0].float() + plain.config.reward_bias
    expected = [subject.scalar(row[real.bool()][None])[0, -1].float() for row, real in zip(ids, mask, strict=True)]
    what = "scores of the exported and of the own model"
    return close(found, torch.stack(expected), subject.tolerance(1e-3, 0.1), what)
