"""The ASGI application: its routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from multsd_client.tensors import Update
from multsd_gateway import documentation
from multsd_gateway.api_docs import add_docs, read_docs
from multsd_gateway.balancing import BalancedPainter
from multsd_gateway.body import read_body
from multsd_gateway.capabilities import capabilities
from multsd_gateway.connection import EventSender, EventStream, event, while_connected
from multsd_gateway.errors import ClientGoneError, GatewayError, ModelUnavailableError
from multsd_gateway.inference import Painter, needed
from multsd_gateway.limits import TIMEOUT
from multsd_gateway.logs import request_id_var
from multsd_gateway.metrics import METRICS_TYPE, Measured, Metrics, triton_metrics
from multsd_gateway.middleware import REQUEST_ID, RequestIds, ServerErrors
from multsd_gateway.outcome import outcome_of
from multsd_gateway.painting_page import add_page, open_paths, read_page
from multsd_gateway.pictures import wanted_format
from multsd_gateway.rate import RateLimit
from multsd_gateway.replies import (
    error_event,
    handle_gateway_error,
    handle_http_error,
    json_reply,
    picture_reply,
    update_event,
)
from multsd_gateway.security import EXPOSED_HEADERS, Authentication, SecurityHeaders
from multsd_gateway.service import LARGE_PICTURE, Order, Painting, Service
from multsd_gateway.settings import Settings
from multsd_gateway.tokens import read_tokens
from multsd_gateway.triton import connect
from multsd_gateway.uploads import Upload

READY_SECONDS = 2.0
PATHS = ("/", "/multsd", "/multsd/stream", "/limits", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")


class Gateway:
    """The endpoints over one painter."""

    def __init__(self, settings: Settings, painter: Painter, metrics: Metrics) -> None:
        self._settings = settings
        self._painter = painter
        self._metrics = metrics
        self._service = Service(settings, painter)

    async def multsd(self, request: Request) -> Response:
        """Answer with the whole picture."""
        wanted = wanted_format(", ".join(request.headers.getlist("accept")))  # several lines are one list (RFC 9110)
        order = Order(
            request_id=request_id_var.get(),
            strict=_strict(request),
            timeout=request.headers.get(TIMEOUT),
            owner=outcome_of(request.scope).token,
            picture_format=wanted.name,
        )
        painting = await self._paint(request, order)
        reply = picture_reply if wanted.as_picture else json_reply
        return await self._service.in_thread_if_large(lambda: reply(painting), large=is_large(painting))

    async def stream(self, request: Request) -> Response:
        """Answer with events while the picture is painted."""

        async def work(sender: EventSender) -> None:
            async def on_progress(update: Update) -> None:
                await sender.data(update_event(update))

            order = Order(
                request_id=request_id_var.get(),
                strict=_strict(request),
                timeout=request.headers.get(TIMEOUT),
                owner=outcome_of(request.scope).token,
                on_start=sender.start,
                on_progress=on_progress,
            )
            painting = await self._paint(request, order)
            result = await self._service.in_thread_if_large(
                lambda: event("result", painting.to_json()), large=is_large(painting)
            )
            await sender.data(result)

        return EventStream(
            work,
            on_error=error_event,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            write_seconds=self._settings.write_seconds,
        )

    async def healthz(self) -> Response:
        """The process answers."""
        return JSONResponse({"alive": True})

    async def readyz(self) -> Response:
        """Every model that a picture needs is ready."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                missing = await self._painter.missing(self._settings.models)
        except TimeoutError:
            missing = self._models()
        if missing:
            body = {"ready": False, "message": f"not ready: {', '.join(missing)}", "missing": missing}
            return JSONResponse(body, status_code=503)
        return JSONResponse({"ready": True, "models": self._models()})

    def _models(self) -> list[str]:
        return list(self._settings.models or needed(self._painter.descriptions()))

    async def limits(self) -> Response:
        """What this deployment accepts, and with which checkpoint it paints."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                model = await self._painter.describe()
        except TimeoutError:
            raise ModelUnavailableError("no description of the model in time") from None
        told = capabilities(
            self._settings,
            model,
            models=self._painter.descriptions(),
            samplers=self._painter.samplers(),
            last_checkpoint=self._service.last_checkpoint,
        )
        return JSONResponse(told)

    async def metrics(self) -> Response:
        """The gateway's metrics, then Triton's as they are."""
        text, up = await triton_metrics(self._settings.triton_metrics_url)
        self._metrics.triton_up.set(up)
        self._metrics.tasks.set(len(asyncio.all_tasks()))
        return Response(self._metrics.text() + text, media_type=METRICS_TYPE)

    async def close(self) -> None:
        """Give back what painter and service hold."""
        self._service.close()
        await self._painter.close()

    async def _paint(self, request: Request, order: Order) -> Painting:
        """A request takes its place only when all of it is there: a slow body keeps nobody out."""
        try:
            with self._service.uploads.receive(order.owner) as upload:
                await self._read(request, upload)
                with self._service.admission.enter():
                    painting = await while_connected(request.receive, self._service.paint(upload, order))
        except GatewayError as error:
            self._metrics.observe_failure(error)
            raise
        self._metrics.observe_stages(painting.stages)
        return painting

    async def _read(self, request: Request, upload: Upload) -> None:
        try:
            await read_body(
                request.stream(),
                upload,
                headers=request.headers,
                limit=self._settings.max_body_bytes,
                seconds=self._settings.body_seconds,
            )
        except ClientDisconnect:
            raise ClientGoneError("the client went away before its request was complete") from None


def create_app(settings: Settings, painter: Painter | None = None) -> FastAPI:
    """The gateway as an ASGI application. painter: what paints instead of the Tritons that the settings name.

    Raises ValueError and OSError for a file of tokens or certificates that cannot be used.
    """
    used = painter or connect(settings)
    metrics = Metrics(paths=PATHS, endpoints=used.endpoints if isinstance(used, BalancedPainter) else ())
    gateway = Gateway(settings, used, metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if isinstance(used, BalancedPainter):
            used.start()
        try:
            yield
        finally:
            await gateway.close()

    app = FastAPI(
        title="multsd",
        version="0.1.0",
        description=documentation.API,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.metrics = metrics
    app.add_exception_handler(GatewayError, handle_gateway_error)
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_api_route("/multsd", gateway.multsd, methods=["POST"], **documentation.multsd(settings))
    app.add_api_route("/multsd/stream", gateway.stream, methods=["POST"], **documentation.stream(settings))
    app.add_api_route("/limits", gateway.limits, methods=["GET"], **documentation.LIMITS)
    app.add_api_route("/healthz", gateway.healthz, methods=["GET"], **documentation.HEALTHZ)
    app.add_api_route("/metrics", gateway.metrics, methods=["GET"], **documentation.METRICS)
    app.add_api_route("/readyz", gateway.readyz, methods=["GET"], **documentation.READYZ)
    page, docs = read_page(), read_docs()
    add_page(app, page)
    add_docs(app, docs)
    no_token = open_paths(settings.open_paths, page, docs)
    if settings.token_file is not None:
        documentation.require_tokens(app, open_paths=no_token)
    _answer_head(app)
    _add_middleware(app, settings, metrics, no_token=no_token)
    return app


def _answer_head(app: FastAPI) -> None:
    """Have what answers GET answer HEAD, as Starlette's own routes do and FastAPI's do not; servers leave the body out.

    The document is made before, and kept by the application: of methods added here it need not tell.
    """
    app.openapi()
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics, *, no_token: tuple[str, ...]) -> None:
    """From the inside to the outside: what is added last sees a request first. no_token: paths that need none."""
    if settings.token_file is not None:
        app.add_middleware(
            Authentication,
            tokens=read_tokens(settings.token_file),
            rate=RateLimit(per_minute=settings.rate_per_minute, burst=settings.rate_burst),
            open_paths=no_token,
        )
    app.add_middleware(
        ServerErrors
    )  # inside of what adds headers, without which no page of another origin sees a reply
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization", "Content-Type", REQUEST_ID, TIMEOUT],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Measured, metrics=metrics)
    app.add_middleware(ServerErrors)  # of the layers between
    app.add_middleware(RequestIds)


def is_large(painting: Painting) -> bool:
    """Whether making a reply of it would hold the event loop up."""
    return len(painting.image) > LARGE_PICTURE


def _strict(request: Request) -> bool:
    return request.query_params.get("strict", "").lower() in ("1", "true")
