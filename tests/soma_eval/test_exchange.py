"""A call without a network: what the clients share."""

import httpx
import pytest

from soma_eval import RetryPolicy, calls
from soma_eval.errors import TimedOut
from soma_eval.exchange import Following, Timeouts
from soma_eval.responses import EvalResponse, Job
from tests.soma_eval.answers import event, running_job


def following(max_tries: int) -> Following[EvalResponse]:
    policy = RetryPolicy(max_tries=max_tries, first_wait_seconds=0.0)
    return Following(calls.events(running_job()), policy, Timeouts(response_seconds=1.0))


def test_a_job_of_which_nothing_is_heard_for_a_while_is_followed_on() -> None:
    exchange, seen = following(max_tries=1), list[Job[EvalResponse]]()
    for number, seconds in enumerate(exchange.tries()):
        assert seconds == 0.0
        with exchange.attempt():
            exchange.begin(httpx.Response(200))
            for job in exchange.feed(event("running") if number < 10 else event("succeeded")):
                seen.append(job)
            raise httpx.ReadTimeout("")
    assert [job.state for job in seen] == ["running", "succeeded"]


def test_a_service_of_which_nothing_is_heard_at_all_is_given_up() -> None:
    exchange, num_tries = following(max_tries=3), 0
    with pytest.raises(TimedOut, match="no event within 60 s"):  # noqa: PT012
        for _ in exchange.tries():
            num_tries += 1
            with exchange.attempt():
                exchange.begin(httpx.Response(200))
                raise httpx.ReadTimeout("")
    assert num_tries == 3
