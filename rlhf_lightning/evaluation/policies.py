"""How good a policy is: score and win rate by a judge, KL to the reference, length, pretraining loss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StopStringCriteria

from rlhf_lightning.algorithms.batch import LMBatch, PromptBatch, Rollout
from rlhf_lightning.arguments import Count, NonNegativeFloat, checked
from rlhf_lightning.data.loader import padded
from rlhf_lightning.evaluation.intervals import (
    first_places,
    known_interval,
    mean_interval,
    outcome_interval,
    share_interval,
    wins,
)
from rlhf_lightning.evaluation.length_control import length_controlled_win_rate
from rlhf_lightning.evaluation.table_3 import table_3
from rlhf_lightning.evaluation.tables import REWARD
from rlhf_lightning.generation.rewards import Reward, response_scores
from rlhf_lightning.generation.sample import (
    SamplingOptions,
    response_log_probs,
    response_texts,
    through_first,
    token_id,
)
from rlhf_lightning.generation.sampling_batches import OWN_LOOP, Sampler, in_scoring_batches
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.tokenization.encoding import TextEncoder


@dataclass
class PolicySamples:
    """One response per prompt and what was measured on it; lists run over the prompts."""

    responses: list[str] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    """Empty for a model that reads a few-shot prefix, which has no distribution over responses to the bare prompt, and
    at temperature 0, where the distribution is a single response."""
    scores: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """By the reward model that trained the policy, for comparison with the judge."""
    judges: dict[str, list[float]] = field(default_factory=dict)
    """Scores by further judges."""
    preferences: dict[str, list[float | None]] = field(default_factory=dict)
    """What judges who compare say of each response beside the baseline's, 1, one half or 0; None where one said
    nothing."""
    likert: dict[str, list[float]] = field(default_factory=dict)
    """Overall quality from 1 to 7, by the judges that give one."""
    metadata: dict[str, list[float | None]] = field(default_factory=dict)
    """What is so about each response; None where the question does not arise."""
    probes: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """What automatic measures found, item by item."""


def joined_samples(parts: Sequence[PolicySamples]) -> PolicySamples:
    """What was found of batches, as of all of them; None where a batch has nothing of what others have."""
    whole = PolicySamples()
    for name in ("responses", "lengths", "kl", "scores", "rewards"):
        getattr(whole, name).extend(chain(*(getattr(part, name) for part in parts)))
    for name in ("judges", "likert", "metadata"):
        found = [(getattr(part, name), [None] * len(part.responses)) for part in parts]
        keys = dict.fromkeys(chain(*(own for own, _ in found)))
        setattr(whole, name, {key: [*chain(*(own.get(key, none) for own, none in found))] for key in keys})
    return whole


def write_samples(
    folder: Path, prompts: Sequence[str], sets: Mapping[str, Sequence[int]], samples: Mapping[str, PolicySamples]
) -> None:
    """Write ``samples.json``, and ``prompt_sets.json`` where there are sets: the places of their prompts.

    Args:
        folder: The step's folder.
        prompts: The text of each prompt.
        sets: By name of a set, the places of its prompts.
        samples: By name of a policy, its responses and what was found on each.
    """
    write_json(folder / "samples.json", {"prompts": prompts} | {name: asdict(each) for name, each in samples.items()})
    if sets:
        write_json(folder / "prompt_sets.json", sets)


@torch.no_grad()
@checked
def sample_policy(
    model: nn.Module,
    reference: nn.Module | None,
    batches: Iterable[PromptBatch],
    tokenizer: PreTrainedTokenizerBase,
    *,
    judge: Reward,
    reward: Reward | None = None,
    sampler: Sampler = OWN_LOOP,
    max_new_tokens: Count,
    temperature: NonNegativeFloat = 1.0,
    seed: int = 0,
    prefix: str | None = None,
    stop: str | None = None,
) -> PolicySamples:
    """Sample one response per prompt.

    Args:
        model: The policy.
        reference: The model that the KL is measured from; None leaves the KL out.
        batches: Held-out prompts, on the models' device.
        tokenizer: The tokenizer of both models.
        judge: The judge whose scores count.
        reward: The reward model that trained the policy, for comparison; None leaves it out.
        sampler: Who samples a batch.
        max_new_tokens: Length limit of a response.
        temperature: Sampling temperature, 1 for preferences (InstructGPT, appendix F); 0 takes the most likely token.
        seed: Seed of sampling.
        prefix: The text that the model reads before each prompt ("GPT prompted" in InstructGPT, section 3.5), or None.
        stop: The word at which a response is cut: a model that was never taught to end a response goes
            on with the next document. None lets it run to EOS.

    Returns:
        Responses, lengths in tokens (EOS included) and KL in nats per response (k1, signed, from the samples): of what
        was sampled, so both models are read at the temperature of sampling. At 0 nothing is sampled, and there is none.
    """
    samples = PolicySamples()
    options = SamplingOptions.from_tokenizer(tokenizer, max_new_tokens, temperature)
    for batch in batches:
        read = batch if prefix is None else _prefixed(batch, prefix, tokenizer)
        rollout = sampler(model, read, options, (seed,))
        sampled = rollout
        if stop is not None:
            rollout = _cut(rollout, stop, tokenizer)
        if reference is not None and prefix is None and temperature > 0:
            log_probs = (partial(response_log_probs, each, temperature=temperature) for each in (model, reference))
            policy, base = (in_scoring_batches(sampled, each) for each in log_probs)
            samples.kl += torch.where(rollout.response_mask, policy - base, 0.0).sum(1).tolist()
        rollout = rollout._replace(prompts=batch)
        samples.lengths += rollout.response_mask.sum(1).float().tolist()
        samples.responses += response_texts(tokenizer, rollout)
        for scores, scorer in ((samples.scores, judge), (samples.rewards, reward)):
            if scorer is not None:
                scores += in_scoring_batches(rollout, partial(response_scores, scorer, tokenizer=tokenizer)).tolist()
    return samples


def _prefixed(batch: PromptBatch, prefix: str, tokenizer: PreTrainedTokenizerBase) -> PromptBatch:
    """The prompts with the prefix before each, padded on the left again; a BOS stands before the prefix alone."""
    encoder = TextEncoder(tokenizer)
    before = encoder.rows([encoder.as_text(prefix)])[0]
    opening = encoder.opening or [token for token in [tokenizer.bos_token_id] if token is not None]
    rows = []
    for ids, real in zip(batch.prompt_ids, batch.prompt_mask, strict=True):
        row = ids[real].tolist()
        bare = row[len(opening) :] if row[: len(opening)] == opening else row
        rows.append([*(encoder.opening if bare is row else opening), *before, *bare])
    input_ids, mask = (
        values.to(batch.prompt_ids.device) for values in padded(rows, token_id(tokenizer.pad_token_id), left=True)
    )
    return PromptBatch(input_ids, mask, batch.prompt_index, batch.texts)


def _cut(rollout: Rollout, stop: str, tokenizer: PreTrainedTokenizerBase) -> Rollout:
    """The responses up to the stop word; the token with its end becomes their EOS."""
    ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
    eos, pad = token_id(tokenizer.eos_token_id), token_id(tokenizer.pad_token_id)
    if len(ids) == 1 and stop.strip() == stop:
        stops = rollout.response_ids == ids[0]
    else:  # such as a newline, which is a part of many tokens
        ends = SamplingOptions(1, eos, pad, stop=StopStringCriteria(tokenizer, [stop])).ends(rollout.response_ids)
        stops = ends & (rollout.response_ids != eos)
    stops = stops & rollout.response_mask
    mask = rollout.response_mask & through_first(stops)
    response_ids = rollout.response_ids.masked_fill(stops, eos)
    return rollout._replace(response_ids=response_ids, response_mask=mask, ended=rollout.ended | stops.any(1))


def pretraining_loss(rows: Iterable[Sequence[float]]) -> float:
    """Mean negative log-likelihood of held-out text, in nats per token, of what `token_losses` found."""
    losses = [loss for row in rows for loss in row]
    return fmean(losses) if losses else 0.0


@torch.no_grad()
def token_losses(model: nn.Module, batches: Iterable[LMBatch]) -> list[list[float]]:
    """Negative log-likelihoods of held-out text, in nats: of each row those of the tokens that count."""
    device, losses = next(model.parameters()).device, list[list[float]]()
    for on_cpu in batches:
        batch: LMBatch = move_data_to_device(on_cpu, device)
        log_probs = causal_log_probs(model, batch.input_ids, batch.mask, batch.loss_mask)
        losses += [(-row[counts]).tolist() for row, counts in zip(log_probs, batch.loss_mask[:, 1:], strict=True)]
    return losses


def policy_results(
    samples: Mapping[str, PolicySamples],
    baseline: str,
    pretrain_losses: Mapping[str, float],
    prompts: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """The `policies` part of results.json.

    Args:
        samples: Samples of each policy, on the same prompts in the same order.
        baseline: Policy that win rates are against.
        pretrain_losses: Pretraining loss of each policy, in nats per token; may be empty.
        prompts: The prompts; rows that share one are drawn together. None where all differ.

    Returns:
        Per policy: score, reward and win_rate as value with 95 % interval over prompts; kl (nats per response) and
        length (tokens) as means, their intervals under `intervals`; pretrain_loss; the win rate by each further
        judge; length_controlled, the win rate at equal lengths; likert by each judge that gives it; metadata and probes
        as means with intervals; table_3, every field of that table. What was not measured is None, and what sets the
        baseline against itself. Intervals of wins and flags are Wilson's (`share_interval`), others are bootstraps.
    """
    clusters = None if prompts is None else first_places(prompts)
    results: dict[str, dict[str, Any]] = {}
    for name, policy in samples.items():
        kl = mean_interval(policy.kl, clusters) if policy.kl else None
        length = mean_interval(policy.lengths, clusters)
        against = samples[baseline]
        won = wins(policy.scores, against.scores)
        results[name] = {
            "score": mean_interval(policy.scores, clusters),
            "win_rate": share_interval(won, clusters),
            "length_controlled": (
                None if name == baseline else length_controlled_win_rate(won, lengthened(policy, against), clusters)
            ),
            REWARD: mean_interval(policy.rewards, clusters) if policy.rewards else None,
            "kl": kl["value"] if kl else None,
            "length": length["value"],
            "pretrain_loss": pretrain_losses.get(name),
            "intervals": {"kl": kl and [kl["low"], kl["high"]], "length": [length["low"], length["high"]]},
            "judges": {
                judge: known_interval(outcomes, clusters, share_interval)
                for judge, outcomes in judge_outcomes(policy, against).items()
            },
            "likert": {judge: mean_interval(values, clusters) for judge, values in policy.likert.items()},
            "metadata": {flag: known_interval(values, clusters) for flag, values in policy.metadata.items()},
            "table_3": {
                name: values and known_interval(values, clusters) for name, values in table_3(policy.metadata).items()
            },
            "probes": {
                probe: {measure: outcome_interval(values) for measure, values in outcomes.items()}
                for probe, outcomes in policy.probes.items()
            },
        }
    return results


def judge_outcomes(own: PolicySamples, against: PolicySamples) -> dict[str, Sequence[float | None]]:
    """What every further judge says of a policy's responses beside the baseline's; None where one said nothing."""
    scored = {judge: wins(scores, against.judges[judge]) for judge, scores in own.judges.items()}
    return {**scored, **own.preferences}


def lengthened(own: PolicySamples, against: PolicySamples) -> list[float]:
    """How many tokens longer each response is than the baseline's."""
    return [mine - theirs for mine, theirs in zip(own.lengths, against.lengths, strict=True)]
