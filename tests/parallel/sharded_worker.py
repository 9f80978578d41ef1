"""Gradients of models whose layers are gathered one by one, in two processes that read unlike parts.

Usage: sharded_worker.py [case of `CASES`], or all of them; see test_processes.py.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.models import shared_prefix
from rlhf_lightning.models.decoder_layers import decoder_layers, shard_model
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.packing import VerifiedPacking
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.models.shared_prefix import cached_scores, separate_scores, tree_scores
from rlhf_lightning.parallel.processes import all_reduce_mean, destroy_process_group, init_process_group, rank
from rlhf_lightning.parallel.sharding import call_unsharded, sync_on_last, unshard

LAYERS, WORDS, MOST = 6, 61, 2
"""`MOST`: layers that a process may hold at once, the one at work and the one that comes next."""
Part = Callable[[nn.Module], Tensor]


def gpt2() -> PreTrainedModel:
    """With tied embeddings."""
    sizes = {"vocab_size": WORDS, "n_positions": 64, "n_embd": 16, "n_layer": LAYERS, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def llama() -> PreTrainedModel:
    """Without, and with shared keys."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_hidden_layers=LAYERS, **sizes))


def recomputed() -> PreTrainedModel:
    """Whose activations are computed again."""
    model = gpt2()
    checkpoint_activations(model)
    return model


def rows(lengths: Sequence[int], packing: dict[nn.Module, VerifiedPacking] | None = None, nested: bool = False) -> Part:
    """The log-probs of rows of such lengths, weighted by where they stand; packed, where it is known of each model.

    What is not known yet is found out before, or nested in what needs it.
    """
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(3, WORDS, mask.shape)

    def packs(model: nn.Module) -> bool:
        return packing is not None and packing.setdefault(model, VerifiedPacking()).suits(model, ids, mask)

    def log_probs(model: nn.Module, known: bool | None) -> Tensor:
        return causal_log_probs(model, ids, mask, mask, 1.0, packs(model) if known is None else known)

    def of(model: nn.Module) -> Tensor:
        found = call_unsharded(log_probs, model, None if nested else packs(model))
        return (found * torch.arange(found.numel()).view_as(found)).mean()

    return of


def answers(scores: shared_prefix.Scores, lengths: Sequence[Sequence[int]]) -> Part:
    """The scores of answers of such lengths to prompts, by one of the ways to them."""
    longest = max(max(each) for each in lengths)
    mask = torch.tensor([[[place < size for place in range(longest)] for size in each] for each in lengths])
    prompts = torch.randint(3, WORDS, (len(lengths), 5))
    ids = torch.randint(3, WORDS, mask.shape)
    ranks = torch.arange(1, mask.shape[1] + 1).expand(len(lengths), -1)
    batch = ComparisonBatch(prompts, torch.ones_like(prompts, dtype=torch.bool), ids, mask, ranks, ["a"] * len(prompts))

    def of(model: nn.Module) -> Tensor:
        return (call_unsharded(scores, model, batch) * ranks).mean()

    return of


def language(model: PreTrainedModel) -> tuple[nn.Module, list[list[Part]]]:
    """Three parts and one; one group of similar length and several."""
    return model, [[rows([9, 8]), rows([4]), rows([12, 2, 5])], [rows([3])]]


def packed(model: PreTrainedModel) -> tuple[nn.Module, list[list[Part]]]:
    """Packed where that is right, which is tried first."""
    known: dict[nn.Module, VerifiedPacking] = {}
    return model, [[rows([7, 3], known), rows([6, 2, 2], known)], [rows([9, 2], known)]]


def nested() -> tuple[nn.Module, list[list[Part]]]:
    """Packed in one process, which tries it for each part anew, among the passes of the part."""
    return llama(), [[rows([7, 3], {}, nested=True), rows([6, 2, 2], {}, nested=True)], [rows([9, 2])]]


def refusing() -> PreTrainedModel:
    """A layer of which, another one in each process, ends a pass over packed rows by an error."""
    model = llama()

    def refuse(_layer: nn.Module, _arguments: Any, options: dict[str, Any]) -> None:
        if "documents" in options:
            raise ValueError("not packed")

    model.model.layers[2 + 2 * rank()].self_attn.register_forward_pre_hook(refuse, with_kwargs=True)
    return model


def reward() -> tuple[nn.Module, list[list[Part]]]:
    """One process reads answers behind the keys and values of their prompt, in groups, the other in one row or rows."""
    shared_prefix.GROUP_TOKENS = 8
    model = ScalarHeadModel.from_causal_lm(gpt2())
    return model, [
        [answers(cached_scores, [[6, 2, 1], [3, 3, 7]]), answers(tree_scores, [[2, 2]])],
        [answers(separate_scores, [[5, 2]]), answers(cached_scores, [[1, 4]]), answers(tree_scores, [[3, 9]])],
    ]


CASES: dict[str, Callable[[], tuple[nn.Module, list[list[Part]]]]] = {
    "gpt2": lambda: language(gpt2()),
    "llama": lambda: language(llama()),
    "mixed": lambda: language(llama()),
    "recomputed": lambda: language(recomputed()),
    "packed": lambda: packed(llama()),
    "nested": nested,
    "refusing": lambda: packed(refusing()),
    "reward": reward,
}


@contextmanager
def most_gathered(layers: Sequence[nn.Module]) -> Iterator[list[int]]:
    """Counts layers that have their whole weights in this process, whenever one is at work, forwards or backwards."""
    counts: list[int] = []

    def count(*_: Any) -> None:
        weights = [next(layer.parameters()) for layer in layers]
        counts.append(sum(not isinstance(weight, DTensor) for weight in weights))

    norms = [next(module for module in layer.modules() if "Norm" in type(module).__name__) for layer in layers]
    hooks = [norm.register_forward_hook(count) for norm in norms]
    hooks += [norm.register_full_backward_hook(count) for norm in norms]
    yield counts
    for hook in hooks:
        hook.remove()


def check(case: str) -> None:
    """Compare the gradient with that of a copy which is not sharded."""
    torch.manual_seed(0)
    model, parts = CASES[case]()
    plain, mine = copy.deepcopy(model), parts[rank()]
    layers = decoder_layers(model)
    assert len(layers) == LAYERS
    shard_model("model", model, init_device_mesh("cpu", (2,)))
    mixed = partial(torch.autocast, "cpu", torch.bfloat16, enabled=case == "mixed")
    with torch.inference_mode(), mixed():
        assert torch.equal(mine[0](model), mine[0](plain)), case
    for step in range(2):
        for part in mine:
            with mixed(cache_enabled=False):
                part(plain).backward()
        with most_gathered(layers) as counts, mixed():
            for part in sync_on_last(model, mine):
                part(model).backward()
        for (name, weight), other in zip(plain.named_parameters(), model.parameters(), strict=True):
            expected = all_reduce_mean(weight.grad)
            assert isinstance(other, DTensor), name
            found = other.grad.full_tensor()
            assert (found - expected).abs().max() <= 1e-5 * (1 + expected.abs().max()), (case, step, name)
            weight.grad, other.grad = None, None
        assert 1 <= max(counts) <= MOST, (case, counts)
        with unshard(model):
            assert not any(isinstance(weight, DTensor) for weight in model.parameters())
            for part in mine if rank() == 0 else []:  # nobody waits for anybody
                with torch.no_grad():
                    assert torch.equal(part(model), part(plain))


def main(*cases: str) -> None:
    """Check them."""
    init_process_group(gpu=False)
    for case in cases or CASES:
        check(case)
    destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
