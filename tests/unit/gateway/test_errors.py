"""The table of errors."""

import pytest

from multsd_client.errors import FieldNote
from multsd_gateway import errors
from multsd_gateway.errors import ANSWERS, GatewayError, InvalidRequestError, answer_for, error_body


def test_every_exception_is_in_the_table() -> None:
    direct = set(GatewayError.__subclasses__())
    assert set(ANSWERS) == direct.union(*(kind.__subclasses__() for kind in direct))
    assert all(issubclass(kind, GatewayError) for kind in ANSWERS)


@pytest.mark.parametrize("error", [RuntimeError("x"), GatewayError("x"), ValueError("x")])
def test_what_is_not_in_the_table_is_an_internal_error(error: Exception) -> None:
    assert answer_for(error) == errors.INTERNAL
    assert error_body(error, request_id="7") == {"message": "internal error", "request_id": "7"}


def test_refusals_to_be_repeated_say_when() -> None:
    assert all(answer.retry_after for answer in ANSWERS.values() if answer.status in (429, 503))


def test_an_invalid_requests_message_sums_up_its_first_faults() -> None:
    notes = [FieldNote(f"f{number}", "bad") for number in range(5)]

    body = error_body(InvalidRequestError(notes), request_id="7")

    assert body["message"] == "f0: bad; f1: bad; f2: bad"
    assert len(body["errors"]) == 5
