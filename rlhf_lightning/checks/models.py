"""Checks of language models: padding, positions, dropout, sampling."""

import torch
from torch import nn

from rlhf_lightning.checks.plain import altered, plain_log_probs, single_rows
from rlhf_lightning.checks.result import CheckSkippedError, close, demand
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.generation.sample import response_log_probs
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.padding import position_ids


@torch.no_grad()
def padding(subject: Subject) -> str:
    """A row says the same with padding on either side as alone."""
    batch = subject.prompt_batch
    found, expected = [], []
    for ids, mask in zip(batch.prompt_ids[:4], batch.prompt_mask[:4], strict=True):
        row = ids[mask]
        if len(row) < 2:
            continue
        alone = plain_log_probs(subject.policy, row[:1], row[1:])
        for left, right in ((3, 0), (0, 3), (2, 4)):
            wide = torch.cat([row.new_full((left,), subject.pad), row, row.new_full((right,), subject.pad)])
            real = torch.zeros_like(wide, dtype=torch.bool)
            real[left : left + len(row)] = True
            counts = real.clone()
            counts[left] = False
            log_probs = causal_log_probs(subject.policy, wide[None], real[None], counts[None])
            found.append(log_probs[0, left : left + len(row) - 1])
            expected.append(alone)
    tolerance = subject.tolerance(1e-3, 0.3)
    return close(torch.cat(found), torch.cat(expected), tolerance, "log-probs with and without padding")


@torch.no_grad()
def positions(subject: Subject) -> str:
    """Tokens are counted from the first real one of their row."""
    mask = torch.tensor([[False, False, True, True, True], [True, True, True, False, False]], device=subject.device)
    expected = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]], device=subject.device)
    numbers = position_ids(mask)
    demand(bool((numbers == expected)[mask].all()), f"positions of a padded row are {numbers.tolist()}")
    row = subject.prompt_batch.prompt_ids[0][subject.prompt_batch.prompt_mask[0]][:8]
    wide = torch.cat([row.new_full((4,), subject.pad), row])[None]
    real = torch.arange(wide.shape[1], device=subject.device)[None] >= 4
    model = subject.policy
    padded = model(input_ids=wide, attention_mask=real.long(), position_ids=position_ids(real)).logits[0, 4:]
    alone = model(input_ids=row[None], attention_mask=torch.ones_like(row)[None]).logits[0]
    tolerance = subject.tolerance(1e-3, 0.3)
    return close(padded.log_softmax(-1), alone.log_softmax(-1), tolerance, "log-probs with given positions")


DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@torch.no_grad()
def dropout(subject: Subject) -> str:
    """The models of PPO say the same twice."""
    module, _ = subject.sampled
    for name in ("policy", "value", "reference", "reward"):
        model = getattr(module, name)
        for path, layer in model.named_modules():
            on = isinstance(layer, DROPOUT) and layer.training and layer.p > 0
            demand(not on, f"dropout {layer.p if on else 0} is on in {name}.{path}")
        ids = subject.prompt_batch.prompt_ids[:1]
        first, second = (model(ids) for _ in range(2))
        first, second = (getattr(out, "logits", out) for out in (first, second))
        demand(bool((first == second).all()), f"two passes of the {name} differ")
    return "two passes agree bit for bit"


@torch.no_grad()
def sampler(subject: Subject) -> str:
    """Responses stop at their first end, and their log-probs are those of a plain pass over one row at a time."""
    module, rollout = subject.sampled
    ends = torch.isin(rollout.response_ids, torch.tensor(subject.ends, device=subject.device))
    goes_on = (ends[:, :-1] & rollout.response_mask[:, 1:]).any(1)
    demand(not bool(goes_on.any()), f"{int(goes_on.sum())} responses go on behind a token that ends them")
    expected = torch.zeros_like(rollout.log_probs)
    for row, prompt, response in single_rows(rollout):
        log_probs = plain_log_probs(module.policy, prompt, response, module.hparams.temperature)
        expected[row, : len(log_probs)] = log_probs
    batched = response_log_probs(module.policy, rollout, module.hparams.temperature).float()
    outside = ((rollout.log_probs - expected).exp()[rollout.response_mask] - 1).abs() > 0.1
    share, tolerance = float(outside.float().mean()), subject.tolerance(1e-3, 0.3)
    demand(share <= 0.05, f"{share:.1%} of the ratios are outside 1 ± .1")
    words = close(rollout.log_probs, expected, tolerance, "sampled and recomputed log-probs")
    close(batched, expected, tolerance, "log-probs in a batch and row by row")
    return f"{words}; {share:.1%} of the ratios are outside 1 ± .1"


def fresh_samples(subject: Subject) -> str:
    """Two iterations sample other responses to the same prompts, and one iteration samples the same twice."""
    module, _ = subject.sampled
    first, again = module.rollout(subject.prompt_batch), module.rollout(subject.prompt_batch)
    demand(torch.equal(first.response_ids, again.response_ids), "the same iteration sampled other responses")
    with altered(module, iteration=module.iteration + 1):
        other = module.rollout(subject.prompt_batch)
    likelihood = float(first.log_probs.sum())
    if likelihood > -3.0:
        raise CheckSkippedError(f"these responses have log-probability {likelihood:.3g}: any sample is the same")
    same = first.response_ids.shape == other.response_ids.shape and torch.equal(first.response_ids, other.response_ids)
    demand(not same, "the next iteration sampled the very same responses: its random numbers are those of the first")
    return f"responses with log-probability {likelihood:.3g} came once"
