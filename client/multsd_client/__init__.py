"""Client of the multsd API: paint a picture from a background prompt and any number of regions.

>>> from multsd_client import Box, Client, GenerationRequest, Region
>>> with Client("http://127.0.0.1:5000") as client:                                     # doctest: +SKIP
...     result = client.generate(
...         GenerationRequest(prompt="a beach", regions=(Region(Box(128, 128, 384, 384), "a husky dog"),))
...     )
>>> Path("husky.jpg").write_bytes(result.image)                                         # doctest: +SKIP
"""

from multsd_client.client import AsyncClient, Client
from multsd_client.errors import (
    DeadlineExceededError,
    FieldNote,
    GenerationFailedError,
    InvalidRequestError,
    MultsdError,
    ProtocolError,
    ServiceUnavailableError,
    UnauthorizedError,
)
from multsd_client.request import GenerationRequest, Region
from multsd_client.result import GenerationResult
from multsd_client.shapes import Box, Polygon, RunLengths
from multsd_client.tensors import Preview, Progress, Queued

__all__ = [
    "AsyncClient",
    "Box",
    "Client",
    "DeadlineExceededError",
    "FieldNote",
    "GenerationFailedError",
    "GenerationRequest",
    "GenerationResult",
    "InvalidRequestError",
    "MultsdError",
    "Polygon",
    "Preview",
    "Progress",
    "ProtocolError",
    "Queued",
    "Region",
    "RunLengths",
    "ServiceUnavailableError",
    "UnauthorizedError",
]
