"""The page at /docs. Its scripts come from this service alone, as users type API keys into the page."""

from collections.abc import AsyncIterator
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, StreamingResponse

from service.errors import NotFound

STATIC_FILES = "/static-offline-docs"
_MEDIA_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_CHUNK_BYTES = 64 << 10


def docs_routes(openapi_url: str, title: str) -> APIRouter:
    """The page and its files, which are kept in memory: a stalled client holds no file open."""
    router = APIRouter(include_in_schema=False)
    folder = files("fastapi_offline") / "static"
    contents = {name: (folder / name).read_bytes() for name in _MEDIA_TYPES}

    @router.head("/docs")
    @router.get("/docs")
    async def page(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}{openapi_url}",
            title=title,
            swagger_js_url=f"{root}{STATIC_FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{STATIC_FILES}/swagger-ui.css",
            swagger_favicon_url=f"{root}{STATIC_FILES}/favicon.png",
        )

    @router.head(f"{STATIC_FILES}/{{name}}")
    @router.get(f"{STATIC_FILES}/{{name}}")
    async def static_file(name: str) -> StreamingResponse:
        if name not in contents:
            raise NotFound("there is nothing at this path")
        return StreamingResponse(
            _chunks(contents[name]),
            media_type=_MEDIA_TYPES[name],
            headers={"Content-Length": str(len(contents[name]))},
        )

    return router


async def _chunks(content: bytes) -> AsyncIterator[memoryview]:
    """In chunks, so that for a slow client only one of them is copied."""
    for start in range(0, len(content), _CHUNK_BYTES):
        yield memoryview(content)[start : start + _CHUNK_BYTES]
