"""The ASGI application: its routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from multsd_client.tensors import Progress
from multsd_gateway import documentation
from multsd_gateway.body import read_body
from multsd_gateway.connection import EventSender, EventStream, while_connected
from multsd_gateway.errors import ClientGoneError, GatewayError, ModelUnavailableError
from multsd_gateway.inference import Painter, TritonPainter
from multsd_gateway.logs import request_id_var
from multsd_gateway.middleware import RequestIds
from multsd_gateway.pictures import wanted_format
from multsd_gateway.replies import error_event, handle_gateway_error, handle_http_error, picture_reply
from multsd_gateway.service import Order, Painting, Service
from multsd_gateway.settings import Settings
from multsd_gateway.uploads import Upload

READY_SECONDS = 2.0
METRICS_SECONDS = 2.0


class Gateway:
    """The endpoints over one painter."""

    def __init__(self, settings: Settings, painter: Painter) -> None:
        self._settings = settings
        self._painter = painter
        self._service = Service(settings, painter)

    async def multsd(self, request: Request) -> Response:
        """Answer with the whole picture."""
        wanted = wanted_format(request.headers.get("accept", "*/*"))
        order = Order(request_id=request_id_var.get(), strict=_strict(request), picture_format=wanted.name)
        painting = await self._paint(request, order)
        return picture_reply(painting) if wanted.as_picture else JSONResponse(painting.to_json())

    async def stream(self, request: Request) -> Response:
        """Answer with events while the picture is painted."""

        async def work(sender: EventSender) -> None:
            async def on_progress(progress: Progress) -> None:
                data = {"step": progress.step, "num_inference_steps": progress.num_inference_steps}
                await sender.event("progress", data)

            order = Order(
                request_id=request_id_var.get(),
                strict=_strict(request),
                on_start=sender.start,
                on_progress=on_progress,
            )
            painting = await self._paint(request, order)
            await sender.event("result", painting.to_json())

        return EventStream(work, on_error=error_event)

    async def healthz(self) -> Response:
        """The process answers."""
        return JSONResponse({"alive": True})

    async def readyz(self) -> Response:
        """Every model that a picture needs is ready."""
        models = self._settings.models
        try:
            async with asyncio.timeout(READY_SECONDS):
                missing = await self._painter.missing(models)
        except TimeoutError:
            missing = list(models)
        if missing:
            body = {"ready": False, "message": f"not ready: {', '.join(missing)}", "missing": missing}
            return JSONResponse(body, status_code=503)
        return JSONResponse({"ready": True, "models": list(models)})

    async def metrics(self) -> Response:
        """Triton's metrics, as they are."""
        try:
            async with httpx.AsyncClient(timeout=METRICS_SECONDS, trust_env=False) as client:
                answer = await client.get(self._settings.triton_metrics_url)
        except httpx.HTTPError as error:
            raise ModelUnavailableError(f"no metrics from Triton: {type(error).__name__}") from error
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    async def _paint(self, request: Request, order: Order) -> Painting:
        """A request takes its place only when all of it is there: a slow body keeps nobody out."""
        with self._service.uploads.receive() as upload:
            await self._read(request, upload)
            with self._service.admission.enter():
                return await while_connected(request.receive, self._service.paint(upload, order))

    async def _read(self, request: Request, upload: Upload) -> None:
        try:
            await read_body(
                request.stream(),
                upload,
                declared=request.headers.get("content-length"),
                limit=self._settings.max_body_bytes,
                seconds=self._settings.body_seconds,
            )
        except ClientDisconnect:
            raise ClientGoneError("the client went away before its request was complete") from None


def create_app(settings: Settings, painter: Painter | None = None) -> FastAPI:
    """The gateway as an ASGI application. painter: what paints instead of the Triton that the settings name."""
    used = painter or TritonPainter(settings.triton_url, silence_seconds=settings.triton_silence_seconds)
    gateway = Gateway(settings, used)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await used.close()

    app = FastAPI(title="multsd", version="0.1.0", description=documentation.API, lifespan=lifespan)
    app.add_middleware(RequestIds)
    app.add_exception_handler(GatewayError, handle_gateway_error)
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_api_route("/multsd", gateway.multsd, methods=["POST"], **documentation.MULTSD)
    app.add_api_route("/multsd/stream", gateway.stream, methods=["POST"], **documentation.STREAM)
    app.add_api_route("/healthz", gateway.healthz, methods=["GET"], **documentation.HEALTHZ)
    app.add_api_route("/metrics", gateway.metrics, methods=["GET"], **documentation.METRICS)
    app.add_api_route("/readyz", gateway.readyz, methods=["GET"], **documentation.READYZ)
    return app


def _strict(request: Request) -> bool:
    return request.query_params.get("strict", "").lower() in ("1", "true")
