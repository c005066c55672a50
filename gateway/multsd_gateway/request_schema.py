"""The request's JSON schema, with the limits that the settings give: what OpenAPI shows. `limits` checks them."""

from __future__ import annotations

from typing import Any

from multsd_client.retries import SHORTEST_DEADLINE_S
from multsd_gateway import limits, readers
from multsd_gateway.capabilities import SAMPLERS
from multsd_gateway.schema import MultsdRequest
from multsd_gateway.settings import Settings

# 8x8 pixels, white in the middle quarter.
MASK = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAAGElEQVR42mNgYGBgsGFiYGJgYmBgYGAAAALUAEMQ6XlWAAAAAElFTkSuQmCC"

BOX_EXAMPLE = {"box": [128, 128, 384, 384]}

EXAMPLES: dict[str, dict[str, Any]] = {
    "seed": {
        "summary": "The original Flask API's request",
        "value": {
            "bg_prompt": "a beach at noon, photo",
            "bg_nprompt": "blurry, text",
            "fg_prompt": ["a Husky dog"],
            "fg_nprompt": ["cartoon, drawing"],
            "width": "512",
            "height": "512",
            "ddim_steps": "35",
            "bootstrapping": "20",
            "seed": "22312",
            "masks": [MASK],
        },
    },
    "shapes": {
        "summary": "Shapes instead of images",
        "value": {
            "bg_prompt": "a beach at noon, photo",
            "fg_prompt": ["a Husky dog", "a red ball"],
            "fg_nprompt": ["cartoon"],
            "masks": [BOX_EXAMPLE, {"polygon": [[400, 400], [480, 400], [440, 480]]}],
        },
    },
    "text": {"summary": "No region", "value": {"bg_prompt": "a beach at noon, photo"}},
}


def request_schema(settings: Settings) -> dict[str, Any]:
    """The schema of the body of POST /multsd."""
    properties = {**_texts_and_masks(settings), **_sampling(settings), **_delivery(settings)}
    for name, field in MultsdRequest.model_fields.items():
        if not field.is_required() and field.default is not None:
            default = limits.defaults(settings).get(name, field.default)
            properties[name]["default"] = list(default) if isinstance(default, tuple) else default
    return {
        "title": "MultsdRequest",
        "type": "object",
        "description": MultsdRequest.__doc__,
        "properties": properties,
        "required": ["bg_prompt"],
        "additionalProperties": True,
    }


def _texts_and_masks(settings: Settings) -> dict[str, dict[str, Any]]:
    most = settings.max_prompt_bytes
    regions = {"maxItems": settings.max_regions}
    text = {"type": "string", "maxLength": most}
    return {
        "bg_prompt": _field(f"Prompt of the background, at most {most} bytes.", "a beach at noon, photo", schema=text),
        "bg_nprompt": _optional("What the background should not show.", "blurry, text", schema=text),
        "fg_prompt": _optional(
            "One prompt per mask; none is plain text-to-image.",
            ["a Husky dog"],
            schema={"type": "array", "items": text, **regions},
        ),
        "fg_nprompt": _optional(
            "One negative prompt per mask, or one for all masks; left out, bg_nprompt holds for all.",
            ["cartoon, drawing"],
            schema={"type": "array", "items": text, **regions},
        ),
        "masks": _optional(
            "One per fg_prompt: an image or a shape.",
            [BOX_EXAMPLE],
            schema={"type": "array", "items": _mask(settings), **regions},
        ),
    }


def _sampling(settings: Settings) -> dict[str, dict[str, Any]]:
    return {
        "width": _side("Pixels, any value within the limits; width * height is limited too.", settings),
        "height": _side("Pixels, any value within the limits; width * height is limited too.", settings),
        "ddim_steps": _number("Sampling steps, of whatever scheduler.", 35, 1, settings.max_steps),
        "bootstrapping": _number(
            "In how many of the first steps each region is painted on plain grounds of its own; 0 for none.",
            20,
            0,
            limits.MAX_BOOTSTRAPPING,
        ),
        "seed": _number("Left out, one is drawn and told in the reply.", 22312, 0, limits.MAX_SEED),
        "guidance_scale": _number(
            "Classifier-free guidance; 1 for none. Left out: 7.5.", 7.5, 0, limits.MAX_GUIDANCE, kind="number"
        ),
        "scheduler": _optional(
            f"The sampler: {', '.join(SAMPLERS)}, where the served model has no others (GET /limits). Left out: ddim.",
            *SAMPLERS,
            schema={"type": "string", "maxLength": limits.MAX_NAME},
        ),
        "view_stride": _number(
            "Latent cells (of 8 pixels) between neighbouring views. Left out: the checkpoint's.",
            8,
            1,
            limits.MAX_STRIDE,
        ),
    }


