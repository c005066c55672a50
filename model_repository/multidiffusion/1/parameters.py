"""What a request asks for: from named arrays to checked parameters.

R regions, region 0 is the background; height and width in pixels.
"""

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from errors import InvalidRequestError
from regions import make_canvas
from schedulers import DEFAULT_SAMPLER
from views import offsets

MIN_SIDE = 64  # pixels; below it a picture is smaller than anything the checkpoint has seen
MAX_GUIDANCE_SCALE = 100.0

Arrays = Mapping[str, "npt.NDArray[Any] | None"]


class Limits(NamedTuple):
    """What one deployment accepts; read from the model's parameters in config.pbtxt."""

    max_pixels: int  # height * width
    max_regions: int  # the background counted
    max_mask_pixels: int  # height * width * masks
    max_steps: int
    max_prompt_bytes: int  # of each prompt, UTF-8
    max_running: int  # requests painted at a time
    max_waiting: int  # requests that wait for one of those places; one more is refused
    max_waiting_rows: int  # UNet rows, by an upper bound, of all that wait


@dataclass(frozen=True)
class Parameters:
    """A checked request. Field names are those of the tensor contract."""

    prompt: tuple[str, ...]  # (R)
    negative_prompt: tuple[str, ...]  # (R)
    masks: npt.NDArray[np.uint8 | np.bool_]  # (R - 1, height, width), as they came: non-zero inside the region
    height: int
    width: int
    num_inference_steps: int
    bootstrapping: int
    guidance_scale: float
    seed: int
    scheduler: str
    view_stride: int  # latent cells
    preview_every: int = 0  # steps; 0: no previews
    deadline_s: float = math.inf  # from the request's arrival
    progress: bool = False
    return_latents: bool = False
    warnings: tuple[tuple[str, str], ...] = ()  # (field, message): what was taken for something else

    @property
    def regions(self) -> int:
        """How many regions there are, the background counted."""
        return len(self.prompt)

    def summary(self) -> dict[str, Any]:
        """The values that a picture depends on, without texts and masks."""
        left_out = {
            *("prompt", "negative_prompt", "masks"),
            *("preview_every", "deadline_s", "progress", "return_latents", "warnings"),
        }
        kept = {name: value for name, value in vars(self).items() if name not in left_out}
        return kept | {"regions": self.regions}


def parse_parameters(arrays: Arrays, *, limits: Limits, window: int, view_stride: int) -> Parameters:
    """Check a request's arrays (None: left out) against the contract and the deployment's limits.

    view_stride: the checkpoint's own, in latent cells.

    Raises InvalidRequestError naming field, expected and found.
    """
    prompt = _texts(arrays, "prompt", limits)
    if not prompt:
        raise InvalidRequestError("prompt", f"expected 1 to {limits.max_regions} regions, found 0")
    height, width = _size(arrays, limits)
    negative_prompt = _negatives(arrays, limits, regions=len(prompt))
    return Parameters(
        prompt=prompt,
        negative_prompt=negative_prompt,
        masks=_masks(arrays, limits, regions=len(prompt), height=height, width=width),
        height=height,
        width=width,
        num_inference_steps=_steps(arrays, "num_inference_steps", 1, limits, default=50),
        bootstrapping=_steps(arrays, "bootstrapping", 0, limits, default=20),
        guidance_scale=_guidance_scale(arrays),
        seed=int(_scalar(arrays, "seed", secrets.randbits(32))),
        scheduler=(_texts(arrays, "scheduler", limits) or (DEFAULT_SAMPLER,))[0],
        view_stride=_integer(arrays, "view_stride", 1, window, default=view_stride),
        preview_every=_steps(arrays, "preview_every", 0, limits, default=0),
        deadline_s=_deadline(arrays),
        progress=bool(_scalar(arrays, "progress", False)),
        return_latents=bool(_scalar(arrays, "return_latents", False)),
        warnings=tuple(_guidance_warnings(arrays, negative_prompt)),
    )


def count_views(parameters: Parameters, *, window: int, cell: int) -> int:
    """Windows that cover a request's canvas; window in latent cells, cell in pixels."""
    canvas = make_canvas(parameters.height, parameters.width, window=window, cell=cell)
    rows, columns = (offsets(side, window, parameters.view_stride) for side in (canvas.height, canvas.width))
    return len(rows) * len(columns)


def most_rows(parameters: Parameters, *, window: int, cell: int) -> int:
    """An upper bound of the UNet rows that a request takes: no mask is looked at."""
    rows_a_pair = 1 if parameters.guidance_scale == 1 else 2
    views = count_views(parameters, window=window, cell=cell)
    return views * parameters.regions * rows_a_pair * parameters.num_inference_steps


