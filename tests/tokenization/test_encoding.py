"""Special tokens that people spell are text."""

import pytest
from chat_models import EVERY, byte_tokenizer, sentence_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from rlhf_lightning.tokenization.encoding import TextEncoder


@pytest.mark.parametrize("name", EVERY)
def test_no_special_token_comes_from_text(name):
    tokenizer = EVERY[name]()
    encoder = TextEncoder(tokenizer)
    text = "a".join(["", *encoder.special, "".join(encoder.special), ""])
    (ids,) = encoder.rows([encoder.as_text(text)])
    found = {*tokenizer.convert_ids_to_tokens(ids)} & {*encoder.special}
    # Letters that Llama 2's vocabulary does not have are unknown, as in every text.
    assert found <= {tokenizer.unk_token}
    if tokenizer.unk_token is None:
        assert tokenizer.decode(ids) == text


def test_bytes_of_a_special_token():
    tokenizer = byte_tokenizer(["<|im_end|>"])
    encoder = TextEncoder(tokenizer)
    text, number = "a <|im_end|>", tokenizer.get_vocab()
    by_hand = [number[sign] for sign in ("a", "Ġ", *"<|im_end|>")]
    assert encoder.rows([encoder.as_text(text)]) == [by_hand]
    # The same text from a template is the token.
    assert encoder.rows([text]) == [[number["a"], number["Ġ"], number["<|im_end|>"]]]
    mixed = encoder.as_text("<|im_end|>") + "<|im_end|>"
    assert encoder.rows([mixed]) == [[*by_hand[2:], number["<|im_end|>"]]]


@pytest.mark.parametrize("unigram", [False, True])
def test_special_tokens_that_are_in_the_models_own_vocabulary(unigram):
    # transformers' split_special_tokens gives token 2 for the second: a unigram model takes the longest piece.
    tokenizer = sentence_tokenizer(unigram=unigram)
    encoder = TextEncoder(tokenizer)
    number = tokenizer.get_vocab()
    expected = [number[sign] for sign in ("▁", "b", *"</s>", "▁", "c")]
    assert encoder.rows([encoder.as_text("b</s> c")]) == [expected]
    # A template's token on either side: no mark for a space comes in where the tokenizer itself writes none.
    written = f"<s>b{encoder.as_text('</s>')}</s>c"
    joined = tokenizer("<s>b~</s>c", add_special_tokens=False)["input_ids"]
    at = joined.index(number["<unk>"])
    assert encoder.rows([written]) == [[*joined[:at], *[number[sign] for sign in "</s>"], *joined[at + 1 :]]]


def test_a_word_that_is_a_special_token(tiny_tokenizer):
    encoder = TextEncoder(tiny_tokenizer)
    assert encoder.rows([encoder.as_text("w3 <eos> w4"), "w3 <eos> w4"]) == [[3, 2, 4], [3, 1, 4]]


def test_a_special_token_of_one_character():
    tokenizer = byte_tokenizer(["→"])
    encoder = TextEncoder(tokenizer)
    number = tokenizer.get_vocab()
    # Three bytes in UTF-8, in the alphabet of GPT-2.
    as_bytes = [number[sign] for sign in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("→")[0][0]]
    assert encoder.rows([encoder.as_text("a→"), "a→"]) == [[number["a"], *as_bytes], [number["a"], number["→"]]]
    assert len(as_bytes) == 3


def test_a_special_token_that_is_made_of_merges():
    tokenizer = byte_tokenizer(["ab"])
    encoder = TextEncoder(tokenizer)
    number = tokenizer.get_vocab()
    assert encoder.rows([encoder.as_text("ab"), "ab"]) == [[number["a"], number["b"]], [number["ab"]]]


@given(st.text(alphabet="ab<|im_end>s/ \n", max_size=40))
def test_texts_without_special_tokens_are_as_the_tokenizer_reads_them(text):
    for tokenizer in (BYTES, SENTENCE):
        encoder = TextEncoder(tokenizer)
        if encoder.as_text(text) == text:
            usual = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert encoder.rows([text]) == [usual]
            # The marked copy reads them in the same way.
            broken = encoder.as_text(f"{text}{tokenizer.eos_token}")
            assert encoder.readable(broken) == f"{text}{tokenizer.eos_token}"


BYTES, SENTENCE = byte_tokenizer(["<|im_end|>"]), sentence_tokenizer()


def test_marks_in_a_text_forge_nothing():
    encoder = TextEncoder(BYTES)
    forged = "\ufdd1<|im_end|>\ufdd2 <|\ufdd0im_end|>"
    (ids,) = encoder.rows([encoder.as_text(forged)])
    assert BYTES.convert_tokens_to_ids("<|im_end|>") not in ids
    assert BYTES.decode(ids) == "<|im_end|> <|im_end|>"


@pytest.mark.parametrize(
    ("tokenizer", "opening"), [(sentence_tokenizer(), [1]), (sentence_tokenizer(adds_bos=False), []), (BYTES, [])]
)
def test_what_opens_a_text(tokenizer, opening):
    assert TextEncoder(tokenizer).opening == opening


def test_turn_tokens_that_are_not_called_special_are():
    template = "{{ '<turn>' + messages[0]['content'] + '<end>' }}"
    tokenizer = byte_tokenizer([], template, added=["<turn>", "<think>"])
    assert {"<turn>"} == {*TextEncoder(tokenizer).special} - {"<|endoftext|>", "<|pad|>"}


def test_a_tokenizer_without_a_file_is_right_or_refused(tmp_path):
    from transformers import CTRLTokenizer

    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "a": 1, "<": 2, "e@@": 3, "b": 4}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CTRLTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), eos_token="<e>", pad_token="<p>"
    )
    encoder = TextEncoder(tokenizer)
    assert tokenizer.get_vocab()["<e>"] not in encoder.rows([encoder.as_text("a <e> b")])[0]
    with pytest.raises(ValueError, match=r"'a <e> b<e>' spells a special token beside real ones.* Use one with a tok"):
        encoder.rows([encoder.as_text("a <e> b") + "<e>"])
