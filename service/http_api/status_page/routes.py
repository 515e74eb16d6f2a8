"""The status page at `/` and the page of a job: their HTML, what keeps them up to date, and their forms.

GET  /                          the page, whole and readable as it is
GET  /jobs/{id}                 the page of a job, where a browser asks: see app.py
GET  /status/events             server-sent events: panels that have changed, as HTML
GET  /status/panels             all panels, for browsers that get no events
GET  /status/jobs/{id}/...      the same two for the page of a job
POST /jobs/{id}/cancel          the button of that page; clients of the API send DELETE /jobs/{id}
"""

import functools
import time
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.errors import JobNotFound, NotFound
from service.http_api.api_keys import PAGE_FILES
from service.http_api.sessions import Sessions
from service.http_api.status_page.feed import Feed
from service.http_api.status_page.html_response import SECURITY_HEADERS, html_response
from service.http_api.status_page.job_view import view_of
from service.http_api.status_page.overview import Collector
from service.http_api.status_page.rendering import FILES, page
from service.http_api.status_page.sign_in import check_origin, redirect, sign_in_routes
from service.lifespan import Components

MAX_STREAMS = 256
"""Pages that are sent events at once; the others ask every few seconds."""


class StatusPage:
    """The pages of one service, and who watches them."""

    def __init__(self, components: Components, sessions: Sessions) -> None:
        self._components = components
        self._sessions = sessions
        self._overview = Feed(Collector(components), _render_panel, components.closing)
        self._jobs: dict[str, Feed] = {}
        """Those that somebody watches."""

    async def overview(self, request: Request) -> Response:
        """The status page."""
        panels = await self._overview.values()
        return html_response(
            request, "overview.html", panels=panels, now=time.time(), has_session=self._has_session(request)
        )

    async def job(self, job_id: str, request: Request) -> Response:
        """The page of a job. Raises JobNotFound."""
        panels = await self._job_feed(job_id).values()
        return html_response(
            request,
            "job.html",
            panels=panels,
            job_id=job_id,
            now=time.time(),
            has_session=self._has_session(request),
        )

    def routes(self) -> APIRouter:
        """All of it but `/jobs/{id}`, which has a JSON side."""
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/", self.overview, methods=["GET", "HEAD"])
        router.add_api_route("/status/events", self._overview_events, methods=["GET"])
        router.add_api_route("/status/panels", self._overview_panels, methods=["GET"])
        router.add_api_route("/status/jobs/{job_id}/events", self._job_events, methods=["GET"])
        router.add_api_route("/status/jobs/{job_id}/panels", self._job_panels, methods=["GET"])
        router.add_api_route("/jobs/{job_id}/cancel", self._cancel, methods=["POST"])
        router.add_api_route(f"{PAGE_FILES}{{name}}", _file, methods=["GET", "HEAD"])
        router.routes.extend(sign_in_routes(self._sessions).routes)
        return router

    def _has_session(self, request: Request) -> bool:
        return self._sessions.is_valid(request.scope)

    # -- what keeps pages up to date

    async def _overview_events(self, request: Request) -> Response:
        return self._stream(self._overview)

    async def _overview_panels(self, request: Request) -> Response:
        return _json(await self._overview.panels())

    async def _job_events(self, job_id: str, request: Request) -> Response:
        feed = self._job_feed(job_id)
        await feed.values()  # raises JobNotFound before the stream begins
        return self._stream(feed, job_id)

    async def _job_panels(self, job_id: str, request: Request) -> Response:
        return _json(await self._job_feed(job_id).panels())

    def _stream(self, feed: Feed, job_id: str = "") -> Response:
        num_streams = sum(each.num_watching for each in (self._overview, *self._jobs.values()))
        if num_streams >= MAX_STREAMS:
            return Response(status_code=HTTPStatus.NO_CONTENT)  # has the browser give up, and the page ask
        if job_id:
            self._jobs[job_id] = feed
        return StreamingResponse(
            self._events(feed, job_id),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **SECURITY_HEADERS},
        )

    async def _events(self, feed: Feed, job_id: str) -> AsyncIterator[bytes]:
        try:
            async for event in feed.events():
                yield event
        finally:
            if feed.num_watching == 0:
                self._jobs.pop(job_id, None)

    def _job_feed(self, job_id: str) -> Feed:
        components = self._components
        collector = _JobCollector(components, job_id)
        return self._jobs.get(job_id) or Feed(collector, _render_panel, components.closing)

    # -- forms

    async def _cancel(self, job_id: str, request: Request) -> Response:
        check_origin(request)
        job = await self._components.jobs.cancel(job_id)
        return redirect(request, f"/jobs/{job.id}")


class _JobCollector:
    """The one panel of a job's page; once the job is forgotten, what it was at last."""

    def __init__(self, components: Components, job_id: str) -> None:
        self._components = components
        self._job_id = job_id
        self._latest: Mapping[str, object] = {}

    async def __call__(self) -> Mapping[str, object]:
        try:
            self._latest = {"job": view_of(await self._components.jobs.get(self._job_id))}
        except JobNotFound:
            if not self._latest:
                raise
        return self._latest


def _render_panel(name: str, value: object, now: float) -> str:
    return page(f"panels/{name}.html", value=value, now=now)


def _json(body: bytes) -> Response:
    headers = {"Cache-Control": "no-store", **SECURITY_HEADERS}
    return Response(body, media_type="application/json", headers=headers)


async def _file(name: str) -> Response:
    if name not in FILES:
        raise NotFound("there is nothing at this path")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", **SECURITY_HEADERS}
    return Response(_contents()[name], media_type=FILES[name], headers=headers)


@functools.cache
def _contents() -> dict[str, bytes]:
    folder = files("service.http_api.status_page") / "static"
    return {name: (folder / name).read_bytes() for name in FILES}
