"""What Triton's errors mean, for the gateway and for the client that talks to Triton itself."""

from __future__ import annotations

import pytest

from multsd_client.triton_errors import Meaning, TritonError, of_status, of_text

FULL = "8 requests are running and 32 waiting; try again in 42 s"


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("INVALID_ARGUMENT", Meaning.INVALID),
        ("INVALID_ARG", Meaning.INVALID),
        ("UNAVAILABLE", Meaning.NOT_NOW),
        ("NOT_FOUND", Meaning.NOT_NOW),
        ("RESOURCE_EXHAUSTED", Meaning.NOT_NOW),
        ("CANCELLED", Meaning.LATE),
        ("DEADLINE_EXCEEDED", Meaning.LATE),
        ("INTERNAL", Meaning.FAILED),
        ("UNKNOWN", Meaning.FAILED),
    ],
)
def test_a_code_means_the_same_as_a_status_and_before_a_text(code: str, meaning: Meaning) -> None:
    assert of_status(code, "a: b") == of_text(f"{code}: a: b") == TritonError(meaning, "a: b")


@pytest.mark.parametrize(
    "text",
    [
        "Request for unknown model: 'multidiffusion' is not found",
        "Request for unknown model: 'multidiffusion' has no available versions",
        "Request for unknown model: 'multidiffusion' version 1 is not at ready state",
        "Request for model 'multidiffusion' is not ready",
        "Server not ready",
        "Server exiting",
        "[request id: 1] Server is stopping, scheduler for model has stopped accepting new inference requests",
        "model 'multidiffusion' was unloaded",
        "Exceeds maximum queue size",
        "Request timeout expired",
        "Stub process 'multidiffusion_0_0' is not healthy.",
    ],
)
def test_what_triton_says_without_a_code_of_a_model_that_cannot_answer_now(text: str) -> None:
    assert of_text(text) == TritonError(Meaning.NOT_NOW, text)


def test_a_network_that_cannot_answer_now_has_a_code_that_tells_nothing() -> None:
    text = "unet: Failed for execute the inference request. Model 'unet' is not ready."
    assert of_text(f"INTERNAL: {text}") == TritonError(Meaning.NOT_NOW, text)


@pytest.mark.parametrize("found", ["unloaded", "is not ready", "maximum queue size", "unknown model"])
@pytest.mark.parametrize(("code", "meaning"), [("INVALID_ARG", Meaning.INVALID), ("CANCELLED", Meaning.LATE)])
def test_what_a_request_is_quoted_with_does_not_change_what_its_refusal_means(
    code: str, meaning: Meaning, found: str
) -> None:
    text = f"scheduler: expected one of ddim, euler, found '{found}'"
    assert of_text(f"{code}: {text}") == TritonError(meaning, text)


def test_a_process_that_is_dead_may_have_any_status() -> None:
    text = "Stub process 'multidiffusion_0_0' is not healthy."
    assert of_status("INTERNAL", text).meaning is of_text(f"INTERNAL: {text}").meaning is Meaning.NOT_NOW


def test_a_full_queue_says_when_to_come_again() -> None:
    assert of_text(f"UNAVAILABLE: {FULL}") == TritonError(Meaning.NOT_NOW, FULL, retry_after=42)
    assert of_text(f"INTERNAL: {FULL}").retry_after is None


def test_a_text_of_several_lines_keeps_them_behind_its_code() -> None:
    assert of_text("INTERNAL: unet: out of memory\n\nAt:\n") == TritonError(
        Meaning.FAILED, "unet: out of memory\n\nAt:\n"
    )
