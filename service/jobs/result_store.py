"""The kept results in the database: a row each, named by content. Where it does not work, results are computed.

A row carries a hash over its key and its content, so that one that was damaged counts as absent. What was not used for
the longest goes first.
"""

import hashlib
import json
import time
from datetime import datetime
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.errors import ServiceTrouble
from service.jobs.database import Database, Work
from service.jobs.schema import results
from service.jobs.stored_outcome import eval_result_from, eval_result_to_dict
from service.log import RateLimit, log_bug
from service.scoring.kept_results import REFUSALS, KeptResult, ResultKey
from workers.types import EvalResult

TOUCH_SECONDS = 3600.0
"""How exactly the last use of a result is known: within it, using it again writes nothing."""
RETRY_SECONDS = 10.0
"""For so long after trouble nothing is looked up or kept: to ask a database that is gone takes time."""

_REFUSALS = {kind.__name__: kind for kind in REFUSALS}

T = TypeVar("T")

log = structlog.get_logger(__name__)


class ResultStore:
    """A `KeptResults`: at most `max_results`, each as long as it is used again within `max_age_seconds`."""

    def __init__(self, database: Database, *, max_results: int, max_age_seconds: float) -> None:
        self._database = database
        self._max_results = max_results
        self._max_age_seconds = max_age_seconds
        self._retry_at = 0.0
        self._damage_warnings = RateLimit()

    async def find(self, key: ResultKey) -> KeptResult | None:
        """The result that is kept under the key; None where there is none that can be read."""
        name = key.digest()
        query = select(results.c.payload, results.c.last_used_at).where(results.c.key == name)
        row = await self._attempt(lambda connection: connection.execute(query).one_or_none(), writes=False)
        if row is None:
            return None
        unused_seconds = time.time() - row.last_used_at
        if unused_seconds > self._max_age_seconds:
            return None
        found = read_payload(name, row.payload)
        if found is None and self._damage_warnings.permits():
            log.warning("a kept result is damaged: it is computed again", key=name)
        if found is not None and unused_seconds > TOUCH_SECONDS:
            touch = update(results).where(results.c.key == name).values(last_used_at=time.time())
            await self._attempt(lambda connection: connection.execute(touch), writes=True)
        return found

    async def keep(self, key: ResultKey, result: KeptResult) -> None:
        """Keep a result in place of any other under the key, and drop those that are too old or too many."""
        name = key.digest()

        def write(connection: Connection) -> None:
            payload, now = write_payload(name, result), time.time()
            connection.execute(delete(results).where(results.c.key == name))
            row = {"key": name, "payload": payload, "size": len(payload)}
            connection.execute(insert(results).values(**row, created_at=now, last_used_at=now))
            self._evict(connection, now)

        await self._attempt(write, writes=True)

    async def forget(self, key: ResultKey) -> None:
        """Keep nothing under the key."""
        gone = delete(results).where(results.c.key == key.digest())
        await self._attempt(lambda connection: connection.execute(gone), writes=True)

    def _evict(self, connection: Connection, now: float) -> None:
        connection.execute(delete(results).where(results.c.last_used_at < now - self._max_age_seconds))
        count = connection.execute(select(func.count()).select_from(results)).scalar_one()
        if count > self._max_results:
            oldest = select(results.c.key).order_by(results.c.last_used_at).limit(count - self._max_results)
            connection.execute(delete(results).where(results.c.key.in_(oldest)))

    async def _attempt(self, work: Work[T], *, writes: bool) -> T | None:
        """What the work returns; None where the database does not work, or did not a moment ago."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            return await (self._database.run(work) if writes else self._database.read(work))
        except ServiceTrouble:  # which the database logs
            self._retry_at = time.monotonic() + RETRY_SECONDS
        except IntegrityError:  # another service has kept the same result a moment ago
            pass
        except Exception as error:
            log_bug(error)
        return None


def write_payload(name: str, result: KeptResult) -> str:
    """A row's content as JSON, which gives back the same bits."""
    outcome = result.outcome
    content: dict[str, Any] = {"computed_at": result.computed_at.isoformat()}
    if isinstance(outcome, EvalResult):
        content["result"] = eval_result_to_dict(outcome)
    else:
        content |= {"refusal": type(outcome).__name__, "detail": outcome.detail}
    return json.dumps({**content, "check": _check(name, content)})


def read_payload(name: str, payload: str) -> KeptResult | None:
    """What `write_payload` has written under this name; None for anything else."""
    try:
        content = json.loads(payload)
        if content.pop("check") != _check(name, content):
            return None
        computed_at = datetime.fromisoformat(content["computed_at"])
        if "refusal" in content:
            return KeptResult(_REFUSALS[content["refusal"]](content["detail"]), computed_at)
        return KeptResult(eval_result_from(content["result"]), computed_at)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _check(name: str, content: dict[str, Any]) -> str:
    text = name + json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
