"""Small tokenizers with the chat templates of well-known models, made by hand."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'].split('</think>')[-1].lstrip('\n') if m['role'] == 'assistant' else m['content'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DATED = (
    "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %B %Y') + '<|im_end|>\n' }}" + CHATML
)  # as SmolLM 3 and Granite write it
DATE_STRING = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|im_start|>system\nToday: ' + date_string + '<|im_end|>\n' }}" + CHATML
)  # as Llama 3.1 does
ALPACA = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)


LLAMA3_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Keeps the lines that end a generation prompt together, also before a word; GPT-2's words do not."""


def byte_tokenizer(special, template=None, *, bos=None, eos="<|endoftext|>", adds_bos=False, added=(), words=None):
    """A token per byte, and " a", "ab" and two lines as pairs that merge; `added` tokens are not special."""
    names = {"bos_token": bos} if bos else {}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate([*alphabet, "Ġa", "ab", "ĊĊ"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("a", "b"), ("Ċ", "Ċ")]))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    if words is not None:
        split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"), split])
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    return _finished(
        backend, special, added, template, {**names, "eos_token": eos, "pad_token": "<|pad|>"}, adds_bos and bos
    )


def sentence_tokenizer(template=None, *, adds_bos=True, unigram=False, special=()):
    """As Llama 2: signs with a mark for spaces, `<s>` and `</s>` among the ordinary tokens of the vocabulary."""
    signs = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyzHISTNY<>/[]|_.:?!\n"]
    if unigram:
        backend = Tokenizer(models.Unigram([(sign, -float(number > 2)) for number, sign in enumerate(signs)], unk_id=0))
    else:
        merges = [("▁", "a"), ("a", "b")]
        vocabulary = {sign: number for number, sign in enumerate([*signs, "▁a", "ab"])}
        backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _finished(backend, special, (), template, names, adds_bos and "<s>")


def _finished(backend, special, added, template, names, opening):
    backend.add_special_tokens([AddedToken(token, special=True) for token in [*names.values(), *special]])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    if opening:
        number = backend.token_to_id(opening)
        backend.post_processor = TemplateProcessing(single=f"{opening} $A", special_tokens=[(opening, number)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = template
    return tokenizer


def chatml():
    """A base model's vocabulary with ChatML; the EOS is another token than the turn's end."""
    return byte_tokenizer(["<|im_start|>", "<|im_end|>"], CHATML)


def llama3(words=LLAMA3_WORDS):
    """Template and tokenizer both write a BOS."""
    special = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_tokenizer(special, LLAMA3, bos="<|begin_of_text|>", eos="<|end_of_text|>", adds_bos=True, words=words)


def gemma():
    """No system message, and turns that alternate."""
    special = ["<start_of_turn>", "<end_of_turn>"]
    return byte_tokenizer(special, GEMMA, bos="<bos>", eos="<eos>", adds_bos=True)


def llama2():
    """A space stands before the EOS, and answers begin with one."""
    return sentence_tokenizer(LLAMA2)


def qwen3():
    """The last answer gets an empty thought, and `<think>` is no special token."""
    return byte_tokenizer(["<|im_start|>", "<|im_end|>"], QWEN3, added=["<think>", "</think>"])


EVERY = {"chatml": chatml, "llama3": llama3, "gemma": gemma, "llama2": llama2, "qwen3": qwen3}
