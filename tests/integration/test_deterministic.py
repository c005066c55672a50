"""The `deterministic` parameter: every call of the UNet has one size, and pictures keep their bytes."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as grpcclient

from multsd_gateway.stack.errors import StartError
from multsd_gateway.stack.settings import StackSettings
from tests.integration.conftest import running_triton, stack_settings
from tests.integration.test_failures import composed
from tests.integration.test_isolation import DIFFERENT, int32, paint

PLACES = 4  # of a call here, so that padding costs less
BRIEF = {"num_inference_steps": int32(2), "bootstrapping": int32(1)}


@pytest.fixture(scope="module")
def settings_of_it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackSettings]:
    folder = tmp_path_factory.mktemp("deterministic")
    repository = composed(folder, deterministic="true")
    file = repository / "multidiffusion" / "1" / "checkpoint" / "settings.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"unet_max_batch_size": PLACES}))
    settings, _ = stack_settings(folder, repository)
    with running_triton(settings, folder / "triton.log"):
        yield settings


def test_every_call_has_one_size_and_a_picture_does_not_depend_on_who_shares_it(settings_of_it: StackSettings) -> None:
    url = f"127.0.0.1:{settings_of_it.triton_grpc_port}"
    requests = [change | BRIEF for change in DIFFERENT[:3]]
    alone = [paint(url, change) for change in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        assert list(pool.map(lambda change: paint(url, change), requests)) == alone
    with grpcclient.InferenceServerClient(url) as client:
        unet = client.get_inference_statistics("unet").model_stats[0]
        text_encoder = client.get_inference_statistics("text_encoder").model_stats[0]
    assert unet.inference_count == PLACES * unet.execution_count
    assert text_encoder.inference_count == text_encoder.execution_count
    metrics = httpx.get(f"http://127.0.0.1:{settings_of_it.triton_metrics_port}/metrics").text
    counted = {
        name: float(re.findall(rf"^multsd_unet_{name}_total (\S+)$", metrics, re.MULTILINE)[0])
        for name in ("rows", "rows_padded")
    }
    assert counted["rows_padded"] > 0
    assert sum(counted.values()) == unet.inference_count


def test_a_value_that_is_neither_true_nor_false_stops_the_start(tmp_path: Path) -> None:
    settings, _ = stack_settings(tmp_path, composed(tmp_path, deterministic="yes"))
    with pytest.raises(StartError), running_triton(settings, tmp_path / "triton.log"):
        pass
    assert "deterministic: expected true or false, found 'yes'" in (tmp_path / "triton.log").read_text()
