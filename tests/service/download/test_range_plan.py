"""What is requested, and what each reply means for the rest: no network, no file."""

import pytest

from service.blob import BlobRef
from service.download.partial_note import Origin
from service.download.range_plan import Part, RangePlan, StartOver
from service.download.request import DownloadRequest
from service.download.responses import Broken, ContentRange, ReplyHead
from service.errors import BlobTooLarge, SizeMismatch

PART = 100


def _plan(size: int | None = 250, *, missing: list[tuple[int, int]] | None = None) -> RangePlan:
    plan = RangePlan(DownloadRequest(BlobRef("https://files.example/a", None, size), "model", 1000), PART)
    plan.begin([(0, size or 0)] if missing is None else missing)
    return plan


def _next(plan: RangePlan) -> Part:
    part = plan.next_part()
    assert part is not None
    return part


def _range(first: int, last: int, size: int | None, etag: str | None = None) -> ReplyHead:
    return ReplyHead(is_partial=True, content_range=ContentRange(first, last, size), etag=etag)


def _spans(plan: RangePlan) -> list[tuple[int, int | None]]:
    spans = []
    while (part := plan.next_part()) is not None:
        spans.append((part.start, part.end))
    return spans


def test_missing_spans_are_requested_in_order_and_in_parts() -> None:
    assert _spans(_plan(missing=[(0, 150), (200, 250)])) == [(0, 100), (100, 150), (200, 250)]


def test_a_whole_file_that_is_one_part_is_requested_without_a_range() -> None:
    plan = _plan(80)
    assert plan.headers_for(_next(plan)) == {}


def test_an_empty_file_is_requested_once() -> None:
    plan = _plan(0)
    part = _next(plan)
    assert (part.start, part.end, plan.headers_for(part), part.is_complete) == (0, 0, {}, False)
    assert not plan.has_parts


def test_the_first_reply_states_an_unknown_size_and_adds_the_rest() -> None:
    plan = _plan(None)
    part = _next(plan)
    assert plan.headers_for(part) == {"Range": "bytes=0-99"}
    plan.accept_range(_range(0, 99, 250, '"a"'), part, asked=True)
    assert (plan.size, plan.is_confirmed, plan.origin) == (250, True, Origin(250, '"a"'))
    assert _spans(plan) == [(100, 200), (200, 250)]


def test_a_file_shorter_than_the_first_part_ends_with_it() -> None:
    plan = _plan(None)
    part = _next(plan)
    plan.accept_range(_range(0, 41, 42), part, asked=True)
    assert (part.end, plan.has_parts) == (42, False)


def test_the_rest_of_a_shorter_range_is_requested_next() -> None:
    plan = _plan()
    part = _next(plan)
    plan.accept_range(_range(0, 59, 250), part, asked=True)
    assert part.end == 60
    assert _spans(plan)[0] == (60, 100)


def test_what_another_connection_left_is_requested_next() -> None:
    plan = _plan()
    part = _next(plan)
    part.start = 30
    plan.put_back(part)
    assert _spans(plan)[0] == (30, 100)


def test_a_part_that_is_complete_is_not_requested_again() -> None:
    plan = _plan()
    part = _next(plan)
    part.start = 100
    plan.put_back(part)
    assert _spans(plan)[0] == (100, 200)


@pytest.mark.parametrize(
    "found",
    [
        None,
        ContentRange(1, 99, 250),
        ContentRange(0, 100, 250),
        ContentRange(99, 0, 250),
        ContentRange(0, 99, 50),
    ],
    ids=["none", "shifted", "longer", "reversed", "beyond the end"],
)
def test_another_range_than_requested_ends_range_requests(found: ContentRange | None) -> None:
    plan = _plan()
    with pytest.raises(StartOver):
        plan.accept_range(ReplyHead(is_partial=True, content_range=found), _next(plan), asked=True)
    assert (plan.uses_ranges, plan.is_confirmed) == (False, False)
    plan.begin([(0, 250)])
    part = _next(plan)
    assert (part.end, plan.headers_for(part)) == (250, {})
    with pytest.raises(Broken):
        plan.accept_range(_range(0, 249, 250), part, asked=False)


def test_another_etag_means_another_file() -> None:
    plan = _plan()
    plan.accept_range(_range(0, 99, 250, '"a"'), _next(plan), asked=True)
    part = _next(plan)
    assert plan.headers_for(part)["If-Range"] == '"a"'
    with pytest.raises(StartOver):
        plan.accept_range(_range(100, 199, 250, '"b"'), part, asked=True)
    assert plan.uses_ranges


def test_a_weak_etag_is_not_sent() -> None:
    plan = _plan()
    plan.accept_range(_range(0, 99, 250, 'W/"a"'), _next(plan), asked=True)
    assert "If-Range" not in plan.headers_for(_next(plan))


@pytest.mark.parametrize(("size", "error"), [(251, SizeMismatch), (1001, BlobTooLarge)])
def test_a_size_other_than_promised_is_refused(size: int, error: type[Exception]) -> None:
    plan = _plan()
    with pytest.raises(error):
        plan.accept_range(_range(0, 99, size), _next(plan), asked=True)


def test_a_size_that_changes_means_another_file() -> None:
    plan = _plan(None)
    plan.accept_range(_range(0, 99, 250), _next(plan), asked=True)
    with pytest.raises(StartOver):
        plan.accept_range(_range(100, 199, 260), _next(plan), asked=True)


def test_a_first_reply_with_the_whole_replaces_all_parts() -> None:
    plan = _plan()
    part = _next(plan)
    plan.accept_whole(ReplyHead(is_partial=False, length=250), part, asked=True, is_first=True)
    assert (part.end, plan.has_parts, plan.uses_ranges) == (250, False, False)


@pytest.mark.parametrize(("etag", "uses_ranges"), [(None, False), ('"a"', False), ('"b"', True)])
def test_a_later_reply_with_the_whole_starts_over(etag: str | None, uses_ranges: bool) -> None:
    """The server ignores ranges, or the file has changed and If-Range did what it is for."""
    plan = _plan()
    plan.accept_range(_range(0, 99, 250, '"a"'), _next(plan), asked=True)
    with pytest.raises(StartOver):
        plan.accept_whole(ReplyHead(is_partial=False, etag=etag), _next(plan), asked=True, is_first=False)
    assert plan.uses_ranges is uses_ranges


@pytest.mark.parametrize(
    ("promised", "origin", "can_resume"),
    [
        (250, Origin(250, '"a"'), True),
        (None, Origin(250), True),
        (250, Origin(251), False),
        (250, Origin(None), False),
    ],
)
def test_bytes_of_an_earlier_attempt_are_used_if_the_size_fits(
    promised: int | None, origin: Origin, can_resume: bool
) -> None:
    assert _plan(promised).resume(origin) is can_resume


def test_bytes_of_a_file_that_is_too_large_are_refused() -> None:
    with pytest.raises(BlobTooLarge):
        _plan(None).resume(Origin(1001))
