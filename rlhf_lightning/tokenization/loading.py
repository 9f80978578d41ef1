"""Loading a tokenizer: with an EOS token, a pad token of its own, and every token that ends a response."""

import json
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer

from rlhf_lightning.runs.hub import model_source

_END_OF_TEXT = "<|endoftext|>"
"""Ends a text in many a vocabulary whose file does not say so."""


def load_tokenizer(
    path: str, *, eos_token: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and make sure that it has an EOS and a pad token that differ.

    Args:
        path: A local folder, a hub id, a shipped model, a single `tokenizer.json`, or a folder with the original
            GPT-2 files `encoder.json` and `vocab.bpe`.
        eos_token: The token that ends a text, where the files do not say; one of the vocabulary.
        trust_remote_code: Whether code that comes with the tokenizer may run.

    Raises:
        FileNotFoundError: When there is nothing at a path that is no hub id.
        ValueError: When there is no tokenizer, or it has no EOS token.
    """
    source = model_source(path)
    folder = Path(source)
    if (folder / "encoder.json").exists():
        vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
        merges = cast(Any, [tuple(line.split()) for line in lines if line])
        tokenizer: PreTrainedTokenizerBase = GPT2Tokenizer(vocab=vocabulary, merges=merges)
    elif folder.suffix == ".json":
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder))
    else:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"{path} has no tokenizer files (tokenizer.json and such); set model.tokenizer.path.")
    if tokenizer.eos_token_id is None or eos_token is not None:
        end = eos_token or _END_OF_TEXT
        if end not in tokenizer.get_vocab():
            raise ValueError(
                f"the tokenizer of {path} has no EOS token{f' {eos_token!r}' if eos_token else ''}; responses could "
                "never end. Name one of its vocabulary: model.tokenizer.eos_token."
            )
        tokenizer.eos_token = end
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        # An EOS that is also padding would be masked away, and no model could learn to end.
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return tokenizer
