"""Command lines of the training and of the held-out check: wrong values are told, not traced."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from demo_checkpoint import evaluate, train

PARTS = ("unet", "vae", "text_encoder", "scheduler")


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (train.main, "core --work W --rows 0", "argument --rows: expected a whole number of at least 1, found '0'"),
        (train.main, "core --work W --steps x", "argument --steps: expected a whole number of at least 1, found 'x'"),
        (train.main, "core --work W --workers -1", "--workers: expected a whole number of at least 0, found '-1'"),
        (train.main, "core --work W --threads 0", "--threads: expected a whole number of at least 1, found '0'"),
        (train.main, "core --work W --device gpu", "--device: expected cpu"),
        (train.main, "core --work W --device cuda:99", "found 'cuda:99'"),
        (evaluate.main, "W --requests 0", "--requests: expected a whole number of at least 1, found '0'"),
        (evaluate.main, "W/none", "argument checkpoint: expected a folder with unet, vae, text_encoder, scheduler"),
        (evaluate.main, "W/none", "found no folder W/none"),
        (evaluate.main, "W/part", "found W/part without vae, scheduler"),
    ],
)
def test_a_wrong_value_is_told_with_its_option_what_is_expected_and_found(
    main: Callable[[], None],
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in (*(tmp_path / "W" / name for name in PARTS), *(tmp_path / "W/part" / name for name in PARTS[::2])):
        folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prog", *arguments.split()])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
