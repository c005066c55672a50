"""The tokenizer file gives the ids that transformers gives."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from multsd_export.errors import CheckpointError
from multsd_export.tokenizer import check_ids, convert_tokenizer
from tests.small_checkpoints import END, VOCAB_SIZE, write_tokenizer

PROMPTS = ["the Theatre", "a  b\tc", "\u00fcber caf\u00e9 \U0001f680", "3D, it's (x:1.4)", "word " * 100]


def test_ids_are_those_of_transformers_unpadded_and_uncut(checkpoint_folder: Path) -> None:
    source = CLIPTokenizer.from_pretrained(checkpoint_folder / "tokenizer")
    converted = Tokenizer.from_str(convert_tokenizer(checkpoint_folder / "tokenizer", VOCAB_SIZE).text)
    for prompt in PROMPTS:
        assert converted.encode(prompt).ids == source(prompt, verbose=False)["input_ids"]


def test_the_padding_id_is_the_tokenizers(checkpoint_folder: Path) -> None:
    vocabulary = json.loads((checkpoint_folder / "tokenizer" / "vocab.json").read_text())
    assert convert_tokenizer(checkpoint_folder / "tokenizer", VOCAB_SIZE).pad_token_id == vocabulary["<|endoftext|>"]


def test_a_checkpoint_may_bring_a_tokenizer_file_of_its_own(checkpoint_folder: Path, tmp_path: Path) -> None:
    converted = convert_tokenizer(checkpoint_folder / "tokenizer", VOCAB_SIZE)
    with_limits = Tokenizer.from_str(converted.text)
    with_limits.enable_truncation(8)
    with_limits.enable_padding(length=8)
    fast = PreTrainedTokenizerFast(tokenizer_object=with_limits, pad_token="<|endoftext|>")  # noqa: S106
    fast.save_pretrained(tmp_path / "tokenizer")
    assert convert_tokenizer(tmp_path / "tokenizer", VOCAB_SIZE) == converted


def test_a_tokenizer_without_padding_token_is_refused(checkpoint_folder: Path, tmp_path: Path) -> None:
    converted = convert_tokenizer(checkpoint_folder / "tokenizer", VOCAB_SIZE)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(converted.text)).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="no pad_token"):
        convert_tokenizer(tmp_path / "tokenizer", VOCAB_SIZE)


def test_a_file_that_gives_other_ids_is_refused(checkpoint_folder: Path) -> None:
    source = CLIPTokenizer.from_pretrained(checkpoint_folder / "tokenizer")
    other = Tokenizer.from_str(source.backend_tokenizer.to_str())
    other.normalizer = None
    with pytest.raises(CheckpointError, match="gives other ids than transformers"):
        check_ids(other, source)


@pytest.mark.parametrize(
    ("file", "content", "pad_token", "message"),
    [
        ("added_tokens.json", {"<new>": VOCAB_SIZE}, END, "tokenizer: '<new>' has the id 516, expected less than"),
        (
            "special_tokens_map.json",
            {},
            "<pad>",
            "tokenizer: '<pad>' has the id 516, expected less than the text enc",
        ),
    ],
)
def test_an_id_beyond_the_text_encoders_vocabulary_is_named(
    tmp_path: Path, file: str, content: dict[str, int], pad_token: str, message: str
) -> None:
    folder = tmp_path / "tokenizer"
    write_tokenizer(folder, pad_token)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        convert_tokenizer(folder, VOCAB_SIZE)
    assert convert_tokenizer(folder, VOCAB_SIZE + 1)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("vocab.json", "[]"),
        ("merges.txt", "x"),
        ("merges.txt", "#version: 0.2\nz q\n"),
        ("tokenizer_config.json", "{"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, file: str, content: str) -> None:
    write_tokenizer(tmp_path / "tokenizer_2")
    (tmp_path / "tokenizer_2" / file).write_text(content)
    with pytest.raises(CheckpointError, match=r"^tokenizer_2: the tokenizer cannot be read: "):
        convert_tokenizer(tmp_path / "tokenizer_2", VOCAB_SIZE)
