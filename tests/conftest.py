"""Shared by all tests: shapes as types are enforced, nothing reaches for the network, tiny models and a tokenizer."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

import hypothesis
import jaxtyping
import pytest
import torch
from jaxtyping import install_import_hook

gc.disable()  # until all is collected: what is imported stays

# Whoever starts the tests in the background (nohup, a job of a shell script) may leave these ignored, for all children
# too: the tests of interruptions would wait for what never comes.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# None of them has a tensor, and a check costs more than most calls of the sealed world, which nearly every test asks.
# In cli the DictConfig of omegaconf derives from the deprecated typing.MutableMapping besides, and the checker warns.
UNCHECKED = {"cli", "curation", "labeling", "reproduce", "runs", "sandbox", "tokenization"}
if find_spec("absl"):
    # Its log handler closes the stream that was standard error when it was imported, pytest's own, once Hydra sets
    # logging up anew in a test whose standard error is another.
    import_module("absl.logging").get_absl_handler().python_handler.stream = sys.__stderr__
PACKAGE = find_spec("rlhf_lightning")
assert PACKAGE is not None
assert "rlhf_lightning" not in sys.modules, "imported too early: its shapes would go unchecked"
# From here on every annotated shape and dtype of the package is checked at each call. The tower lets an int stand for
# a float, as static type checkers do.
install_import_hook(
    [f"rlhf_lightning.{m.name}" for m in iter_modules(PACKAGE.submodule_search_locations) if m.name not in UNCHECKED],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# The same examples in every run: a red test stays red, and a green one does not flicker.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """Let every later garbage collection pass over the modules that were imported, which take it half a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


VOCABULARY = ("<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(3, 40)))

ModelFactory = Callable[..., Any]


def _fresh_causal_lm(kind: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    # Wide weights: with the usual 0.02 a fresh model hardly looks at other tokens, and a wrong mask would go unseen.
    shared = {"vocab_size": len(VOCABULARY), "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    shared["initializer_range"] = 0.2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "gpt2":
            size = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
            dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            model: Any = GPT2LMHeadModel(GPT2Config(**{**shared, **size, **dropout, **changes}))
        elif kind == "llama":
            size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
            model = LlamaForCausalLM(LlamaConfig(**{**shared, **size, **heads, **changes}))
        else:
            raise ValueError(f"kind is {kind!r}; known are gpt2 and llama.")
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def types_as_users_have_them():
    """Without the checks of the test suite, which see a value of the wrong type before the record does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def make_tiny_lm() -> ModelFactory:
    """``make_tiny_lm("gpt2", dtype=torch.float64, seed=1)``: a fresh causal LM, 2 layers, width 32, 40 tokens.

    Further keywords go to the architecture's configuration.
    """
    return _fresh_causal_lm


@pytest.fixture
def tiny_gpt2() -> Any:
    """A fresh GPT-2 (learned positions), 32 bits."""
    return _fresh_causal_lm("gpt2")


@pytest.fixture
def tiny_llama() -> Any:
    """A fresh Llama (rotary positions, grouped heads), 32 bits."""
    return _fresh_causal_lm("llama")


@pytest.fixture(params=["gpt2", "llama"])
def tiny_lm(request: pytest.FixtureRequest) -> Any:
    """Both, one after the other."""
    return _fresh_causal_lm(request.param)


@pytest.fixture
def tiny_tokenizer() -> Any:
    """One token per word, the 40 words of the tiny models, pad 0, EOS 1, unknown 2."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


CHAT_WORDS = ["user", "model", "capital", "of", "france", "paris", "is", "the", "what", "?", "Human:", "next"]
TURNS = (
    "{% for m in messages %}<turn> {{ 'model' if m.role == 'assistant' else m.role }} {{ m.content }} <end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn> model {% endif %}"
)
"""Turns that close with another token than a document, as Gemma's do."""


@pytest.fixture
def make_chat_folder(tmp_path: Any) -> Callable[..., Any]:
    """A folder with a chat model: 18 tokens, a template (`TURNS`) and a generation config that lists the ends."""

    def make(
        template: str | None = TURNS, ends: Any = (1, 4), name: str = "chat", words: Sequence[str] = CHAT_WORDS
    ) -> Any:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit
        from transformers import PreTrainedTokenizerFast

        special = ["<pad>", "<eos>", "<unk>", "<turn>", "<end_of_turn>", "<tool>"]
        vocabulary = {word: number for number, word in enumerate([*special, *words])}
        model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        model.pre_tokenizer = WhitespaceSplit()
        named = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, extra_special_tokens=special[3:], **named)
        tokenizer.chat_template = template
        lm = _fresh_causal_lm("llama", vocab_size=len(vocabulary))
        lm.generation_config.eos_token_id = list(ends) if isinstance(ends, tuple) else ends
        folder = tmp_path / name
        lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make
