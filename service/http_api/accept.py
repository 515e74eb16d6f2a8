"""Which of two representations a client wants, by its Accept header."""

from starlette.datastructures import Headers
from starlette.types import Scope


def prefers_html(scope: Scope) -> bool:
    """Whether the request asks for text/html rather than JSON, as browsers do. Without a preference: False."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    ranges = [_media_range(part) for part in ",".join(Headers(scope=scope).getlist("accept")).split(",")]
    for media_type in weights:
        matching = [
            (pattern != "*/*", not pattern.endswith("/*"), weight)
            for pattern, weight in ranges
            if pattern in (media_type, media_type.partition("/")[0] + "/*", "*/*")
        ]
        weights[media_type] = max(matching)[2] if matching else 0.0  # of the most specific one
    return weights["text/html"] > weights["application/json"]


def _media_range(text: str) -> tuple[str, float]:
    """Its pattern and weight; a weight that cannot be read is 0."""
    pattern, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return pattern, float(parameter[2:])
            except ValueError:
                return pattern, 0.0
    return pattern, 1.0
