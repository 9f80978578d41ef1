import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rlhf_lightning.algorithms.batch import PromptBatch
from rlhf_lightning.generation import decoding
from rlhf_lightning.generation.cuda_graphs import GraphDecoder
from rlhf_lightning.generation.decoding import CachedDecoder, Decoder, GroupedDecoder, InPlaceDecoder, decoder

EOS = 1


def prompt_batch(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths).unsqueeze(1)
    return PromptBatch(torch.where(mask, ids, 0), mask, torch.arange(len(lengths)), [""] * len(lengths))


def steps_of(steps, ends):
    """Logits of every step by row, where row r ends after ``ends[r]`` tokens, which do not depend on the logits."""
    found = {row: [] for row in range(len(ends))}
    logits = steps.first()
    for step in range(max(ends)):
        for place, row in enumerate(steps.rows.tolist()):
            found[row].append(logits[place])
        ending = torch.tensor([ends[row] == step + 1 for row in steps.rows.tolist()])
        chosen = torch.where(ending, EOS, 3 + (7 * steps.rows + step) % 37)
        if bool(ending.all()):
            break
        logits = steps.next(chosen, ~ending)
    return {row: torch.stack(values) for row, values in found.items()}


def assert_same(own, expected, tolerance=1e-5):
    assert own.keys() == expected.keys()
    for row, values in expected.items():
        torch.testing.assert_close(own[row], values, atol=tolerance, rtol=tolerance)


LENGTHS, ENDS = [3, 9, 1, 5, 9, 2, 7], [4, 1, 6, 2, 6, 3, 1]


@torch.no_grad()
@pytest.mark.parametrize("prefill_tokens", [1, 12, 2048])
def test_the_buffers_give_what_reading_all_again_gives(monkeypatch, tiny_lm, prefill_tokens):
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", prefill_tokens)
    prompts = prompt_batch(LENGTHS)
    steps = decoder(tiny_lm, prompts, 6)
    assert type(steps) is InPlaceDecoder
    assert_same(steps_of(steps, ENDS), steps_of(Decoder(tiny_lm, prompts, 6), ENDS), 1e-4)


@torch.no_grad()
def test_prompts_of_one_length_need_no_mask(tiny_lm):
    prompts = prompt_batch([4] * 5)
    masks, _ = [], decoder(tiny_lm, prompts, 4)  # which one is right is tried once
    tiny_lm.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    own = steps_of(decoder(tiny_lm, prompts, 4), [4, 2, 4, 3, 1])
    assert masks == [None] * 4
    assert_same(own, steps_of(Decoder(tiny_lm, prompts, 6), [4, 2, 4, 3, 1]), 1e-4)


@torch.no_grad()
def test_sixteen_bits_on_a_cpu_go_another_way_to_the_same_logits(tiny_lm):
    model = tiny_lm.bfloat16()
    prompts = prompt_batch(LENGTHS)
    used, _ = [], decoder(model, prompts, 6)
    model.register_forward_hook(lambda *_: used.append(model.config._attn_implementation))
    own = steps_of(decoder(model, prompts, 6), ENDS)
    assert used == ["short_rows"] * 6
    assert model.config._attn_implementation == "sdpa"
    exact = steps_of(Decoder(tiny_lm.float(), prompts, 6), ENDS)
    scale = max(float(values.abs().max()) for values in exact.values())
    for row, values in exact.items():
        assert float((own[row].float() - values).abs().max()) < 0.03 * scale


def grouped_lm():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 40, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


@torch.no_grad()
def test_a_sliding_window_keeps_the_cache_of_transformers():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=40, sliding_window=4, initializer_range=0.2, pad_token_id=0, **sizes, **heads)
    model = MistralForCausalLM(config).eval()
    prompts = prompt_batch(LENGTHS)
    steps = decoder(model, prompts, 6)
    assert type(steps) is CachedDecoder
    own = steps_of(steps, ENDS)
    assert_same(own, steps_of(Decoder(model, prompts, 6), ENDS), 1e-4)
    config.sliding_window = 64
    wide = steps_of(Decoder(MistralForCausalLM(config).eval(), prompts, 6), ENDS)
    assert any(not torch.allclose(own[row], wide[row]) for row in own)


@torch.no_grad()
def test_a_decoder_that_is_wrong_for_the_model_is_not_taken(monkeypatch, tiny_lm):
    prompts = prompt_batch(LENGTHS)
    expected = steps_of(Decoder(tiny_lm, prompts, 6), ENDS)
    monkeypatch.setattr(InPlaceDecoder, "_visible", lambda _: None)  # padding is seen
    steps = decoder(tiny_lm, prompts, 6)
    assert type(steps) is CachedDecoder
    assert_same(steps_of(steps, ENDS), expected, 1e-4)
    forward = CachedDecoder._forward
    monkeypatch.setattr(CachedDecoder, "_forward", lambda own, ids, mask, at: forward(own, ids, None, at))
    decoding._DECODERS.clear()
    steps = decoder(tiny_lm, prompts, 6)
    assert type(steps) is GroupedDecoder
    assert_same(steps_of(steps, ENDS), expected, 1e-4)
    monkeypatch.setattr(CachedDecoder, "_forward", lambda own, ids, mask, at: forward(own, ids, None, at * 0))
    decoding._DECODERS.clear()
    steps = decoder(tiny_lm, prompts, 6)
    assert type(steps) is Decoder
    assert_same(steps_of(steps, ENDS), expected, 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [LENGTHS, [4] * 7])
@pytest.mark.parametrize("ends", [ENDS, [6] * 7, [1, 1, 1, 1, 1, 1, 6]])
def test_steps_of_one_shape_give_what_reading_all_again_gives(dtype, lengths, ends):
    model, prompts = grouped_lm().to(dtype), prompt_batch(lengths)
    steps = decoder(model, prompts, 6, (GraphDecoder,))
    assert type(steps) is GraphDecoder
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    assert_same(steps_of(steps, ends), steps_of(Decoder(model, prompts, 6), ends), tolerance)


@torch.no_grad()
def test_a_model_that_graphs_are_wrong_for_is_sampled_otherwise_and_it_is_said(monkeypatch):
    model, prompts = grouped_lm(), prompt_batch(LENGTHS)
    monkeypatch.setattr(GraphDecoder, "_step", lambda own: torch.zeros(own.captured, 40))
    with pytest.warns(UserWarning, match="LlamaForCausalLM cannot be sampled by GraphDecoder.* InPlaceDecoder samples"):
        steps = decoder(model, prompts, 6, (GraphDecoder,))
    assert_same(steps_of(steps, ENDS), steps_of(Decoder(model, prompts, 6), ENDS), 1e-4)