def _scalar(arrays: Arrays, field: str, default: Any) -> Any:
    array = arrays.get(field)
    return default if array is None else array.reshape(-1)[0]


def _integer(arrays: Arrays, field: str, low: int, high: int, *, default: int | None = None) -> int:
    value = _scalar(arrays, field, default)
    if value is None:
        raise InvalidRequestError(field, f"expected {low} to {high}, found nothing")
    if not low <= value <= high:
        raise InvalidRequestError(field, f"expected {low} to {high}, found {value}")
    return int(value)


def _steps(arrays: Arrays, field: str, low: int, limits: Limits, *, default: int) -> int:
    return _integer(arrays, field, low, limits.max_steps, default=min(default, limits.max_steps))


def _size(arrays: Arrays, limits: Limits) -> tuple[int, int]:
    longest = limits.max_pixels // MIN_SIDE
    height, width = (_integer(arrays, side, MIN_SIDE, longest) for side in ("height", "width"))
    if height * width > limits.max_pixels:
        raise InvalidRequestError(
            "height", f"expected at most {limits.max_pixels} pixels in all, found {height} x {width}"
        )
    return height, width


def _deadline(arrays: Arrays) -> float:
    """Infinite where none was set."""
    seconds = float(_scalar(arrays, "deadline_s", math.inf))
    if arrays.get("deadline_s") is not None and not (math.isfinite(seconds) and seconds > 0):
        raise InvalidRequestError("deadline_s", f"expected a finite number above 0, found {seconds}")
    return seconds


def _guidance_scale(arrays: Arrays) -> float:
    """1 or less means: the conditional prediction alone, as in diffusers' pipelines."""
    return max(_asked_guidance_scale(arrays), 1.0)


def _asked_guidance_scale(arrays: Arrays) -> float:
    value = float(str(_scalar(arrays, "guidance_scale", 7.5)))  # 7.3 as it was written, not as float32 widens it
    if not (math.isfinite(value) and 0 <= value <= MAX_GUIDANCE_SCALE):
        raise InvalidRequestError("guidance_scale", f"expected 0 to {MAX_GUIDANCE_SCALE:g}, found {value}")
    return value


def _guidance_warnings(arrays: Arrays, negative_prompt: Sequence[str]) -> Iterator[tuple[str, str]]:
    asked = _asked_guidance_scale(arrays)
    if asked < 1:
        yield "guidance_scale", f"{asked:.9g} is painted as 1, without guidance"
    if asked <= 1 and any(text.strip() for text in negative_prompt):
        yield "guidance_scale", "without guidance (1 or less) negative prompts have no effect"


def _texts(arrays: Arrays, field: str, limits: Limits) -> tuple[str, ...]:
    array = arrays.get(field)
    values: Sequence[bytes] = [] if array is None else array.reshape(-1).tolist()
    if len(values) > limits.max_regions:  # counted before any is decoded
        raise InvalidRequestError(field, f"expected 1 to {limits.max_regions} regions, found {len(values)}")
    return tuple(_text(value, f"{field}[{index}]", limits) for index, value in enumerate(values))


def _text(value: bytes, field: str, limits: Limits) -> str:
    if len(value) > limits.max_prompt_bytes:
        raise InvalidRequestError(field, f"expected at most {limits.max_prompt_bytes} bytes, found {len(value)}")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            field, f"expected UTF-8, found byte 0x{value[error.start]:02x} at position {error.start}"
        ) from error


def _negatives(arrays: Arrays, limits: Limits, *, regions: int) -> tuple[str, ...]:
    negatives = _texts(arrays, "negative_prompt", limits) or ("",)
    if len(negatives) == 1:
        return negatives * regions
    if len(negatives) != regions:
        raise InvalidRequestError(
            "negative_prompt", f"expected {regions} (one per region) or 1 for all, found {len(negatives)}"
        )
    return negatives


def _masks(
    arrays: Arrays, limits: Limits, *, regions: int, height: int, width: int
) -> npt.NDArray[np.uint8 | np.bool_]:
    masks = arrays.get("masks")
    expected = (regions - 1, height, width)
    if math.prod(expected) > limits.max_mask_pixels:
        raise InvalidRequestError(
            "masks", f"expected at most {limits.max_mask_pixels} pixels in all, found {' x '.join(map(str, expected))}"
        )
    if masks is None and regions == 1:
        return np.zeros(expected, dtype=np.bool_)
    found = "none" if masks is None else masks.shape
    if masks is None or masks.shape != expected:
        raise InvalidRequestError(
            "masks", f"expected shape {expected} (one per prompt after the first, height, width), found {found}"
        )
    return masks
