"""Where the head of a reward model starts: small enough to say nothing yet, or fitted to the states before all learns.

Both are *ours*; the paper does not say.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, cast

import lightning as L
import torch
from jaxtyping import Bool, Float, Int
from lightning.fabric.utilities import move_data_to_device
from rich.progress import Progress, TaskID
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_lightning.algorithms.losses import ranking_loss
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.examples import ComparisonExample
from rlhf_lightning.data.loader import collate_comparisons
from rlhf_lightning.generation.sample import token_id
from rlhf_lightning.models.scalar_head import FinalStates, ScalarHeadModel
from rlhf_lightning.models.shared_prefix import separate_scores
from rlhf_lightning.parallel.processes import all_gather_objects, on_rank_zero, rank, world_size
from rlhf_lightning.parallel.sharding import full_tensor, is_sharded, set_tensor, unshard

HeadScale = Literal["rms"]
SPREAD = 0.25
"""Root of the mean square of the difference of two scores at the start: a loss of log 2 + SPREAD^2 / 8, 1 % above."""
SAMPLE, TOKENS, FOLDS = 64, 8192, 5
"""Rankings that tell the scale; tokens that are read at once; parts of the rankings, of which one is held out."""
RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""Weights of the square of a head on states of variance 1, the strongest first."""


