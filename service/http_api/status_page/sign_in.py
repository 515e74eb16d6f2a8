"""The form that asks a browser for the API key, once: /sign-in begins a session and /sign-out ends it."""

import asyncio
import re
from http import HTTPStatus
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from service.errors import BodyTooLarge, InvalidRequest, Unauthorized
from service.http_api.api_keys import SIGN_IN, SIGN_OUT
from service.http_api.sessions import Sessions, delete_cookie, is_from_own_page, set_cookie
from service.http_api.status_page.html_response import html_response

_MAX_FORM_BYTES = 16 << 10
_FORM_SECONDS = 15.0
_PAGE = re.compile(r"/|/jobs/[\w-]{1,64}", re.ASCII)
"""Where a form may lead back to: a page of this service, whatever the request says."""


def sign_in_routes(sessions: Sessions) -> APIRouter:
    """Both are POSTs from the service's own pages; whoever else sends one is refused."""
    router = APIRouter(include_in_schema=False)

    @router.post(SIGN_IN)
    async def sign_in(request: Request) -> Response:
        check_origin(request)
        form = await _read_form(request)
        page = own_page(form.get("page", "/"))
        cookie = sessions.begin(form.get("key", "").strip().encode())
        if cookie is None:
            request.scope["soma_eval.outcome"] = Unauthorized.code
            return sign_in_page(request, page, is_second_try=True)
        response = redirect(request, page)
        set_cookie(response, cookie, request.scope)
        return response

    @router.post(SIGN_OUT)
    async def sign_out(request: Request) -> Response:
        check_origin(request)
        response = redirect(request, "/")
        delete_cookie(response, request.scope)
        return response

    return router


def sign_in_page(request: Request, page: str, *, is_second_try: bool = False) -> Response:
    """The form, as the 401 that it is."""
    return html_response(
        request, "sign_in.html", HTTPStatus.UNAUTHORIZED, page=own_page(page), is_second_try=is_second_try
    )


def check_origin(request: Request) -> None:
    """Raise Unauthorized unless a page of this service sends the request: the browser adds the cookie to any."""
    if not is_from_own_page(request.scope):
        raise Unauthorized("only this service's own pages may send this")


def redirect(request: Request, page: str) -> Response:
    """To one of this service's pages, after a form."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}{page}", HTTPStatus.SEE_OTHER)


def own_page(path: str) -> str:
    """The path if it is that of a page, else that of the status page."""
    return path if _PAGE.fullmatch(path) else "/"


async def _read_form(request: Request) -> dict[str, str]:
    body = bytearray()
    try:
        async with asyncio.timeout(_FORM_SECONDS):
            async for block in request.stream():
                body += block
                if len(body) > _MAX_FORM_BYTES:
                    raise BodyTooLarge(f"the form has at most {_MAX_FORM_BYTES} bytes")
    except TimeoutError:
        raise InvalidRequest("the form was sent too slowly") from None
    try:
        fields = parse_qs(body.decode(errors="replace"), max_num_fields=16)
    except ValueError:
        raise InvalidRequest("the form has too many fields") from None
    return {name: values[-1] for name, values in fields.items()}
