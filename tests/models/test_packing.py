import warnings
from functools import partial

import pytest
import torch
from torch.optim import SGD

from rlhf_lightning.algorithms.batch import ComparisonBatch, LMBatch
from rlhf_lightning.algorithms.losses import lm_loss
from rlhf_lightning.models import verified
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.lora import add_adapters, trainable_parameters
from rlhf_lightning.models.packing import VerifiedPacking, packed_hidden
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.models.shared_prefix import VerifiedPasses
from rlhf_lightning.models.verified import restore_verified, verified_states
from rlhf_lightning.modules.language_model import LanguageModelModule

from .families import FAMILIES, make_family

LENGTHS = [5, 17, 2, 17, 9, 1, 12]  # beyond the windows of 8 tokens
QUICK = ("GPT-2", "OPT", "Llama", "Qwen 3", "Gemma 2", "Gemma 3 text", "Falcon", "Llama, dynamic rope", "LFM2", "Mamba")
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]


def batch_of(lengths=LENGTHS, words=40):
    torch.manual_seed(1)
    lengths = torch.tensor(lengths)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    ids = torch.where(mask, torch.randint(3, words, mask.shape), 0)
    loss_mask = mask & (torch.arange(mask.shape[1]) >= lengths.unsqueeze(1) // 3)
    loss_mask[:, 0] = False
    return LMBatch(ids, mask, loss_mask)


def one_by_one(model, batch):
    """Loss and gradient, every row by itself, through the model's own logits."""
    total = torch.zeros(())
    for ids, mask, counts in zip(*batch, strict=True):
        row = ids[mask][None]
        log_probs = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits.log_softmax(-1)
        for place in counts.nonzero().flatten().tolist():
            total = total - log_probs[0, place - 1, row[0, place]]
    loss = total / batch.loss_mask.sum()
    return loss, torch.autograd.grad(loss, trainable_parameters(model), allow_unused=True)


@pytest.mark.parametrize("kind", ["plain", "lora", "recomputed"])
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Qwen 3", "Gemma 3 text"])
def test_packed_rows_have_the_loss_and_the_gradient_of_rows_by_themselves(name, kind):
    model, batch = make_family(name), batch_of()
    if kind == "lora":
        add_adapters(model, rank=2)
        for parameter in trainable_parameters(model):
            torch.nn.init.normal_(parameter, std=0.1)
    if kind == "recomputed":
        checkpoint_activations(model)
    assert VerifiedPacking().suits(model, batch.input_ids, batch.mask)
    expected, gradients = one_by_one(model, batch)
    loss, _ = lm_loss(causal_log_probs(model, *batch, packed=True), batch.loss_mask[:, 1:])
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    found = torch.autograd.grad(loss, trainable_parameters(model), allow_unused=True)
    for gradient, wanted in zip(found, gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)


def test_sixteen_bits_are_as_near_as_without_packing():
    model, batch = make_family("Llama"), batch_of()
    with torch.no_grad():
        exact = causal_log_probs(model, *batch)
        with torch.autocast("cpu", torch.bfloat16):
            assert VerifiedPacking().suits(model, batch.input_ids, batch.mask)
            plain, packed = (causal_log_probs(model, *batch, packed=packed) for packed in (False, True))
    off = [float((each.float() - exact).abs().max()) for each in (plain, packed)]
    assert off[1] < 1.5 * off[0] + 1e-3


def test_attention_dropout_is_the_models_own():
    model, batch = make_family("GPT-2").train(), batch_of()
    packed = partial(causal_log_probs, model, *batch, packed=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert torch.equal(packed(), packed())
    for module in model.modules():
        if name_of(module).endswith("Attention"):
            module.attn_dropout.p = 0.5
    assert not torch.equal(packed(), packed())


def name_of(module):
    return type(module).__name__


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", EVERY)
def test_a_family_is_packed_rightly_or_not_at_all(name):
    try:
        model = make_family(name)
    except ValueError:
        return
    packing, short, long = VerifiedPacking(), batch_of([5, 4, 7, 3]), batch_of([20, 11, 30, 3])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for batch in (short, long):
            if packing.suits(model, batch.input_ids, batch.mask):
                expected = torch.cat(
                    [
                        model.base_model(input_ids=row[real][None], use_cache=False).last_hidden_state[0]
                        for row, real in zip(batch.input_ids, batch.mask, strict=True)
                    ]
                )
                found = packed_hidden(model, batch.input_ids, batch.mask)
                torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
    words = [str(warning.message) for warning in said if "does not support packed rows" in str(warning.message)]
    assert len(words) == (not packing.packs)
    if name in ("GPT-2", "OPT", "Llama", "Qwen 3", "Gemma 3 text"):
        assert packing.packs


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda model: setattr(model.model.layers[0].self_attn, "sliding_window", 50), "hidden states differ"),
        (lambda model: setattr(model.config, "_attn_implementation", "eager"), "its attention is eager"),
    ],
)
def test_what_shows_on_longer_rows_alone_is_found_there(spoil, fault):
    """A window that attention is told wrongly is none on rows within it."""
    model, packing = make_family("Gemma 3 text"), VerifiedPacking()
    spoil(model)
    short, long = batch_of([4, 7]), batch_of([4, 16])
    if "eager" not in fault:
        assert packing.suits(model, short.input_ids, short.mask)
    with pytest.warns(UserWarning, match=f"does not support packed rows .{fault}.* in groups of similar length"):
        assert not packing.suits(model, long.input_ids, long.mask)
    assert not packing.suits(model, short.input_ids, short.mask)
    assert packing.positions(short.mask) == 14


