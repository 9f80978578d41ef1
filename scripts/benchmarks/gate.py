"""What every contender shares: the protocol with the parent process, model sizes, lengths, a tokenizer."""

import json
import os
import re
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SIZES = {"T": (2, 64), "S": (4, 256), "M": (12, 512), "L": (12, 768), "XL": (24, 2048)}
"""Layers and width; heads are 64 wide."""
LLAMAS = {"T-llama": (2, 64, 4), "XL-llama": (24, 2048, 8)}
"""Layers, width and heads of keys; the inner layers are three times as wide, and three in number."""
PAD, EOS = 0, 1
SMOLLM2 = {
    **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "tie_word_embeddings": True},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192},
    **{"vocab_size": 49_152, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD},
}
"""The size 135M: the architecture of SmolLM2-135M, with random weights as the others; it takes the same time."""


class Gate:
    """Waits for a line on standard input before each step and reports the step on standard output.

    Standard output belongs to the report; what libraries print goes to standard error.
    """

    def __init__(self):
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.baseline = resident("VmRSS")
        self.start = 0.0

    def wait(self):
        """Block until the parent says go; the end of the input ends the process."""
        if not sys.stdin.readline():
            os._exit(0)
        self.start = time.perf_counter()

    def report(self, units, **counted):
        """One step is done; ``units`` of work were in it, and what else was counted: ``flops``, or ``bytes`` moved."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.start
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM") - self.baseline
        print(json.dumps({"units": units, "seconds": seconds, "peak": peak} | counted), file=self.out, flush=True)


def resident(field):
    """Bytes of memory of this process: ``VmRSS`` now, ``VmHWM`` at most so far."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found.group(1)) * 1024


def make_lm(shape):
    """A GPT-2 or Llama architecture with random weights, without dropout."""
    torch.manual_seed(0)
    llama = SMOLLM2 if shape["size"] == "135M" else llama_sizes(shape)
    config = AutoConfig.for_model("llama", **llama) if llama else gpt2(shape)
    with torch.device(shape.get("device", "cpu")):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=shape.get("attention", "sdpa"))
    dtype = torch.bfloat16 if shape.get("weights") == "bf16" else torch.float32
    return model.to(dtype).eval()


def llama_sizes(shape):
    """What a size in `LLAMAS` adds to the configuration; None for the others."""
    if shape["size"] not in LLAMAS:
        return None
    layers, width, heads = LLAMAS[shape["size"]]
    return SMOLLM2 | {
        **{"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers},
        **{"num_attention_heads": width // 16 if width < 128 else width // 64, "num_key_value_heads": heads},
        **{"head_dim": 16 if width < 128 else 64, "vocab_size": shape.get("vocabulary", 8192)},
    }


def gpt2(shape):
    """The configuration of a size in `SIZES`."""
    layers, width = SIZES[shape["size"]]
    return AutoConfig.for_model(
        "gpt2",
        vocab_size=shape.get("vocabulary", 8192),
        n_layer=layers,
        n_embd=width,
        n_head=width // 64,
        n_positions=1024,
        activation_function="gelu_new",  # as GPT-2 folders have it
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def tokens(shape, *size):
    """Random ids without special tokens."""
    return torch.randint(2, shape.get("vocabulary", 8192), size, device=shape.get("device", "cpu"))


def response_lengths(shape, rows):
    """Tokens of each response: all of the limit, or uniform between 1 and it."""
    longest = shape["response"]
    if not shape.get("uniform"):
        return torch.full((rows,), longest)
    return torch.randint(1, longest + 1, (rows,), generator=torch.Generator().manual_seed(rows))


def make_tokenizer(shape):
    """One word per id."""
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{n}": n for n in range(2, shape.get("vocabulary", 8192))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
