"""Checks of tokens: what ends, what counts, what is text."""

import warnings
from collections.abc import Callable
from itertools import takewhile

from rlhf_lightning.checks.result import CheckSkippedError, demand
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.data import loader
from rlhf_lightning.tokenization.endings import as_list, is_control_token, listed_end_ids, turn_end


def endings(subject: Subject) -> str:
    """Every response that was not cut ends in an EOS that counts, and padding is another token."""
    ends = subject.ends
    demand(subject.pad not in ends, f"token {subject.pad} is pad and ends a response: no model could learn to end")
    tokens, cut = subject.tokens, 0
    examples = tokens.demonstrations(subject.demonstrations[:64])
    if not examples:
        raise CheckSkippedError("there are no demonstrations")
    batch = loader.collate_lm(examples, subject.pad)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        if length - example.loss_start >= tokens.max_response_tokens and example.input_ids[-1] not in ends:
            cut += 1
            continue
        demand(example.input_ids[-1] in ends, f"demonstration {row} does not end in EOS")
        demand(bool(batch.loss_mask[row, length - 1]), f"the EOS of demonstration {row} does not count")
        inside = example.input_ids[example.loss_start : -1]
        demand(not set(ends) & set(inside), f"the response of demonstration {row} has an EOS before its end")
        counted = batch.loss_mask[row].nonzero().squeeze(1).tolist()
        spans = [*example.earlier, (example.loss_start, length)]
        right = counted == [place for start, stop in spans for place in range(start, stop)]
        demand(right, f"demonstration {row} counts tokens of prompt or padding")
    return f"{len(examples) - cut} demonstrations end in an EOS that counts; {cut} were cut at the limit"


def end_tokens(subject: Subject) -> str:
    """Everyone ends a response with the same tokens: template, generation config, tokenizer, sampling and data."""
    tokenizer, ends = subject.tokenizer, subject.ends
    turn, config = turn_end(tokenizer), subject.policy.generation_config
    told = {
        "template": [] if turn is None else [tokenizer.get_vocab()[turn]],
        "generation config": as_list(config.eos_token_id if config else None),
        "tokenizer": as_list(tokenizer.eos_token_id),
    }
    for number in listed_end_ids(subject.folder) if subject.folder else []:
        name = tokenizer.convert_ids_to_tokens(number) if number < len(tokenizer) else None
        demand(name is not None, f"the model's folder ends at id {number}; the tokenizer has {len(tokenizer)}")
        demand(is_control_token(tokenizer, number), f"the model's folder ends at id {number}, the text {name!r}")
    sources: dict[int, list[str]] = {end: [] for end in ends}
    for source, numbers in told.items():
        for number in numbers:
            demand(number < len(tokenizer), f"the {source} ends at id {number}; the tokenizer has {len(tokenizer)}")
            name = tokenizer.convert_ids_to_tokens(number)
            may_differ = source == "tokenizer"  # a document may end otherwise than a response
            demand(number in ends or may_differ, f"the {source} ends at {name!r}, where no response ends")
            sources.setdefault(number, []).append(source)
    written = subject.tokens.response_ids("a")
    name = tokenizer.convert_ids_to_tokens(written[-1])
    demand(written[-1] in ends, f"responses of the data end with {name!r}, where no sample ends")
    return "; ".join(
        f"{tokenizer.convert_ids_to_tokens(end)} ({', '.join(sources[end]) or 'model.eos'})" for end in ends
    )


def special_tokens(subject: Subject) -> str:
    """Control tokens in the text of a user are text."""
    tokenizer, tokens = subject.tokenizer, subject.tokens
    special = {str(token): int(tokenizer.get_vocab()[str(token)]) for token in tokenizer.all_special_tokens}
    special.pop(str(tokenizer.unk_token), None)
    ways: dict[str, Callable[[str], list[int] | None]] = {
        "a prompt": tokens.prompt_ids,
        "a response": tokens.response_ids,
    }
    for token, number in special.items():
        for what, ids_of in ways.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such texts look like what a template wrote already
                with_token, without = (ids_of(f"say {text} twice") or [] for text in (token, "it"))
            more = with_token.count(number) - without.count(number)
            demand(more <= 0, f"{token!r} in {what} is read as the control token {number}")
    return f"{len(special)} control tokens are text in prompts and responses"


def one_bos(subject: Subject) -> str:
    """A text begins with one BOS token where the tokenizer writes one, a conversation as its template says."""
    tokenizer, tokens = subject.tokenizer, subject.tokens
    bos = tokenizer.bos_token_id
    if bos is None:
        raise CheckSkippedError("the tokenizer has no BOS token")
    writes = list(tokenizer("a")["input_ids"])[:1] == [bos]
    rows = {f"prompt {n}": example.prompt_ids for n, example in enumerate(tokens.prompts(subject.prompts))}
    rows |= {f"text {n}": example.input_ids for n, example in enumerate(tokens.texts(subject.texts[:1], 64)[:1])}
    for name, ids in rows.items():
        # White space may stand between them.
        opening = takewhile(lambda token: token == bos or not str(tokenizer.decode([token])).strip(), ids)
        demand(list(opening).count(bos) <= 1, f"{name} begins with two {tokenizer.bos_token!r}")
        templated = tokenizer.chat_template and name.startswith("prompt")
        demand(templated or not writes or ids[:1] == [bos], f"{name} does not begin with {tokenizer.bos_token!r}")
    count = sum(ids[:1] == [bos] for ids in rows.values())
    return f"{count} of {len(rows)} rows begin with {tokenizer.bos_token!r}, none with two"
