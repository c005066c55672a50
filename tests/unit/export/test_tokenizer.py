"""The tokenizer file gives the ids that transformers gives."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from multsd_export.errors import CheckpointError
from multsd_export.tokenizer import check_ids, convert_tokenizer

PROMPTS = ["the Theatre", "a  b\tc", "\u00fcber caf\u00e9 \U0001f680", "3D, it's (x:1.4)", "word " * 100]


def test_ids_are_those_of_transformers_unpadded_and_uncut(checkpoint_folder: Path) -> None:
    source = CLIPTokenizer.from_pretrained(checkpoint_folder / "tokenizer")
    converted = Tokenizer.from_str(convert_tokenizer(checkpoint_folder / "tokenizer").text)
    for prompt in PROMPTS:
        assert converted.encode(prompt).ids == source(prompt, verbose=False)["input_ids"]


def test_the_padding_id_is_the_tokenizers(checkpoint_folder: Path) -> None:
    vocabulary = json.loads((checkpoint_folder / "tokenizer" / "vocab.json").read_text())
    assert convert_tokenizer(checkpoint_folder / "tokenizer").pad_token_id == vocabulary["<|endoftext|>"]


def test_a_checkpoint_may_bring_a_tokenizer_file_of_its_own(checkpoint_folder: Path, tmp_path: Path) -> None:
    converted = convert_tokenizer(checkpoint_folder / "tokenizer")
    with_limits = Tokenizer.from_str(converted.text)
    with_limits.enable_truncation(8)
    with_limits.enable_padding(length=8)
    fast = PreTrainedTokenizerFast(tokenizer_object=with_limits, pad_token="<|endoftext|>")  # noqa: S106
    fast.save_pretrained(tmp_path / "tokenizer")
    assert convert_tokenizer(tmp_path / "tokenizer") == converted


def test_a_tokenizer_without_padding_token_is_refused(checkpoint_folder: Path, tmp_path: Path) -> None:
    converted = convert_tokenizer(checkpoint_folder / "tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(converted.text)).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="no pad_token"):
        convert_tokenizer(tmp_path / "tokenizer")


def test_a_file_that_gives_other_ids_is_refused(checkpoint_folder: Path) -> None:
    source = CLIPTokenizer.from_pretrained(checkpoint_folder / "tokenizer")
    other = Tokenizer.from_str(source.backend_tokenizer.to_str())
    other.normalizer = None
    with pytest.raises(CheckpointError, match="gives other ids than transformers"):
        check_ids(other, source)
