import gc

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# The suites' networks are tiny: threads only wait for each other, the more the busier the machine is.
torch.set_num_threads(1)

# A suite's process holds a million objects; to look through them again and again takes a fifth of its time.
gc.set_threshold(50_000, 20, 50)


class LoadSharedScheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no annotations
    """Tests that share fixtures stay in one process: those of a module, and those of a folder of unit tests."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module.rpartition("/")[0] if module.startswith("tests/unit/") else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadSharedScheduling:
    config.option.loadscopereorder = False  # by number of tests: what takes longest, few exports, would come last
    return LoadSharedScheduling(config, log)
