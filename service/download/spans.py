"""Sets of bytes of a file, as ordered spans that neither touch nor overlap. Pure."""

Span = tuple[int, int]
"""Bytes from the first up to, not including, the second."""


def merged(spans: list[Span], span: Span) -> list[Span]:
    """The spans and one more."""
    result: list[Span] = []
    for start, end in sorted([*spans, span]):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def missing(spans: list[Span], size: int) -> list[Span]:
    """The spans of a file of `size` bytes that are not among these."""
    edges = [0, *(edge for span in spans for edge in span), size]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def covers(spans: list[Span], span: Span) -> bool:
    """Whether all bytes of a span are among these; False for an empty one."""
    return span[0] < span[1] and any(start <= span[0] and span[1] <= end for start, end in spans)


def num_bytes(spans: list[Span]) -> int:
    """The number of bytes in all."""
    return sum(end - start for start, end in spans)


def prefix_end(spans: list[Span]) -> int:
    """The end of the unbroken run of bytes from the start of the file."""
    return spans[0][1] if spans and spans[0][0] == 0 else 0
