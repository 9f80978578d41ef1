"""Checks of tokens: what ends, what counts."""

from rlhf_lightning.checks.result import CheckSkippedError, demand
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.data import loader


def endings(subject: Subject) -> str:
    """Every response that was not cut ends in an EOS that counts, and padding is another token."""
    demand(subject.pad != subject.eos, f"pad and EOS are both token {subject.eos}: no model could learn to end")
    tokens, cut = subject.tokens, 0
    examples = tokens.demonstrations(subject.demonstrations[:64])
    if not examples:
        raise CheckSkippedError("there are no demonstrations")
    batch = loader.collate_lm(examples, subject.pad)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        if length - example.loss_start >= tokens.max_response_tokens and example.input_ids[-1] != subject.eos:
            cut += 1
            continue
        demand(example.input_ids[-1] == subject.eos, f"demonstration {row} does not end in EOS")
        demand(bool(batch.loss_mask[row, length - 1]), f"the EOS of demonstration {row} does not count")
        inside = example.input_ids[example.loss_start : -1]
        demand(subject.eos not in inside, f"the response of demonstration {row} has an EOS before its end")
        counted = batch.loss_mask[row].nonzero().squeeze(1).tolist()
        right = counted == list(range(example.loss_start, length))
        demand(right, f"demonstration {row} counts tokens of prompt or padding")
    return f"{len(examples) - cut} demonstrations end in an EOS that counts; {cut} were cut at the limit"
