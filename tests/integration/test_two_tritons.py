"""Two real Tritons behind one gateway under load: no client notices what happens to either."""

from collections.abc import Iterator

import pytest
import tritonclient.grpc as grpcclient

from tests.integration.requests_and_pictures import request_body
from tests.stand_in.pair import EVENTS, Pair, load, running_pair, wait_for_replies
from tests.stand_in.triton import StandIn

BODY = request_body(64, 64)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two Tritons of the stand-in model behind a gateway with its defaults."""
    with running_pair(tmp_path_factory.mktemp("pair"), seconds=0.3) as running:
        yield running


def answered(triton: StandIn) -> int:
    """Requests that the Triton has answered since its start."""
    with grpcclient.InferenceServerClient(triton.grpc) as client:
        return int(client.get_inference_statistics("multidiffusion").model_stats[0].inference_count)


def test_both_get_about_half_of_the_load(pair: Pair) -> None:
    with load(pair.url, clients=6, body=BODY) as replies:
        wait_for_replies(replies, 20)
        before = [answered(triton) for triton in pair.tritons]
        wait_for_replies(replies, 80)
        counts = [answered(triton) - count for triton, count in zip(pair.tritons, before, strict=True)]

    assert sum(counts) >= 50
    assert min(counts) >= 0.4 * sum(counts)


@pytest.mark.parametrize("name", EVENTS)
def test_no_request_is_lost_and_both_take_load_again(pair: Pair, name: str) -> None:
    with load(pair.url, clients=6, body=BODY) as replies:
        wait_for_replies(replies, 20)
        left_out = EVENTS[name](pair)
        for triton in pair.tritons:
            pair.wait_until_at_work(triton)
        wait_for_replies(replies, 20)

    assert {reply.status for reply in replies} == {200}
    assert left_out < 5
    assert max(reply.seconds for reply in replies) < 15, "nobody waits for one that hangs"
