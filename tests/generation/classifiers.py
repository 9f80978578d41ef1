"""Tiny fresh classifiers of three kinds, each with a tokenizer of its own, written to a folder."""

import torch
from chat_models import byte_tokenizer, chatml, llama3
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!:[]<>|/'\n"


def bert_tokenizer():
    """A token per sign, `[CLS] ... [SEP] ... [SEP]` around a pair, no EOS and no chat template."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SIGNS, *(f"##{sign}" for sign in SIGNS)]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def bert(**changes):
    tokenizer = bert_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(
        **{"vocab_size": len(tokenizer), "num_labels": 1, "initializer_range": 0.2, "max_position_embeddings": 128}
        | sizes
        | changes
    )
    return BertForSequenceClassification(config), tokenizer


def llama(**changes):
    """With Llama 3's template, which writes a BOS; the turns end with another token than a document."""
    tokenizer = llama3()
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    named = {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.1}
    config = LlamaConfig(**{"vocab_size": len(tokenizer), "max_position_embeddings": 256} | named | sizes | changes)
    return LlamaForSequenceClassification(config), tokenizer


def gpt2(template=True, **changes):
    """Its pad token is its EOS, as GPT-2's folders mostly have it; with ChatML, or without a template."""
    tokenizer = chatml() if template else byte_tokenizer([])
    tokenizer.pad_token = tokenizer.eos_token
    sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
    named = {"num_labels": 1, "pad_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(**{"vocab_size": len(tokenizer), "initializer_range": 0.2} | named | sizes | changes)
    return GPT2ForSequenceClassification(config), tokenizer


def written(folder, made, seed=0, dtype=torch.float32):
    """The folder of a classifier; returns its tokenizer, and the model, which reads the last token of a single row."""
    torch.manual_seed(seed)
    model, tokenizer = made()
    model = model.to(dtype).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # With a pad token that is the EOS, transformers would read the token before the EOS.
    model.config.pad_token_id = None
    return model, tokenizer
