from typing import Any

import pytest

from tests.unit.repository.tiny import make_unet


@pytest.fixture(scope="module")
def unet() -> Any:
    """A real UNet of some thousand random weights; a module's tests may change its precision."""
    return make_unet()