class HeadStart(L.Callback):
    """Sets the head of a reward model before its first step; a run that goes on has it in its checkpoint.

    Args:
        scale: `rms` divides the head so that two responses to a prompt differ by `SPREAD` in root mean square: with
            states as large as those of pretrained models, a head with standard deviation 1 / sqrt(d + 1) starts at a
            loss of 1.0 to 1.2 and not at log 2. None leaves it as it is.
        first: Fit the head to the states of the body as it is, over all training rankings: a convex problem with a
            ridge, which is chosen by the loss on a fifth of the prompts.
        say: Function that tells the user what came out.
        bar: From how many rankings are read to a progress bar for them (`training.progress.progress_bar`), or None.
    """

    def __init__(
        self,
        scale: HeadScale | None = "rms",
        first: bool = False,
        say: Callable[[str], None] = print,
        bar: Callable[[int], AbstractContextManager[tuple[Progress, TaskID]]] | None = None,
    ) -> None:
        self.scale, self.first, self.say, self.bar = scale, first, say, bar

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the rankings, in the precision of the trainer."""
        model: Any = pl_module.model
        if trainer.ckpt_path is not None or not (self.scale or self.first):
            return
        if not isinstance(model, ScalarHeadModel):
            raise ValueError(f"head_scale and head_first set a scalar head, and {type(model).__name__} has none.")
        data = cast(Any, trainer).datamodule
        if not isinstance(data, RLHFDataModule):
            raise ValueError("HeadStart reads the rankings of an RLHFDataModule: trainer.fit(module, datamodule=...).")
        examples = data.examples["train"]
        chosen = examples if self.first else examples[:: max(1, len(examples) // SAMPLE)]
        pad = token_id(data.tokenization.tokenizer.pad_token_id)
        with trainer.precision_plugin.forward_context(), self.bar(len(chosen)) if self.bar else nullcontext() as shown:
            advance = partial(shown[0].advance, shown[1]) if shown else None
            states = ranked_states(pl_module, chosen, pad, advance)
        ranks = pad_sequence([torch.tensor(example.ranks) for example in chosen], True)
        if self.first:
            prompts = [tuple(example.prompt_ids) for example in chosen]
            weight, said = on_rank_zero(lambda: fitted_head(states, ranks, prompts))
            self.say(said)
        else:
            drawn = full_tensor(model.head.weight.detach()).cpu()
            weight = on_rank_zero(lambda: scaled_head(states, ranks > 0, drawn))
        set_tensor(model.head.weight, weight)


@torch.no_grad()
def ranked_states(
    module: Any,
    examples: Sequence[ComparisonExample],
    pad_token_id: int,
    advance: Callable[[int], None] | None = None,
) -> Float[Tensor, "prompts K width"]:
    """The final state of every response, pooled as the model does, on the CPU in 32 bits; each process reads a part.

    Args:
        module: The `RewardModule`.
        examples: The rankings.
        pad_token_id: Any token.
        advance: Called with the number of rankings that were read.
    """
    most = max(len(example.ranks) for example in examples)
    lengths = [len(example.prompt_ids) + sum(map(len, example.response_ids)) for example in examples]
    mine = sorted(range(len(examples)), key=lambda row: -lengths[row])[rank() :: world_size()]
    found: list[tuple[list[int], Tensor]] = []
    model, sharded = module.model, is_sharded(module.model)
    with unshard(model):
        while mine:
            size = max(1, TOKENS // lengths[mine[0]])
            rows, mine = mine[:size], mine[size:]
            batch = collate_comparisons([examples[row] for row in rows], pad_token_id)
            batch = move_data_to_device(batch, module.device)
            read = separate_scores if sharded else module.passes.fastest(model, batch)
            found.append((rows, read(FinalStates(model), batch).float().cpu()))
            if advance is not None:
                advance(len(rows) * world_size())
    width = found[0][1].shape[-1] if found else 1
    everything = [part for parts in all_gather_objects(found) for part in parts]
    states = torch.zeros(len(examples), most, max([width, *(part.shape[-1] for _, part in everything)]))
    for rows, part in everything:
        states[rows, : part.shape[1]] = part
    return states


def scaled_head(
    states: Float[Tensor, "prompts K width"], mask: Bool[Tensor, "prompts K"], weight: Float[Tensor, "1 width"]
) -> Float[Tensor, "1 width"]:
    """The head, divided so that the scores of two responses to a prompt differ by `SPREAD` in root mean square."""
    scores = (states @ weight.float().T).squeeze(-1)
    pairs = mask.unsqueeze(2) & mask.unsqueeze(1) & ~torch.eye(mask.shape[1], dtype=torch.bool)
    spread = (scores.unsqueeze(2) - scores.unsqueeze(1))[pairs].square().mean().sqrt()
    return weight * (SPREAD / float(spread)) if bool(spread > 0) else weight


def fitted_head(
    states: Float[Tensor, "prompts K width"], ranks: Int[Tensor, "prompts K"], prompts: Sequence[Any]
) -> tuple[Float[Tensor, "1 width"], str]:
    """The head with the lowest ranking loss on fixed states, and what to say of it.

    Args:
        states: The states of the responses.
        ranks: Their ranks; 0 where a prompt has fewer than K.
        prompts: What each prompt is known by: rankings of one prompt are held out together.
    """
    mask = ranks > 0
    centre = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    centred = torch.where(mask.unsqueeze(-1), states - centre.unsqueeze(1), 0.0)
    deviation = (centred.square().sum((0, 1)) / mask.sum()).sqrt().clamp(min=1e-6)
    centred /= deviation
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    held_out = torch.tensor([places[prompt] % FOLDS == FOLDS - 1 for prompt in prompts])
    learned, best = torch.zeros(states.shape[-1]), (float("inf"), RIDGES[0], 0.5)
    for ridge in RIDGES if bool(held_out.any()) else ():
        learned = _minimum(centred[~held_out], ranks[~held_out], ridge, learned)
        loss, statistics = ranking_loss(centred[held_out] @ learned, ranks[held_out], mask[held_out])
        best = min(best, (float(loss), ridge, float(statistics.accuracy)))
    learned = _minimum(centred, ranks, best[1], torch.zeros_like(learned))
    said = f"the head was fitted to {len(prompts)} rankings; with a fifth of the prompts held out the loss there is"
    return (learned / deviation).unsqueeze(0), f"{said} {best[0]:.3f}, the accuracy {best[2]:.1%} (ridge {best[1]:g})"


def _minimum(states: Tensor, ranks: Tensor, ridge: float, start: Tensor) -> Tensor:
    """Where ranking loss and ridge together are the lowest."""
    weight = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")
    mask = ranks > 0

    def closure() -> float:
        optimizer.zero_grad()
        loss = ranking_loss(states @ weight, ranks, mask)[0] + 0.5 * ridge * weight.square().sum()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach()
