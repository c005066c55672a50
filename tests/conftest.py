import pytest
import torch

# The suites' networks are tiny: threads only wait for each other, the more the busier the machine is.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before the distribution reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one folder share their fixtures: where tests run in parallel they stay in one process."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.parent.name))
