"""Different responses to each prompt, sampled again where they are the same (InstructGPT, A.3: K responses to rank)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.loader import collate_prompts
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.generation.sample import SamplingOptions, response_texts
from rlhf_lightning.generation.sampling_batches import Sampler
from rlhf_lightning.recipe.turns import advance


class Part(NamedTuple):
    """What is sampled as one batch: of which policy, to which prompts, with the noise of which places."""

    policy: str
    examples: list[PromptExample]
    places: list[int]
    temperature: float
    key: tuple[int, ...]


@dataclass(frozen=True)
class DistinctResponses:
    """Samples until each prompt has as many different responses as it shall, for some rounds.

    Args:
        policies: Names of the policies.
        rounds: Times to sample.
        batch_size: Responses of a part.
        temperature: Temperature of sampling.
        seed: Seed of sampling.
    """

    policies: Sequence[str]
    rounds: int
    batch_size: int
    temperature: float
    seed: int

    def distinct(
        self, sample: Callable[[Part], list[str]], examples: Sequence[PromptExample], whose: Sequence[list[int]]
    ) -> list[list[str]]:
        """Different responses to each prompt, as far as they come up within the rounds.

        Args:
            sample: The texts of a part, such as `sampled_texts`.
            examples: The prompts.
            whose: The policies that answer each, by number; in the end those of the responses come first.
        """
        answers: list[list[str]] = [[] for _ in examples]
        for number in range(self.rounds):
            slots = [
                (of[slot], row, slot) for row, of in enumerate(whose) for slot in range(len(answers[row]), len(of))
            ]
            # Neighbours of similar length need little padding.
            slots.sort(key=lambda each: (each[0], len(examples[each[1]].prompt_ids)))
            each_policy = [list(own) for _, own in groupby(slots, itemgetter(0))]
            parts = [
                own[at : at + self.batch_size] for own in each_policy for at in range(0, len(own), self.batch_size)
            ]
            for part in parts:
                for (which, row, _), text in zip(part, sample(self._part(examples, part, number)), strict=True):
                    if text.strip() and text not in answers[row]:
                        advance(whose[row], len(answers[row]), which)
                        answers[row].append(text)
        return answers

    def _part(self, examples: Sequence[PromptExample], slots: Sequence[tuple[int, int, int]], number: int) -> Part:
        policies, rows, numbers = zip(*slots, strict=True)
        asked = [examples[row] for row in rows]
        places = [example.index * 64 + slot for example, slot in zip(asked, numbers, strict=True)]
        return Part(self.policies[policies[0]], asked, places, self.temperature, (self.seed, number, policies[0]))


def sampled_texts(
    model: Callable[[str], nn.Module], tokenization: Tokenization, sampler: Sampler, part: Part
) -> list[str]:
    """The responses of a part, of the model that its policy names."""
    policy, tokenizer = model(part.policy), tokenization.tokenizer
    options = SamplingOptions.from_tokenizer(tokenizer, tokenization.max_response_tokens, part.temperature)
    batch = collate_prompts(part.examples, options.pad_token_id)._replace(prompt_index=torch.tensor(part.places))
    prompts = move_data_to_device(batch, next(policy.parameters()).device)
    return response_texts(tokenizer, sampler(policy, prompts, options, part.key))
