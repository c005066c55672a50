"""A `multidiffusion` that takes a fixed time: the public contract, and no networks behind it.

Paints grey with the seed in every pixel's red. Runs inside the real Triton, in place of the orchestrator.
While there is a file `fail` beside it, it fails every request at once, as on a GPU whose context is lost, and adds a
byte to the file.
"""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from background import Background

FAIL = Path(__file__).with_name("fail")


class TritonPythonModel:
    """Answers as many requests at once as come; parameter `seconds`: how long each takes."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the time that a request takes from the model's configuration."""
        self.seconds = float(json.loads(args["model_config"])["parameters"]["seconds"]["string_value"])
        self.background = Background(on_error=lambda error: pb_utils.Logger.log_error(repr(error)))

    def execute(self, requests: list[Any]) -> None:
        """Have every request answered."""
        self.background.begin(self._answer_all(requests))

    def finalize(self) -> None:
        """End the thread."""
        self.background.close()

    async def _answer_all(self, requests: list[Any]) -> None:
        await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        if FAIL.exists():
            with FAIL.open("ab") as file:
                file.write(b".")
            error = pb_utils.TritonError("unet: an illegal memory access was encountered")
            sender.send(pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        steps = int(scalar(request, "num_inference_steps", 50))
        end = time.monotonic() + self.seconds
        for step in range(1, steps + 1) if scalar(request, "progress", False) else ():
            await asyncio.sleep(max(0.0, self.seconds / steps))
            if sender.is_cancelled():
                break
            progress = pb_utils.Tensor("progress_steps", np.array([step, steps], np.int32))
            sender.send(pb_utils.InferenceResponse([progress]))
        while (left := end - time.monotonic()) > 0 and not sender.is_cancelled():  # noqa: ASYNC110 - only polls tell
            await asyncio.sleep(min(left, 0.05))
        if sender.is_cancelled():
            error = pb_utils.TritonError("cancelled by the client", pb_utils.TritonError.CANCELLED)
            response = pb_utils.InferenceResponse(error=error)
        else:
            response = picture(request, steps)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def picture(request: Any, steps: int) -> Any:
    """The final response."""
    height, width = int(scalar(request, "height", 0)), int(scalar(request, "width", 0))
    seed = int(scalar(request, "seed", 0))
    image = np.full((height, width, 3), 128, np.uint8)
    image[..., 0] = seed % 256
    report = {
        "parameters": {
            "height": height,
            "width": width,
            "num_inference_steps": steps,
            "bootstrapping": int(scalar(request, "bootstrapping", 20)),
            "guidance_scale": float(scalar(request, "guidance_scale", 7.5)),
            "seed": seed,
            "scheduler": bytes(scalar(request, "scheduler", b"ddim")).decode(),
            "view_stride": int(scalar(request, "view_stride", 8)),
            "regions": len(pb_utils.get_input_tensor_by_name(request, "prompt").as_numpy()) - 1,
        },
        "unet_rows": 0,
        "unet_rows_reference": 0,
        "seconds": {"total": 0.0},
        "checkpoint": {"name": "stand-in", "digest": "sha256:00"},
    }
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("image", image),
            pb_utils.Tensor("warnings", np.array([], np.object_)),
            pb_utils.Tensor("report", np.array([json.dumps(report).encode()], np.object_)),
        ]
    )


def scalar(request: Any, name: str, default: Any) -> Any:
    """The one value of an input, or the default where it was left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1)[0]
