"""The contenders that need PyTorch and transformers only."""

import torch
from gate import EOS, PAD, SIZES, make_lm, response_lengths, tokens
from torch.nn import functional
from transformers import LogitsProcessor, LogitsProcessorList


def sft(gate, shape):
    """The loop that one would write by hand."""
    model = make_lm(shape).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, betas=(0.9, 0.95))
    ids = tokens(shape, shape["rows"], shape["length"])
    while True:
        gate.wait()
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=shape.get("precision") == "bf16"):
            logits = model(input_ids=ids).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        gate.report(ids.numel())


def forced_processor(shape):
    """Responses end where the row says, and nowhere else."""
    lengths = response_lengths(shape, shape["rows"]).to(shape.get("device", "cpu"))

    class Force(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[:, EOS] = -1e9
            if shape.get("uniform"):
                scores[lengths == input_ids.shape[1] - shape["prompt"] + 1, EOS] = 1e9
            return scores

    return LogitsProcessorList([Force()])


@torch.no_grad()
def rollout(gate, shape):
    """``model.generate``."""
    model, ids = make_lm(shape), tokens(shape, shape["rows"], shape["prompt"])
    useful = int(response_lengths(shape, shape["rows"]).sum())
    while True:
        gate.wait()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=shape["response"],
            eos_token_id=EOS,
            pad_token_id=PAD,
            logits_processor=forced_processor(shape),
        )
        gate.report(useful)


@torch.no_grad()
def matmuls(gate, shape):
    """The matrix products of decoding alone: what no loop over such weights can beat."""
    layers, width = SIZES[shape["size"]]
    dtype = torch.bfloat16 if shape.get("weights") == "bf16" else torch.float32
    sizes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    weights = [torch.randn(size, dtype=dtype) for _ in range(layers) for size in sizes]
    head = torch.randn(width, 8192, dtype=dtype)
    inputs = {size: torch.randn(shape["rows"], size, dtype=dtype) for size in (width, 4 * width)}
    while True:
        gate.wait()
        for _ in range(shape["response"]):
            for weight in weights:
                inputs[weight.shape[0]] @ weight
            inputs[width] @ head
        gate.report(shape["rows"] * shape["response"])


def copy(gate, shape):
    """A copy within the device's memory: its bandwidth, bytes read and written."""
    source = torch.randn(shape["numbers"], device=shape.get("device", "cpu"))
    target = torch.empty_like(source)
    while True:
        gate.wait()
        for _ in range(20):
            target.copy_(source)
        gate.report(20 * 2 * source.nbytes / 1e9)


def product(gate, shape):
    """A product of two square matrices in 16 bits: what the device reaches where nothing else stands in the way."""
    left, right = (torch.randn(shape["side"], shape["side"], device=shape.get("device", "cpu")) for _ in range(2))
    left, right = left.bfloat16(), right.bfloat16()
    while True:
        gate.wait()
        for _ in range(20):
            left @ right
        gate.report(20 * 2 * shape["side"] ** 3 / 1e12)


def sampling(gate, shape):
    """Softmax and multinomial."""
    logits = torch.randn(shape["rows"], shape["vocabulary"])
    while True:
        gate.wait()
        for _ in range(20):
            torch.multinomial(logits.softmax(-1), 1)
        gate.report(20 * shape["rows"])
