import gc

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# The suites' networks are tiny: threads only wait for each other, the more the busier the machine is.
torch.set_num_threads(1)

# A suite's process holds a million objects; to look through them again and again takes a fifth of its time.
gc.set_threshold(50_000, 20, 50)

# Of the integration tests, begun first and in this order: what is long and begun last leaves one process alone with it.
LONGEST = (
    "test_supervision",
    "test_verify",
    "test_triton_clients",
    "test_gateway_schema",
    "test_isolation",
    "test_painting",
    "test_tensorrt_profile",
    "test_connection",
    "test_torch_profile",
)


class LoadSharedScheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no annotations
    """Tests that share fixtures stay in one process: those of a module, and those of a folder of unit tests."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module.rpartition("/")[0] if module.startswith("tests/unit/") else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadSharedScheduling:
    config.option.loadscopereorder = False  # by number of tests: what takes longest, few exports, would come last
    return LoadSharedScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem if "integration" in item.path.parts else "", len(order)))
