import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import prompts as prompts_module
from prompts import tokenize_prompts
from tests.unit.repository.tiny import END, MAX_LENGTH, START, UNKNOWN, WORDS, make_tokenizer

TOKENIZER = make_tokenizer()


def ids(*words: str) -> tuple[int, ...]:
    """Tokens of a text, written out."""
    tokens = [START, *(WORDS.index(word) for word in words), END]
    return (*tokens, *[END] * (MAX_LENGTH - len(tokens)))


def test_short_text_is_padded() -> None:
    assert TOKENIZER.tokenize("a red cat").ids == ids("a", "red", "cat")
    assert TOKENIZER.tokenize("").ids == (START, *[END] * (MAX_LENGTH - 1))


def test_text_that_just_fits_is_whole() -> None:
    text = "a red cat on the moon"
    tokenized = TOKENIZER.tokenize(text)
    assert tokenized.ids == ids(*text.split())
    assert tokenized.cut == ""


def test_cut_text_keeps_the_end_token() -> None:
    tokenized = TOKENIZER.tokenize("a red cat on the moon a blue dog")
    assert tokenized.ids == ids("a", "red", "cat", "on", "the", "moon")
    assert tokenized.cut == "a blue dog"


def test_what_was_cut_is_told_as_it_was_written() -> None:
    assert TOKENIZER.tokenize("a red cat on the moon A  BLUE Dog").cut == "A  BLUE Dog"


def test_unknown_words_count_as_tokens() -> None:
    tokenized = TOKENIZER.tokenize("Ünder ☃ cat")
    assert tokenized.ids[:5] == (START, UNKNOWN, UNKNOWN, WORDS.index("cat"), END)


def test_equal_texts_share_one_row() -> None:
    prompts = tokenize_prompts([TOKENIZER], ["a cat", "a dog", "a cat"], ["", "", ""])
    (input_ids,) = prompts.input_ids
    np.testing.assert_array_equal(input_ids, [ids("a", "cat"), ids("a", "dog"), ids()])
    assert input_ids.dtype == np.int32
    assert prompts.prompt_embedding == (0, 1, 0)
    assert prompts.negative_embedding == (2, 2, 2)


def test_texts_of_equal_ids_share_one_row() -> None:
    prompts = tokenize_prompts([TOKENIZER], ["a  Cat", "A CAT"], ["a cat", "dog"])
    assert prompts.prompt_embedding == (0, 0)
    assert prompts.negative_embedding == (0, 1)


def test_each_region_finds_its_own_row() -> None:
    prompts = tokenize_prompts([TOKENIZER], ["cat", "dog", "moon"], ["red", "blue", "the"])
    (input_ids,) = prompts.input_ids
    found = input_ids[[*prompts.prompt_embedding, *prompts.negative_embedding]]
    np.testing.assert_array_equal(found, [ids(word) for word in ("cat", "dog", "moon", "red", "blue", "the")])


def test_fault_8_a_long_negative_prompt_does_not_raise_and_no_prompt_is_cut_silently() -> None:
    """Both are cut alike."""
    long = "a red cat on the moon a dog"
    prompts = tokenize_prompts([TOKENIZER], ["cat", long], [long, "dog"])
    message = "cut at 8 tokens; left out: 'a dog'"
    assert prompts.warnings == (("prompt[1]", message), ("negative_prompt[0]", message))
    assert prompts.prompt_embedding[1] == prompts.negative_embedding[0]


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("a (cat:1.4)", "cat:1.4"),
        ("(red, sketch, a cat:1.4), text", "a cat:1.4"),
        ("a (red cat : 2) on the moon", "red cat : 2"),
        ("((cat:0.5))", "cat:0.5"),
    ],
)
def test_weights_are_told_not_to_apply(text: str, weight: str) -> None:
    prompts = tokenize_prompts([TOKENIZER], ["cat", text], ["", ""])
    message = f"weights such as {weight!r} are read as plain text, not applied"
    assert ("prompt[1]", message) in prompts.warnings


@pytest.mark.parametrize("text", ["", "a cat", "a cat (red)", "at 12:30", "(a: cat)", "(cat:red)", "(cat 1.4)"])
def test_nothing_else_is_warned_of(text: str) -> None:
    assert tokenize_prompts([TOKENIZER], [text], [text]).warnings == ()


@pytest.mark.parametrize(
    "text",
    ["'(' + ' ' * n + ':' * n", "'(' + ': ' * n + ')'", "'(' * n + ')' * n", "'(:' + '1' * n + 'x)'"],
)
def test_a_text_made_to_be_slow_is_read_in_time_that_grows_with_it(text: str) -> None:
    """By a process that can be ended: with the square of it that would take hours."""
    code = f"from prompts import find_weight; n = 200_000; assert find_weight({text}) is None"
    subprocess.run([sys.executable, "-c", code], cwd=Path(prompts_module.__file__).parent, check=True, timeout=120)


def test_every_tokenizer_has_its_own_ids_of_the_same_texts() -> None:
    padded_with_zeros = replace(TOKENIZER, pad_token_id=0)
    prompts = tokenize_prompts([TOKENIZER, padded_with_zeros], ["a cat", "a dog"], ["", ""])
    first, second = prompts.input_ids
    assert first.shape == second.shape == (3, MAX_LENGTH)
    np.testing.assert_array_equal(first[0], ids("a", "cat"))
    np.testing.assert_array_equal(second[0], [START, WORDS.index("a"), WORDS.index("cat"), END, 0, 0, 0, 0])


def test_a_negative_that_says_nothing_is_zeroed_where_the_checkpoint_wants_it() -> None:
    prompts = tokenize_prompts([TOKENIZER], ["", "cat"], [" ", "red"], zero_empty_negatives=True)
    assert [prompts.zeroed[row] for row in prompts.negative_embedding] == [True, False]
    assert [prompts.zeroed[row] for row in prompts.prompt_embedding] == [False, False]
    assert prompts.prompt_embedding[0] != prompts.negative_embedding[0]  # the same ids, not the same embedding
    assert not any(tokenize_prompts([TOKENIZER], [""], [""]).zeroed)
