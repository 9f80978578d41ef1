"""Loading a tokenizer: with an EOS token, a pad token of its own, and every token that ends a response."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer

from rlhf_lightning.arguments import checked
from rlhf_lightning.runs.hub import adapter_base, model_source
from rlhf_lightning.tokenization.chat import set_template
from rlhf_lightning.tokenization.endings import END_TOKENS, end_token_ids, keep_endings
from rlhf_lightning.tokenization.formats import forget_format
from rlhf_lightning.tokenization.trained import restore

_END_OF_TEXT = "<|endoftext|>"
"""Ends a text in many a vocabulary whose file does not say so."""


@checked
def load_tokenizer(
    path: str,
    *,
    eos: str | Sequence[str] | None = None,
    stop: str | Sequence[str] | None = None,
    chat_template: str | None = None,
    date: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer with everything that ends a response (`end_token_ids`), and a pad token that is none of it.

    Args:
        path: A local folder, a hub id, a shipped model, a single `tokenizer.json`, or a folder with the original
            GPT-2 files `encoder.json` and `vocab.bpe`.
        eos: The tokens that end a response, by text, instead of those that the model's files name (None).
        stop: Texts that end a response too, such as `Human:` for a base model.
        chat_template: A jinja file, or the name of a shipped template (chatml, gemma, llama3, plain), for a folder
            without one, or instead of its own.
        date: The day, as `YYYY-MM-DD`, that chat templates write for today (None: the folder's, or `DEFAULT_DATE`).
        trust_remote_code: Whether code that comes with the tokenizer may run.

    Raises:
        FileNotFoundError: When there is nothing at a path that is no hub id.
        OSError: When the hub does not give it.
        ValueError: When there is no tokenizer, it has no EOS token, or not those that `eos` or `chat_template` name.
    """
    source = model_source(path)
    base = adapter_base(source)
    if base is not None and not (Path(source) / "tokenizer_config.json").exists():
        source = base
    folder = Path(source)
    tokenizer = _read(source, path, trust_remote_code)
    restore(tokenizer)
    tokens, strings = ([named] if isinstance(named, str) else list(named or ()) for named in (eos, stop))
    if tokenizer.eos_token_id is None and not tokens:
        if _END_OF_TEXT not in tokenizer.get_vocab():
            raise ValueError(
                f"the tokenizer of {path} has no EOS token; responses could never end. Name one of its vocabulary: "
                "model.eos."
            )
        tokenizer.eos_token = _END_OF_TEXT
    set_template(tokenizer, chat_template, date)
    if chat_template is not None:
        tokenizer.init_kwargs.pop(END_TOKENS, None)  # those of the template before
        forget_format(tokenizer)
    holds_model = not folder.exists() or (folder / "config.json").exists()
    keep_endings(tokenizer, source if holds_model else base, tokens, strings)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokens[0]
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, *end_token_ids(tokenizer)):
        # An EOS that is also padding would be masked away, and no model could learn to end.
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return tokenizer


def plain_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers reads it, with the chat template that is written there; errors are its own.

    Args:
        path: A local folder, a hub id or a shipped model.
    """
    return _read(model_source(path), path, trust_remote_code=False)


def _read(source: str, path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer as its files say."""
    folder = Path(source)
    if (folder / "encoder.json").exists():
        vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
        merges = cast(Any, [tuple(line.split()) for line in lines if line])
        tokenizer: PreTrainedTokenizerBase = GPT2Tokenizer(vocab=vocabulary, merges=merges)
    elif folder.suffix == ".json":
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder))
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        except (ValueError, TypeError) as error:  # of JSON too
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the tokenizer of {path} cannot be read ({reason}): a file is missing, was cut, or is a pointer of "
                "Git LFS. Put its files (tokenizer.json and such) there, or set model.tokenizer.path."
            ) from error
        except OSError as error:
            if folder.exists():
                raise
            raise OSError(
                f"there is no folder {path!r} here, and the hub does not give its tokenizer "
                f"({str(error).splitlines()[0]}). Without a hub model.path is a folder."
            ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"{path} has no tokenizer files (tokenizer.json and such); set model.tokenizer.path.")
    return tokenizer
