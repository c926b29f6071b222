"""What operators and browsers ask for: health, models, metrics, documentation, the page."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import fastapi_offline
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway.core import Gateway, GatewayHealth
from gateway.http.access import is_known, needs
from gateway.http.page import WEB, PageFiles, page
from gateway.rights import Scope, rights
from regionsearch.schemas.responses.values import AccessRights, Models, Readiness, ServiceState

_SWAGGER = Path(fastapi_offline.__file__).parent / "static"
_DOCS_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_DOCS = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Region Search API</title>
<link rel="stylesheet" href="docs/static/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="docs/static/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body>
</html>
"""
# Addresses are relative, also those of what is tried out: a proxy may serve all of this below a path.
_DOCS_SCRIPT = """const root = new URL(".", location.href);
const below = (request) => {
  const url = new URL(request.url, location.href);
  if (url.origin === root.origin && !url.pathname.startsWith(root.pathname)) {
    url.pathname = root.pathname + url.pathname.slice(1);
  }
  return Object.assign(request, { url: url.href });
};
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, requestInterceptor: below });
"""


def _state(found: ServiceState, *, told: bool) -> ServiceState:
    """What a caller is told; who has no key learns no addresses."""
    vague = "serving" if found.ready else "not serving"
    return ServiceState(ready=found.ready, detail=found.detail if told else vague)


def router(gateway: Gateway, health: GatewayHealth) -> APIRouter:
    """The routes outside the API proper.

    Args:
        gateway: Asked about its services.
        health: Health of this process and the services behind it.
    """
    routes = APIRouter(tags=["service"])

    @routes.get("/healthz", summary="Is the process alive?", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Yes, or there is no answer."""
        return "ok\n"

    @routes.get(
        "/readyz",
        summary="Can it do its work?",
        response_model=Readiness,
        responses={
            503: {"model": Readiness, "description": "Not yet, or not any more; says what it waits for."}
        },
    )
    async def readyz(
        request: Request,
        only: Literal["gateway"] | None = Query(None, description="Leave out the services behind it."),
    ) -> Response:
        """200 when all services serve and the default collection is there.

        A load balancer asks with `only=gateway`: 200 once all of that was so, until the process drains. It
        must not turn away from all gateways at once because a service behind them restarts, which they wait
        for. Why something is not ready is said to callers with a key, where there are keys.
        """
        found = {} if only else await gateway.readiness()
        told = is_known(gateway, request)
        services = {name: _state(one, told=told) for name, one in (found | {"gateway": health.own}).items()}
        ready = all(state.ready for state in services.values())
        answer = Readiness(ready=ready, services=services).model_dump()
        return JSONResponse(answer, 200 if ready else 503, {"Cache-Control": "no-store"})

    @routes.get(
        "/v1/access",
        summary="What the API key allows",
        response_model=AccessRights,
        dependencies=[needs(gateway, None)],
    )
    async def access() -> Response:
        """Scopes and collections; everything where no keys are needed."""
        own = rights()
        collections = None if own.collections is None else tuple(sorted(own.collections))
        found = AccessRights(scopes=tuple(sorted(own.scopes)), collections=collections)
        return JSONResponse(found.model_dump(), headers={"Cache-Control": "no-store"})

    @routes.get(
        "/v1/models", summary="Models", response_model=Models, dependencies=[needs(gateway, Scope.SEARCH)]
    )
    async def models() -> Response:
        """What the services serve now."""
        answer = Models.from_proto(await gateway.models())
        return JSONResponse(answer.model_dump(exclude_none=True))

    if not gateway.settings.metrics_port:  # else it is there, for those who look after this process

        @routes.get("/metrics", include_in_schema=False)
        async def metrics() -> Response:
            return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return routes


def install_pages(app: FastAPI) -> None:
    """The web page and the documentation, both without anything from elsewhere."""
    app.get("/", include_in_schema=False)(page)

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        """For pages that name no icon, such as a problem document or an image."""
        return FileResponse(WEB / "icon.svg", headers={"Cache-Control": "max-age=86400"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_DOCS, headers={"Content-Security-Policy": _DOCS_POLICY})

    @app.get("/docs/start.js", include_in_schema=False)
    async def docs_script(request: Request) -> Response:
        return Response(_DOCS_SCRIPT, media_type="text/javascript")

    app.mount("/docs/static", StaticFiles(directory=_SWAGGER))
    app.mount("/static", PageFiles())
