"""The tokenizer of the sealed world: one token per word."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.sandbox.vocabulary import VOCABULARY

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over white space. It adds no special tokens; padding differs from the end marker.

    >>> tokenizer = build_tokenizer()
    >>> tokenizer.decode(tokenizer("the cat slept .")["input_ids"])
    'the cat slept .'
    """
    words = {word: index for index, word in enumerate((PAD, EOS, UNKNOWN, *VOCABULARY))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=192,
    )