def kept(module):
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def test_what_longer_rows_showed_is_in_the_checkpoint():
    """Or a run that goes on would pack the shorter rows before it, which the run that was not stopped does not."""
    first, again, old = (LanguageModelModule(make_family("Gemma 3 text"), SGD, packing=True) for _ in range(3))
    for module in (first, again, old):
        module.model.model.layers[0].self_attn.sliding_window = 50
    short = batch_of([4, 7])
    first.loss(short)
    again.on_load_checkpoint(kept(first))
    assert again.packing.tokens == {"packed rows": 7}
    assert again.packing.packs
    with pytest.warns(UserWarning, match="does not support packed rows .hidden states differ"):
        first.loss(batch_of([4, 16]))
    again.on_load_checkpoint(kept(first))
    assert not again.packing.packs
    assert torch.equal(again.loss(short)[0], first.loss(short)[0])
    before = kept(first)
    del before["verified"]  # as checkpoints were
    old.on_load_checkpoint(before)
    assert old.packing.packs


@pytest.mark.parametrize("kind", ["packed", "shared"])
def test_no_memory_to_try_is_no_fault_of_the_model(kind, monkeypatch, make_tiny_lm):
    def full(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    if kind == "packed":
        monkeypatch.setattr("rlhf_lightning.models.packing.packed_hidden", full)
        batch, packing = batch_of([4, 7]), VerifiedPacking()
        with pytest.raises(torch.OutOfMemoryError):
            packing.suits(make_family("Llama"), batch.input_ids, batch.mask)
        assert packing.packs
    else:
        ids, mask = torch.ones(1, 2, 3, dtype=torch.long), torch.ones(1, 2, 3, dtype=torch.bool)
        batch = ComparisonBatch(ids[:, 0], mask[:, 0], ids, mask, torch.tensor([[1, 2]]), [""])
        passes, model = VerifiedPasses((full,)), ScalarHeadModel(make_tiny_lm("gpt2").base_model, 8)
        with pytest.raises(torch.OutOfMemoryError):
            passes.fastest(model, batch)
        assert passes.sound == (full,)


def test_rows_with_padding_elsewhere_and_other_modules_are_not_packed(tiny_gpt2):
    batch = batch_of([4, 7])
    assert not VerifiedPacking().suits(tiny_gpt2, batch.input_ids.flip(1), batch.mask.flip(1))
    assert not VerifiedPacking(wanted=False).suits(tiny_gpt2, batch.input_ids, batch.mask)
    with pytest.warns(UserWarning, match="Linear does not support packed rows .it is no transformers model"):
        assert not VerifiedPacking().suits(torch.nn.Linear(1, 1), batch.input_ids, batch.mask)


def test_sharded_weights_are_gathered_once_by_every_process_whatever_its_rows(make_tiny_lm, monkeypatch):
    """Against a count of the gatherings, which wait for all processes, also for one whose rows no way reads."""
    gathered = []
    monkeypatch.setattr(verified, "is_sharded", lambda model: True)
    monkeypatch.setattr(verified, "call_unsharded", lambda function, model: gathered.append(1) or function(model))
    model, batch = make_tiny_lm("llama"), batch_of([3, 5])
    flipped = batch.mask.flip(1)  # padded on the left: not packed
    packing = VerifiedPacking()
    for rows, mask in [(batch.input_ids.flip(1), flipped), (batch.input_ids, batch.mask)]:
        packing.suits(model, rows, mask)
    assert len(gathered) == 1
    before, after = torch.nn.Module(), torch.nn.Module()
    before.packing, after.packing = packing, VerifiedPacking()
    restore_verified(after, verified_states(before))
    after.packing.suits(model, batch.input_ids, batch.mask)
    assert len(gathered) == 1
