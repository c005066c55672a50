"""Replies of the endpoints."""

from __future__ import annotations

import base64
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multsd_client.errors import FieldNote
from multsd_client.tensors import Preview, Progress, Queued
from multsd_gateway import documentation
from multsd_gateway.app import PATHS, create_app
from multsd_gateway.capabilities import SAMPLERS
from multsd_gateway.errors import ModelUnavailableError
from multsd_gateway.inference import ModelDescription
from multsd_gateway.replies import header_warnings
from multsd_gateway.schema import MultsdRequest
from tests.unit.gateway.fakes import FakePainter, ask, mask_base64, post, seed_request, settings


def test_the_seeds_request_gives_a_jpeg_and_all_that_made_it() -> None:
    painter = FakePainter()

    reply = post(seed_request(), painter=painter)

    assert reply.status_code == 200
    body = reply.json()
    image = Image.open(io.BytesIO(base64.b64decode(body.pop("image"))))
    assert (image.format, image.size) == ("JPEG", (64, 64))
    assert body == {
        "media_type": "image/jpeg",
        "seed": 22312,
        "warnings": [],
        "parameters": {
            "height": 64,
            "width": 64,
            "ddim_steps": 35,
            "bootstrapping": 20,
            "guidance_scale": 7.5,
            "seed": 22312,
            "scheduler": "ddim",
            "view_stride": 8,
            "regions": 1,
        },
        "timings": {"total": 1.5, "unet": 1.0},
        "unet_rows": 125,
        "unet_rows_reference": 140,
        "checkpoint": {"name": "fake", "digest": "sha256:00"},
        "request_id": reply.headers["X-Request-Id"],
    }


def test_the_model_is_asked_in_its_own_terms() -> None:
    painter = FakePainter()

    post(seed_request(width=" 64 ", height=64.0, guidance_scale="2.5", scheduler="euler"), painter=painter)

    [request] = painter.requests
    assert request.prompts == ("a beach", "a Husky dog")
    assert request.negative_prompts == ("blurry", "cartoon")
    assert (request.width, request.height, request.num_inference_steps, request.bootstrapping) == (64, 64, 35, 20)
    assert (request.seed, request.guidance_scale, request.scheduler, request.view_stride) == (22312, 2.5, "euler", None)
    assert request.masks is not None
    assert request.masks.shape == (1, 64, 64)
    assert request.masks[0, :, :32].all()
    assert not request.masks[0, :, 32:].any()


def test_raw_line_breaks_in_strings_are_read() -> None:
    text = json.dumps(seed_request(bg_nprompt="cgi, 3d@drawing")).replace("@", "\n")
    painter = FakePainter()

    assert post(text.encode(), painter=painter).status_code == 200
    assert painter.requests[0].negative_prompts[0] == "cgi, 3d\ndrawing"


def test_no_region_is_plain_text_to_image() -> None:
    painter = FakePainter()

    assert post({"bg_prompt": "a beach"}, painter=painter).status_code == 200
    [request] = painter.requests
    assert (request.prompts, request.negative_prompts, request.masks) == (("a beach",), ("",), None)
    assert (request.width, request.height, request.num_inference_steps) == (512, 512, 50)


def test_a_default_is_never_above_its_limit() -> None:
    painter = FakePainter()

    assert post({"bg_prompt": "a beach"}, painter=painter, max_steps=9, max_side=256).status_code == 200
    [request] = painter.requests
    assert (request.width, request.height, request.num_inference_steps) == (256, 256, 9)


def test_null_is_the_same_as_left_out() -> None:
    painter = FakePainter()

    assert post({"bg_prompt": "a", "width": None, "masks": None, "seed": None}, painter=painter).status_code == 200
    assert painter.requests[0].width == 512


@pytest.mark.parametrize(
    ("given", "expected"),
    [(["n"], ("bg", "n", "n")), (["m", "n"], ("bg", "m", "n")), ([], ("bg", "bg", "bg"))],
)
def test_one_negative_prompt_holds_for_all_and_none_is_the_backgrounds(
    given: list[str], expected: tuple[str, ...]
) -> None:
    painter = FakePainter()
    body = seed_request(bg_nprompt="bg", fg_prompt=["a", "b"], fg_nprompt=given, masks=[mask_base64()] * 2)

    post(body, painter=painter)

    assert painter.requests[0].negative_prompts == expected


