import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# The suites' networks are tiny: threads only wait for each other, the more the busier the machine is.
torch.set_num_threads(1)


class LoadFolderScheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no annotations
    """Tests of one folder share their fixtures: where tests run in parallel they stay in one process."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0].rpartition("/")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFolderScheduling:
    return LoadFolderScheduling(config, log)
