"""Names of the model's tensors and of the JSON."""

import pytest

from multsd_client.errors import FieldNote
from multsd_client.fields import json_field, json_parameters, note_of_message
from multsd_gateway.schema import MultsdRequest


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("prompt[0]", "bg_prompt"),
        ("prompt[3]", "fg_prompt[2]"),
        ("prompt", "fg_prompt"),
        ("negative_prompt[0]", "bg_nprompt"),
        ("negative_prompt[1]", "fg_nprompt[0]"),
        ("negative_prompt", "fg_nprompt"),
        ("masks[1]", "masks[1]"),
        ("num_inference_steps", "ddim_steps"),
        ("seed", "seed"),
        ("something else", "something else"),
    ],
)
def test_tensor_names_become_the_jsons(tensor: str, expected: str) -> None:
    assert json_field(tensor) == expected
    assert expected.partition("[")[0] in {*MultsdRequest.model_fields, "something else"}


def test_a_models_message_is_taken_apart() -> None:
    assert note_of_message("num_inference_steps: expected 1 to 50, found 60") == FieldNote(
        "ddim_steps", "expected 1 to 50, found 60"
    )
    assert note_of_message("no field here") == FieldNote("body", "no field here")


def test_parameters_come_back_under_the_names_of_the_request() -> None:
    assert json_parameters({"num_inference_steps": 3, "seed": 1}) == {"ddim_steps": 3, "seed": 1}
