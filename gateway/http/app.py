"""The HTTP application."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp

from gateway.core import Gateway, GatewayHealth
from gateway.http import (
    openapi,
    problems,
    routes_collections,
    routes_images,
    routes_ingest,
    routes_query,
    routes_service,
)
from gateway.http.middleware import REQUEST_ID, BodyLimit, OwnTask, RequestContext
from gateway.http.origins import OriginCheck
from gateway.http.problems import methods_by_path
from gateway.http.uploads import UploadAdmission

_DESCRIPTION = """Find any object in any image: by words, by an example image, or by pointing at it.

Coordinates are pixels of an image as a viewer shows it. Errors are problem documents (RFC 9457) with a
`code` from a closed list. Where the operator has set keys, one goes into `Authorization: Bearer …` or
`X-API-Key: …`.
"""


def create_app(gateway: Gateway, health: GatewayHealth) -> ASGIApp:
    """Puts routes, errors and middleware together.

    Args:
        gateway: What the routes call.
        health: Health of this process and the services behind it.
    """
    app = FastAPI(
        title="Region Search",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to the Host that the caller names, and by plain HTTP behind a TLS proxy
        generate_unique_id_function=lambda route: route.name,
        openapi_tags=[
            {"name": "collections"},
            {"name": "images"},
            {"name": "search"},
            {"name": "service"},
        ],
    )
    openapi.install(app, keys=gateway.settings.has_keys)
    routes_service.install_pages(app)
    routers = [
        *(m.router(gateway) for m in (routes_collections, routes_ingest, routes_images, routes_query)),
        routes_service.router(gateway, health),
    ]
    problems.install(app, methods_by_path([*app.routes, *(r for router in routers for r in router.routes)]))
    for router in routers:
        app.include_router(router)

    settings = gateway.settings
    # The last one that is added is the first one that a request meets.
    app.add_middleware(UploadAdmission, limits=settings.limits)
    app.add_middleware(BodyLimit, max_bytes=settings.limits.max_request_bytes)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["ETag", "Location", "Retry-After", REQUEST_ID],
        )
    app.add_middleware(OriginCheck, settings=settings)
    app.add_middleware(RequestContext, access=gateway.access)
    if settings.otlp_endpoint:
        _trace(app)
    return OwnTask(app)  # around the span of the request too


def _trace(app: FastAPI) -> None:
    """A span for every request, named by its route, and none for its single messages."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(
        app, excluded_urls="healthz,readyz,metrics,static", exclude_spans=["receive", "send"]
    )
