"""Answers of a service, as a server of the tests sends them."""

import json
from typing import Any

from soma_eval.responses import EvalResponse, Job


def answer() -> dict[str, Any]:
    """The body of a successful /eval."""
    made_of = dict.fromkeys(("weights_checksum", "data_checksum", "architecture_version"), "x")
    times = ("queue", "download", "load", "eval", "total")
    return {
        "loss": 1.5,
        "embedding": [1, 0.5],
        "cross_entropy": 1.0,
        "sig_reg": 25.0,
        "distance": None,
        "num_sequences": 1,
        "num_batches": 1,
        "attends_to_future": False,
        "provenance": {
            **made_of,
            "seed": 1,
            "numerics_version": "1",
            "computed_at": "2026-01-02T03:04:05.678901Z",
            "precision": "float32",
            "device": "cpu",
            "was_cut_smaller": False,
            "versions": {"torch": "2"},
        },
        "timings": {
            **{f"{name}_seconds": 0.5 for name in times},
            "weights_cached": "no",
            "result_cached": False,
        },
    }


def job_json(state: str, batches_done: int | None = None) -> bytes:
    """A job with one model, as GET /jobs/{id} has it."""
    nothing = dict.fromkeys(("bytes_done", "bytes_total", "bytes_per_second", "num_batches"))
    model = {**nothing, "phase": "evaluating", "batches_done": batches_done}
    status = {
        "id": "abc",
        "kind": "eval",
        "state": state,
        "created_at": "2025-01-01T00:00:00+00:00",
        "finished_at": None,
        "progress": {"data": None, "models": [model], "estimated_seconds_left": None},
        "result": answer() if state == "succeeded" else None,
        "error": None,
    }
    return json.dumps(status).encode()


def event(state: str, batches_done: int | None = None) -> bytes:
    """The same as a server-sent event."""
    return b"event: progress\ndata: " + job_json(state, batches_done) + b"\n\n"


def running_job() -> Job[EvalResponse]:
    """A job to follow."""
    return Job[EvalResponse].model_validate_json(job_json("running"))
