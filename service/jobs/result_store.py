"""The kept results in the database: a row each, named by content. Where it does not work, results are computed.

A row carries a hash over its key and its content, so that one that was damaged counts as absent. What was not used for
the longest goes first.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, delete, func, select, update

from service.errors import ServiceTrouble
from service.jobs.database import Database, Work
from service.jobs.inserts import insert_or_replace
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

    async def find(self, keys: Sequence[ResultKey]) -> dict[ResultKey, KeptResult]:
        """Those of the results that are kept and can be read, in one look."""
        names = {key.digest(): key for key in keys}
        if not names:
            return {}
        query = select(results.c.key, results.c.payload, results.c.last_used_at)
        query = query.where(
            results.c.key.in_(names), results.c.last_used_at >= time.time() - self._max_age_seconds
        )
        rows = await self._attempt(lambda connection: connection.execute(query).all(), writes=False)
        found = {row.key: read_payload(row.key, row.payload) for row in rows or ()}
        damaged = [name for name, result in found.items() if result is None]
        if damaged and self._damage_warnings.permits():
            log.warning("a kept result is damaged: it is computed again", key=damaged[0])
        long_ago = time.time() - TOUCH_SECONDS
        await self._touch([row.key for row in rows or () if row.last_used_at < long_ago and found[row.key]])
        return {names[name]: result for name, result in found.items() if result is not None}

    async def keep(self, found: Mapping[ResultKey, KeptResult]) -> None:
        """Keep results, each in place of any other under its key, and drop those that are too old or too many."""
        if not found:
            return

        def write(connection: Connection) -> None:
            now = time.time()
            connection.execute(insert_or_replace(connection, results), _rows(found, now))
            self._evict(connection, now)

        await self._attempt(write, writes=True)

    async def forget(self, key: ResultKey) -> None:
        """Keep nothing under the key."""
        gone = delete(results).where(results.c.key == key.digest())
        await self._attempt(lambda connection: connection.execute(gone), writes=True)

    async def _touch(self, names: Sequence[str]) -> None:
        if names:
            statement = update(results).where(results.c.key.in_(names)).values(last_used_at=time.time())
            await self._attempt(lambda connection: connection.execute(statement), writes=True)

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
        except Exception as error:
            log_bug(error)
        return None


def _rows(found: Mapping[ResultKey, KeptResult], now: float) -> list[dict[str, Any]]:
    """In one order everywhere: two services that keep the same would otherwise wait for each other."""
    rows = []
    for key, result in found.items():
        name = key.digest()
        payload = write_payload(name, result)
        rows.append({"key": name, "payload": payload, "size": len(payload)})
    rows.sort(key=itemgetter("key"))
    return [{**row, "created_at": now, "last_used_at": now} for row in rows]


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
