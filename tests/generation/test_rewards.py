"""A reward model with its own tokenizer reads a conversation with one BOS, and responses as text."""

import pytest
import torch
from chat_models import llama3
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlhf_lightning.generation.text_reward import TextReward


@pytest.fixture
def reward(tmp_path):
    tokenizer = llama3()
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5, **sizes
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    return TextReward(str(tmp_path))


def test_a_rendered_conversation_has_one_bos(reward):
    messages = [{"role": "user", "content": "ab"}]
    chat = reward.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = reward.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    text = reward.tokenizer("a b", add_special_tokens=False)["input_ids"]
    # The turn ends as the template ends turns.
    turn = reward.tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "a b"}], return_dict=False)
    row = torch.tensor([[*ids, *text, turn[len(ids) + len(text)]]])
    by_hand = reward.model(row).logits.item()
    assert reward([chat], ["a b"]) == pytest.approx([by_hand], abs=1e-6)
    # A plain prompt gets its BOS from the tokenizer.
    row = torch.tensor([[ids[0], *text, *text, reward.tokenizer.eos_token_id]])
    assert reward(["a b"], ["a b"]) == pytest.approx([reward.model(row).logits.item()], abs=1e-6)


def test_an_end_token_that_a_response_spells_is_text(reward):
    end = reward.tokenizer.eos_token
    signs = reward.tokenizer.convert_tokens_to_ids(list(end))
    bos, eos = reward.tokenizer.bos_token_id, reward.tokenizer.eos_token_id
    prompt = reward.tokenizer("ab", add_special_tokens=False)["input_ids"]
    by_hand = reward.model(torch.tensor([[bos, *prompt, *signs, eos]])).logits.item()
    assert reward(["ab"], [end]) == pytest.approx([by_hand], abs=1e-6)
