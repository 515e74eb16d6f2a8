"""What a browser gets in place of problem+json: a page that says the same in words."""

import json
import re

from fastapi import Request, Response

from service.http_api.accept import prefers_html
from service.http_api.problems import PROBLEM_JSON, error_response
from service.http_api.status_page.html_response import html_response
from service.http_api.status_page.sign_in import sign_in_page

_PAGES = re.compile(r"/|/sign-in|/sign-out|/jobs/[^/]+|/jobs/[^/]+/cancel")


async def on_error(request: Request, error: Exception) -> Response:
    """The exception handler of the application."""
    return response_to_error(error, request)


def response_to_error(error: Exception, request: Request) -> Response:
    """The response to an exception: a page where a browser asked for one, else problem+json."""
    response = error_response(error, request)
    path = request.scope["path"]
    is_page = request.method in ("GET", "HEAD", "POST") and _PAGES.fullmatch(path)
    if response.media_type != PROBLEM_JSON or not is_page or not prefers_html(request.scope):
        return response
    problem = json.loads(bytes(response.body))
    if problem["code"] == "unauthorized" and request.method in ("GET", "HEAD"):
        return sign_in_page(request, path)
    page = html_response(request, "error.html", response.status_code, problem=problem)
    for name in ("retry-after", "allow"):
        if name in response.headers:
            page.headers[name] = response.headers[name]
    return page