def _delivery(settings: Settings) -> dict[str, dict[str, Any]]:
    return {
        "output_format": _optional(
            "The picture's format.", "jpeg", schema={"type": "string", "enum": list(limits.FORMATS)}
        ),
        "quality": _number("Of JPEG and WebP. Left out: 95.", 90, 1, limits.MAX_QUALITY),
        "preview_every": _number(
            "A preview every so many steps, of the stream; 0 for none. A warning where the model makes none.",
            10,
            0,
            settings.max_steps,
        ),
        "deadline_s": _number(
            "Seconds from the request's arrival, after which nobody wants the picture: 504.",
            30,
            SHORTEST_DEADLINE_S,
            settings.request_seconds,
            kind="number",
        ),
    }


def _field(description: str, *examples: Any, schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "description": description, "examples": list(examples)}


def _optional(description: str, *examples: Any, schema: dict[str, Any]) -> dict[str, Any]:
    return _field(description, *examples, schema={"anyOf": [schema, {"type": "null"}]})


def _number(description: str, example: float, low: float, high: float, *, kind: str = "integer") -> dict[str, Any]:
    pattern = r"^\s*[+-]?[0-9]{1,20}\s*$" if kind == "integer" else r"^\s*[+-]?[0-9]{1,20}(\.[0-9]{1,20})?\s*$"
    return _field(
        f"{description} From {low} to {high}.",
        example,
        schema={
            "anyOf": [
                {"type": kind, "minimum": low, "maximum": high},
                {"type": "string", "pattern": pattern, "description": f"The {kind} in digits."},
                {"type": "null"},
            ]
        },
    )


def _side(description: str, settings: Settings) -> dict[str, Any]:
    return _number(description, 512, settings.min_side, settings.max_side)


def _mask(settings: Settings) -> dict[str, Any]:
    pixel = {"type": "integer", "minimum": 0, "maximum": readers.FARTHEST}
    coordinate = {"type": "number", "minimum": -readers.FARTHEST, "maximum": readers.FARTHEST}
    return {
        "oneOf": [
            {
                "type": "string",
                "title": "Image",
                "description": (
                    "An image as base64 or a data: URL: PNG, JPEG, WebP, GIF or BMP, not animated, of at most "
                    f"{settings.max_image_pixels} pixels. A pixel is inside where its brightest colour channel, times "
                    "its alpha, is at least 128 of 255. An image of another size is stretched to the picture's."
                ),
                "examples": [MASK],
            },
            _shape(
                "Box",
                "Pixels x0 <= x < x1 and y0 <= y < y1, cut at the picture's edges.",
                {"box": {"type": "array", "items": pixel, "minItems": 4, "maxItems": 4}},
                BOX_EXAMPLE,
            ),
            _shape(
                "Polygon",
                "Points (x, y) in pixels; a pixel is inside where its centre is, by the even-odd rule.",
                {
                    "polygon": {
                        "type": "array",
                        "items": {"type": "array", "items": coordinate, "minItems": 2, "maxItems": 2},
                        "minItems": 3,
                        "maxItems": settings.max_polygon_points,
                    }
                },
                {"polygon": [[128, 128], [384, 128], [256.5, 384]]},
            ),
            _shape(
                "RunLengths",
                "COCO's uncompressed run lengths, but along rows: size is [height, width]; counts are pixels "
                "outside, inside, outside and so on, the first may be 0, height * width together.",
                {
                    "size": {"type": "array", "items": {**pixel, "minimum": 1}, "minItems": 2, "maxItems": 2},
                    "counts": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                },
                {"size": [2, 4], "counts": [1, 2, 2, 3]},
            ),
        ]
    }


def _shape(title: str, description: str, properties: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "title": title,
        "description": description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        "examples": [example],
    }