def test_a_seed_that_is_left_out_is_drawn_and_told() -> None:
    body = {key: value for key, value in seed_request().items() if key != "seed"}
    painter = FakePainter()

    seeds = {post(body, painter=painter).json()["seed"] for _ in range(3)}

    assert len(seeds) == 3
    assert seeds == {request.seed for request in painter.requests}
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_warnings_of_gateway_and_model_come_back_in_the_jsons_names() -> None:
    painter = FakePainter(
        warnings=(
            {"field": "prompt[0]", "message": "cut"},
            {"field": "prompt[1]", "message": "cut"},
            {"field": "num_inference_steps", "message": "few"},
        )
    )

    reply = post(seed_request(sede=1, masks=[mask_base64(32, 64)]), painter=painter)

    assert reply.json()["warnings"] == [
        {"field": "sede", "message": 'unknown field, not used; did you mean "seed"?'},
        {"field": "masks[0]", "message": "stretched from 32x64 to 64x64, other proportions"},
        {"field": "bg_prompt", "message": "cut"},
        {"field": "fg_prompt[0]", "message": "cut"},
        {"field": "ddim_steps", "message": "few"},
    ]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/webp, */*;q=0.1", "image/webp"),
        ("image/*", "image/jpeg"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("image/png;q=0.5, application/json", "application/json"),
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        ("image/png;q=x", "application/json"),
    ],
)
def test_the_accept_header_chooses_the_reply(accept: str, media_type: str) -> None:
    app = create_app(settings(), FakePainter(warnings=({"field": "prompt[0]", "message": "cut: \u00e4"},)))

    reply = ask(app, "POST", "/multsd", json=seed_request(), headers={"Accept": accept})

    assert reply.headers["content-type"] == media_type
    if media_type != "application/json":
        image = Image.open(io.BytesIO(reply.content))
        assert image.get_format_mimetype() == media_type
        assert reply.headers["X-Multsd-Seed"] == "22312"
        assert json.loads(reply.headers["X-Multsd-Warnings"]) == [{"field": "bg_prompt", "message": "cut: \u00e4"}]


def test_several_accept_headers_are_one_list() -> None:
    headers = [("Accept", "application/json;q=0.5"), ("Accept", "image/png")]

    reply = ask(create_app(settings(), FakePainter()), "POST", "/multsd", json=seed_request(), headers=headers)

    assert reply.headers["content-type"] == "image/png"


@pytest.mark.parametrize(("text", "number"), [("\U0001f600" * 400, 98), ("\u4e2d" * 400, 3), ("a" * 400, 1)])
def test_warnings_in_a_header_are_no_larger_than_clients_take(text: str, number: int) -> None:
    notes = [FieldNote(f"prompt[{index}]", f"cut: {text}") for index in range(number)]
    header = header_warnings(notes)
    assert len(header) <= 2048
    shown = json.loads(header)
    whole = [each for each in shown if each["field"]]
    assert 1 <= len(whole) <= number
    assert all(each["message"].startswith("cut: ") and each["message"][5:] in text for each in whole)
    rest = number - len(whole)
    assert [each["message"] for each in shown if not each["field"]] == ([f"and {rest} more"] if rest else [])


def test_output_format_chooses_the_pictures_format() -> None:
    body = post(seed_request(output_format="png")).json()

    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["image"]))))
    assert body["media_type"] == "image/png"
    assert (pixels == 128).all()


def test_the_stream_tells_progress_and_ends_with_the_same_json() -> None:
    reply = post(seed_request(), path="/multsd/stream")

    assert reply.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in reply.headers
    events = [block.split("\n") for block in reply.text.strip().split("\n\n")]
    assert [event[0] for event in events] == ["event: progress", "event: progress", "event: result"]
    assert json.loads(events[1][1].removeprefix("data: ")) == {"step": 2, "num_inference_steps": 2}
    result = json.loads(events[2][1].removeprefix("data: "))
    plain = post(seed_request()).json()
    assert {**result, "request_id": 0} == {**plain, "request_id": 0}


def test_the_stream_tells_the_place_in_the_queue_and_shows_previews() -> None:
    preview = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    painter = FakePainter(updates=(Queued(3), Queued(0), Progress(1, 2), Preview(preview)))

    reply = post(seed_request(preview_every=1), path="/multsd/stream", painter=painter)

    events = [block.split("\n") for block in reply.text.strip().split("\n\n")]
    names = [event[0].removeprefix("event: ") for event in events]
    data = [json.loads(event[1].removeprefix("data: ")) for event in events]
    assert names == ["queued", "queued", "progress", "preview", "result"]
    assert data[:3] == [{"position": 3}, {"position": 0}, {"step": 1, "num_inference_steps": 2}]
    assert data[3]["media_type"] == "image/png"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data[3]["image"])))) == preview).all()
    assert painter.requests[0].preview_every == 1


def test_previews_that_nobody_would_see_are_not_made() -> None:
    painter = FakePainter()
    reply = post(seed_request(preview_every=1), painter=painter)

    assert [note["field"] for note in reply.json()["warnings"]] == ["preview_every"]
    assert painter.requests[0].preview_every is None


def test_an_error_after_the_streams_start_is_an_event() -> None:
    reply = post(seed_request(), path="/multsd/stream", painter=FakePainter(error=ModelUnavailableError("secret")))

    *_, name, data = reply.text.strip().split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: ")) == {
        "status": 503,
        "message": "the model server is away or full, try again later",
        "request_id": reply.headers["X-Request-Id"],
        "retry_after": 2,
    }


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
@pytest.mark.parametrize("error", [RuntimeError("secret"), KeyError("secret")])
def test_an_internal_error_tells_its_id_and_nothing_else(
    path: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    reply = post(seed_request(), path=path, painter=FakePainter(error=error))

    assert "secret" not in reply.text
    assert "Traceback" not in reply.text
    assert '"message": "internal error"' in reply.text or '"message":"internal error"' in reply.text
    assert reply.status_code == (500 if path == "/multsd" else 200)
    assert reply.headers["X-Request-Id"] in reply.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("offered", "kept"), [("job-7.a_B", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("", False)]
)
def test_a_usable_request_id_is_kept_and_any_other_replaced(offered: str, kept: bool) -> None:
    painter = FakePainter()
    reply = ask(
        create_app(settings(), painter), "POST", "/multsd", json=seed_request(), headers={"X-Request-Id": offered}
    )

    assert (reply.headers["X-Request-Id"] == offered) is kept
    assert painter.request_ids == [reply.headers["X-Request-Id"]] == [reply.json()["request_id"]]


def test_the_log_has_one_line_with_the_id_and_never_a_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="multsd_gateway"):
        post(seed_request(bg_prompt="a secret wish"))
        post(seed_request(bg_prompt="a secret wish", width=1))

    assert "POST /multsd 200" in caplog.text
    assert "refused: width" in caplog.text
    assert "secret" not in caplog.text


def test_no_line_of_the_log_can_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="multsd_gateway"):
        ask(create_app(settings(), FakePainter()), "GET", "/a%0Aforged")
        post(seed_request(**{"b\nforged": 1}), path="/multsd?strict=1")

    assert "GET /a%0Aforged 404" in caplog.text
    assert "refused: b?forged" in caplog.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/multsd", 405)])
def test_unknown_paths_and_methods_answer_in_the_same_shape(method: str, path: str, status: int) -> None:
    reply = ask(create_app(settings(), FakePainter()), method, path)

    assert reply.status_code == status
    assert set(reply.json()) == {"message", "request_id"}


@pytest.mark.parametrize("path", PATHS)
def test_what_answers_get_answers_head(path: str) -> None:
    app = create_app(settings(triton_metrics_url=""), FakePainter())
    get, head, put = (ask(app, method, path) for method in ("GET", "HEAD", "PUT"))

    assert head.status_code == get.status_code
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    posts = path.startswith("/multsd")
    assert head.status_code == (405 if posts else 200)
    assert set(put.headers["Allow"].split(", ")) == ({"POST"} if posts else {"GET", "HEAD"})


def test_head_needs_a_token_where_get_does(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("known-token-of-some-length\n")
    app = create_app(settings(token_file=file), FakePainter())

    assert [ask(app, "HEAD", path).status_code for path in ("/limits", "/healthz")] == [401, 200]


def test_healthz_asks_nobody() -> None:
    app = create_app(settings(), FakePainter(not_ready=["unet"]))

    assert ask(app, "GET", "/healthz").status_code == 200


def test_readyz_is_true_only_when_every_model_is_ready() -> None:
    ready = ask(create_app(settings(), FakePainter()), "GET", "/readyz")
    missing = ask(create_app(settings(), FakePainter(not_ready=["unet"])), "GET", "/readyz")

    assert ready.status_code == 200
    assert missing.status_code == 503
    assert missing.json() == {"ready": False, "message": "not ready: unet", "missing": ["unet"]}


def test_readyz_asks_for_the_text_encoders_that_the_model_names_unless_told_which_models() -> None:
    sdxl = ModelDescription(frozenset(), {"text_encoders": "text_encoder,text_encoder_2"})
    networks = ["text_encoder", "text_encoder_2", "unet", "vae_decoder"]
    broken = FakePainter(description=sdxl, not_ready=["text_encoder_2"])

    ready = ask(create_app(settings(), FakePainter(description=sdxl)), "GET", "/readyz")
    assert ready.json() == {"ready": True, "models": ["multidiffusion", *networks]}
    assert ask(create_app(settings(), broken), "GET", "/readyz").json()["missing"] == ["text_encoder_2"]
    told = ask(create_app(settings(models="multidiffusion,unet"), broken), "GET", "/readyz")
    assert told.json() == {"ready": True, "models": ["multidiffusion", "unet"]}


def test_readyz_does_not_wait_for_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multsd_gateway.app.READY_SECONDS", 0.05)

    reply = ask(create_app(settings(), FakePainter(forever=True)), "GET", "/readyz")

    assert reply.status_code == 503
    assert reply.json()["missing"] == ["multidiffusion", "text_encoder", "unet", "vae_decoder"]


def test_openapi_describes_every_field_and_every_status() -> None:
    document: dict[str, Any] = ask(create_app(settings(), FakePainter()), "GET", "/openapi.json").json()

    operation = document["paths"]["/multsd"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(seed_request()) <= set(schema["properties"])
    assert all("description" in field for field in schema["properties"].values())
    assert schema["properties"].keys() == MultsdRequest.model_fields.keys()
    assert all("examples" in field for field in schema["properties"].values())
    assert {"200", "400", "401", "408", "413", "429", "500", "503", "504"} <= set(operation["responses"])
    errors = [reply for status, reply in operation["responses"].items() if status != "200"]
    assert all(reply["content"]["application/json"]["example"]["message"] for reply in errors)
    assert document["openapi"].startswith("3.1")
    assert "422" not in operation["responses"]


def test_openapi_tells_the_headers_that_are_sent_and_shows_whole_replies() -> None:
    app = create_app(settings(triton_metrics_url=""), FakePainter())
    paths = app.openapi()["paths"]
    replies = [
        reply for each in paths.values() for operation in each.values() for reply in operation["responses"].items()
    ]
    assert all(reply["headers"]["X-Request-Id"]["required"] for _, reply in replies)
    painted = paths["/multsd"]["post"]["responses"]["200"]
    reply = ask(app, "POST", "/multsd", json=seed_request(sede=1), headers={"Accept": "image/png"})
    own = {name for name in map(str.lower, painted["headers"]) if name in reply.headers}
    assert own == {"x-request-id", "server-timing", "x-multsd-seed", "x-multsd-warnings"}
    events = paths["/multsd/stream"]["post"]["responses"]["200"]["headers"]
    assert events.keys() == {"X-Request-Id", "Heartbeat-Seconds"}
    assert "Heartbeat-Seconds" in ask(app, "POST", "/multsd/stream", json=seed_request()).headers
    documentation.PictureReply.model_validate(painted["content"]["application/json"]["example"], strict=True)
    limits = paths["/limits"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    assert limits.keys() == ask(app, "GET", "/limits").json().keys()
    assert limits["checkpoint"].keys() == {"name", "digest", "family"}


def test_openapi_tells_of_head_once_and_not_at_every_path() -> None:
    document = create_app(settings(), FakePainter()).openapi()

    assert "HEAD" in document["info"]["description"]
    assert not any("head" in operations for operations in document["paths"].values())


def test_openapi_names_the_samplers() -> None:
    operation = create_app(settings(), FakePainter()).openapi()["paths"]["/multsd"]["post"]
    scheduler = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]["scheduler"]

    assert scheduler["examples"] == list(SAMPLERS)
    assert all(name in scheduler["description"] for name in SAMPLERS)


def test_openapi_has_an_example_of_every_replys_field_and_every_limit() -> None:
    app = create_app(settings(), FakePainter())
    schemas = app.openapi()["components"]["schemas"]
    fields = {(name, field): about for name, each in schemas.items() for field, about in each["properties"].items()}
    assert [key for key, about in fields.items() if "examples" not in about and "$ref" not in about] == []
    assert fields["LimitsReply", "checkpoint"] == {"$ref": "#/components/schemas/CheckpointNote"}
    for name in ("PictureReply", "ErrorReply", "ReadyReply", "NotReadyReply", "CheckpointNote", "Note"):
        example = {field: about["examples"][0] for field, about in schemas[name]["properties"].items()}
        getattr(documentation, name).model_validate(example, strict=True)
    assert fields["LimitsReply", "limits"]["examples"] == [ask(app, "GET", "/limits").json()["limits"]]


def test_replies_are_what_openapi_says_and_its_example_works() -> None:
    app = create_app(settings(), FakePainter())
    operation = ask(app, "GET", "/openapi.json").json()["paths"]["/multsd"]["post"]
    for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
        reply = ask(app, "POST", "/multsd?strict=1", json=example["value"])

        assert reply.status_code == 200
        assert set(reply.json()) == set(documentation.PictureReply.model_fields)
        documentation.PictureReply.model_validate(reply.json(), strict=True)
    for body, status in ((b"{", 400), (b"x" * 2000, 413)):
        documentation.ErrorReply.model_validate(post(body, max_body_bytes=1000).json(), strict=True)
        assert post(body, max_body_bytes=1000).status_code == status
