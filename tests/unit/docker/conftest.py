"""What the tests of docker/ ask other programs."""

from __future__ import annotations

import subprocess

import pytest

from multsd_gateway.stack.errors import PrerequisiteError
from multsd_gateway.stack.triton import find_wheel, triton_environment


@pytest.fixture(scope="session")
def triton_help() -> str:
    """What the development wheel's `tritonserver --help` prints: a real Triton's flags."""
    try:
        wheel = find_wheel()
    except PrerequisiteError as error:
        pytest.skip(str(error))
    ended = subprocess.run(
        [str(wheel.server), "--help"], env=triton_environment(wheel), capture_output=True, text=True, check=False
    )
    text = ended.stdout + ended.stderr
    assert "--model-repository" in text, text
    return text
