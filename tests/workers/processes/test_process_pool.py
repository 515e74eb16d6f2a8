"""One test per way in which a worker, a job or a caller misbehaves."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.processes.misbehaving import BATCH_SECONDS
from tests.workers.processes.pools import (
    MISBEHAVING,
    SHORT_TIMEOUTS,
    cpus,
    is_alive,
    job,
    misbehaving_pool,
    pids,
    right_cross_entropy,
    send_signal,
    until,
    until_whole,
)
from workers.errors import (
    EmptyData,
    EvaluationCrashesWorker,
    NoWorker,
    OutOfMemory,
    WeightsInvalid,
    WorkerCrashed,
)
from workers.processes.process_pool import ProcessPool
from workers.processes.timeouts import Timeouts
from workers.types import EvalJob, EvalProgress, EvalResult, WorkerConfig


async def busy(pool: ProcessPool, job: EvalJob) -> asyncio.Task[EvalResult]:
    """An evaluation that has come as far as its first batch."""
    seen: list[EvalProgress] = []
    task = asyncio.create_task(pool.evaluate(job, seen.append))
    await until(lambda: bool(seen) and seen[-1].batches_done > 0)
    return task


# -- nothing goes wrong


async def test_evaluates(pool: ProcessPool, tmp_path: Path) -> None:
    result = await pool.evaluate(job("good", tmp_path, seed=3))
    assert result.cross_entropy == right_cross_entropy(seed=3)
    assert (result.num_batches, result.num_sequences, result.device) == (10, 160, "cpu")
    assert result.load_seconds > 0
    assert result.eval_seconds >= 8 * BATCH_SECONDS


async def test_weights_stay(pool: ProcessPool, tmp_path: Path) -> None:
    first = await pool.evaluate(job("good", tmp_path))
    second = await pool.evaluate(job("good", tmp_path))
    assert first.load_seconds > 0.0 == second.load_seconds
    assert second.load_seconds == 0.0


async def test_another_key_is_other_weights(pool: ProcessPool, tmp_path: Path) -> None:
    await pool.evaluate(job("good", tmp_path, key=b"a" * 32))
    assert (await pool.evaluate(job("good", tmp_path, key=b"b" * 32))).load_seconds > 0.0
    assert (await pool.evaluate(job("good", tmp_path))).load_seconds > 0.0


async def test_reports_progress_after_each_batch(pool: ProcessPool, tmp_path: Path) -> None:
    seen: list[EvalProgress] = []
    await pool.evaluate(job("good", tmp_path, 3), seen.append)
    phases = [(progress.phase, progress.batches_done) for progress in seen]
    assert phases[:3] == [("queued", 0), ("loading", 0), ("evaluating", 0)]
    assert phases[-3:] == [("evaluating", 1), ("evaluating", 2), ("evaluating", 3)]


async def test_progress_that_raises_costs_nothing(
    pool: ProcessPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(progress: EvalProgress) -> None:
        raise RuntimeError("not the pool's fault")

    result = await pool.evaluate(job("good", tmp_path), raises)
    assert result.cross_entropy == right_cross_entropy()
    assert "on_progress raised" in caplog.text


async def test_both_workers_share_one_evaluation(pair: ProcessPool, tmp_path: Path) -> None:
    one = asyncio.create_task(pair.evaluate(job("good", tmp_path, 20)))
    await until(lambda: all(status.busy for status in pair.status()))
    assert (await one).cross_entropy == right_cross_entropy(20)


async def test_two_evaluations_get_a_worker_each(pair: ProcessPool, tmp_path: Path) -> None:
    seeds = range(4)
    results = await asyncio.gather(*(pair.evaluate(job("good", tmp_path, seed=seed)) for seed in seeds))
    assert [result.cross_entropy for result in results] == [right_cross_entropy(seed=seed) for seed in seeds]


async def test_the_next_weights_are_loaded_meanwhile(pool: ProcessPool, tmp_path: Path) -> None:
    running = await busy(pool, job("good", tmp_path))
    assert (await pool.evaluate(job("next", tmp_path))).load_seconds == 0.0
    assert running.done()


async def test_weights_that_a_worker_refused_to_load_while_it_loaded_others_are_asked_for_again(
    pool: ProcessPool, tmp_path: Path
) -> None:
    running = asyncio.create_task(pool.evaluate(job("loads-slowly", tmp_path)))
    await until(lambda: pool.status()[0].busy)
    assert (await pool.evaluate(job("next", tmp_path))).load_seconds == 0.0
    assert running.done()


async def test_an_evaluation_stays_on_devices_of_one_kind(tmp_path: Path) -> None:
    configs = [WorkerConfig(device) for device in ("cpu", "cuda:0", "cpu", "cuda:1")]
    async with misbehaving_pool(configs) as pool:
        one = await pool.evaluate(job("good", tmp_path, 30))
        assert one.device == "cuda:0,cuda:1"
        two = await asyncio.gather(*(pool.evaluate(job("good", tmp_path, 30, seed=n)) for n in range(2)))
    assert {result.device for result in two} == {"cpu", "cuda:0,cuda:1"}


# -- errors of the evaluation and of the machine


async def test_weights_that_are_refused(pool: ProcessPool, tmp_path: Path) -> None:
    known = pids(pool)
    with pytest.raises(WeightsInvalid, match=r"embedding\.weight"):
        await pool.evaluate(job("refused", tmp_path))
    assert pids(pool) == known


async def test_empty_data_needs_no_worker(tmp_path: Path) -> None:
    with pytest.raises(EmptyData):
        await ProcessPool([WorkerConfig("cpu")]).evaluate(job("good", tmp_path, num_batches=0))


async def test_out_of_memory_costs_no_worker(pool: ProcessPool, tmp_path: Path) -> None:
    known = pids(pool)
    with pytest.raises(OutOfMemory):
        await pool.evaluate(job("out-of-memory", tmp_path))
    assert pids(pool) == known


# -- the worker is killed


@pytest.mark.parametrize("kind", ["dies-once", "dies-loading-once", "dies-replying-once", "segfaults-once"])
@pytest.mark.parametrize("num_workers", [1, 2])
async def test_a_death_is_made_good(kind: str, num_workers: int, tmp_path: Path) -> None:
    async with misbehaving_pool(cpus(num_workers)) as pool:
        result = await pool.evaluate(job(kind, tmp_path))
        assert result.cross_entropy == right_cross_entropy()
        await until_whole(pool)
        assert sum(status.restarts for status in pool.status()) == 1


async def test_killed_busy(pool: ProcessPool, tmp_path: Path) -> None:
    task = await busy(pool, job("good", tmp_path))
    send_signal(pool, signal.SIGKILL)
    assert (await task).cross_entropy == right_cross_entropy()


async def test_killed_idle(pair: ProcessPool, tmp_path: Path) -> None:
    killed = send_signal(pair, signal.SIGKILL)
    assert (await pair.evaluate(job("good", tmp_path))).cross_entropy == right_cross_entropy()
    await until_whole(pair)
    assert killed not in pids(pair)


async def test_killed_idle_just_as_a_task_is_sent(pool: ProcessPool, tmp_path: Path) -> None:
    for _ in range(3):  # it never saw the task: no death counts
        await until_whole(pool)
        send_signal(pool, signal.SIGKILL)
        assert (await pool.evaluate(job("good", tmp_path, 2))).cross_entropy == right_cross_entropy(2)


async def test_killed_starting(pool: ProcessPool, tmp_path: Path) -> None:
    first = send_signal(pool, signal.SIGKILL)
    await until(lambda: bool(pids(pool)) and pids(pool) != [first])
    send_signal(pool, signal.SIGKILL)
    assert (await pool.evaluate(job("good", tmp_path))).cross_entropy == right_cross_entropy()


async def test_killed_from_outside_twice_is_not_held_against_the_evaluation(
    pool: ProcessPool, tmp_path: Path
) -> None:
    task = await busy(pool, job("good", tmp_path, 100))
    first = send_signal(pool, signal.SIGKILL)
    await until(lambda: pool.status()[0].busy and pool.status()[0].pid != first)
    await asyncio.sleep(2 * BATCH_SECONDS)
    send_signal(pool, signal.SIGKILL)
    with pytest.raises(WorkerCrashed):
        await task
    assert (await pool.evaluate(job("good", tmp_path))).cross_entropy == right_cross_entropy()


async def test_a_death_does_not_reach_the_others(pair: ProcessPool, tmp_path: Path) -> None:
    bad = asyncio.create_task(pair.evaluate(job("segfaults", tmp_path, 4)))
    good = asyncio.create_task(pair.evaluate(job("good", tmp_path, 20)))
    assert (await good).cross_entropy == right_cross_entropy(20)
    with pytest.raises(EvaluationCrashesWorker):
        await bad


# -- the worker hangs or freezes


async def test_a_worker_that_makes_no_progress_is_ended_though_its_heart_beats(
    pool: ProcessPool, tmp_path: Path
) -> None:
    hung = pids(pool)[0]
    task = asyncio.create_task(pool.evaluate(job("hangs-once", tmp_path)))
    await until(lambda: "no progress" in pool.status()[0].trouble)
    assert not pool.status()[0].ready
    assert (await task).cross_entropy == right_cross_entropy()
    assert not is_alive(hung)


async def test_loading_without_progress_is_ended(pool: ProcessPool, tmp_path: Path) -> None:
    with pytest.raises(WorkerCrashed):
        await pool.evaluate(job("hangs-loading", tmp_path))


async def test_slow_work_that_advances_is_not_ended(tmp_path: Path) -> None:
    async with misbehaving_pool(
        timeouts=replace(SHORT_TIMEOUTS, frozen_seconds=0.5, progress_seconds=0.5)
    ) as pool:
        result = await pool.evaluate(job("slow", tmp_path, 3))  # 0.6 s a batch
        assert result.cross_entropy == right_cross_entropy(3)
        assert pool.status()[0].restarts == 0


async def test_heartbeats_that_must_wait_are_no_freeze_of_a_busy_worker(tmp_path: Path) -> None:
    async with misbehaving_pool(
        timeouts=replace(SHORT_TIMEOUTS, frozen_seconds=0.5, progress_seconds=20.0)
    ) as pool:
        result = await pool.evaluate(job("holds-the-interpreter", tmp_path, 3))
        assert result.cross_entropy == right_cross_entropy(3)
        assert pool.status()[0].restarts == 0


async def test_a_worker_that_can_no_longer_listen_ends(pool: ProcessPool, tmp_path: Path) -> None:
    deaf = pids(pool)[0]
    running = await busy(pool, job("good", tmp_path, 100))
    await asyncio.gather(running, pool.evaluate(job("cannot-be-prefetched", tmp_path)))
    assert not is_alive(deaf)


async def test_a_library_that_takes_long_to_open_is_no_freeze() -> None:
    pool = ProcessPool(
        [WorkerConfig("cpu")],
        replace(SHORT_TIMEOUTS, frozen_seconds=0.2),
        "tests.workers.processes.slow_to_import",
    )
    await pool.start()
    restarts = pool.status()[0].restarts
    await pool.close()
    assert restarts == 0


@pytest.mark.parametrize("kind", ["hangs-ignoring-sigterm", "hangs-loading"])
async def test_a_hang_is_ended_after_grace(kind: str, pool: ProcessPool, tmp_path: Path) -> None:
    hung = pids(pool)[0]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await pool.evaluate(job(kind, tmp_path))
    assert (await pool.evaluate(job("good", tmp_path))).cross_entropy == right_cross_entropy()
    assert not is_alive(hung)


async def test_frozen_busy(pool: ProcessPool, tmp_path: Path) -> None:
    frozen = pids(pool)[0]
    assert (await pool.evaluate(job("freezes-once", tmp_path))).cross_entropy == right_cross_entropy()
    assert not is_alive(frozen)


async def test_frozen_busy_is_not_waited_for_as_long_as_for_progress(tmp_path: Path) -> None:
    timeouts = replace(SHORT_TIMEOUTS, frozen_seconds=0.5, progress_seconds=3600.0)
    async with misbehaving_pool(timeouts=timeouts) as pool:
        result = await pool.evaluate(job("freezes-once", tmp_path))
        assert result.cross_entropy == right_cross_entropy()
        assert pool.status()[0].last_death == "froze"


async def test_frozen_starting() -> None:
    pool = ProcessPool(
        cpus(1), replace(SHORT_TIMEOUTS, frozen_seconds=0.5, start_seconds=3600.0), MISBEHAVING
    )
    starting = asyncio.create_task(pool.start())
    await until(lambda: bool(pids(pool)))
    frozen = send_signal(pool, signal.SIGSTOP)
    await starting
    assert not is_alive(frozen)
    assert pool.status()[0].last_death == "froze"
    await pool.close()


async def test_frozen_idle(pool: ProcessPool) -> None:
    frozen = send_signal(pool, signal.SIGSTOP)
    await until(lambda: not is_alive(frozen))
    await until_whole(pool)


async def test_frozen_and_thawed_in_time_is_no_death(pool: ProcessPool, tmp_path: Path) -> None:
    task = await busy(pool, job("good", tmp_path))
    pid = send_signal(pool, signal.SIGSTOP)
    await asyncio.sleep(SHORT_TIMEOUTS.frozen_seconds / 4)
    os.kill(pid, signal.SIGCONT)
    assert (await task).cross_entropy == right_cross_entropy()
    assert pids(pool) == [pid]


# -- the caller cancels


async def test_cancelling_frees_the_worker_within_a_batch(pool: ProcessPool, tmp_path: Path) -> None:
    task = await busy(pool, job("good", tmp_path, 10_000))
    known = pids(pool)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    left = time.monotonic()
    await until_whole(pool)
    assert time.monotonic() - left < 50 * BATCH_SECONDS
    assert pids(pool) == known


async def test_cancelling_frees_every_worker(pair: ProcessPool, tmp_path: Path) -> None:
    task = asyncio.create_task(pair.evaluate(job("good", tmp_path, 10_000)))
    await until(lambda: all(status.busy for status in pair.status()))
    task.cancel()
    await until_whole(pair)
    assert sum(status.restarts for status in pair.status()) == 0


async def test_cancelled_in_the_queue(pool: ProcessPool, tmp_path: Path) -> None:
    running = await busy(pool, job("good", tmp_path))
    waiting = asyncio.create_task(pool.evaluate(job("segfaults", tmp_path)))
    await asyncio.sleep(0)
    waiting.cancel()
    assert (await running).cross_entropy == right_cross_entropy()
    await until_whole(pool)
    assert pool.status()[0].restarts == 0


# -- the worker computes wrongly


async def test_no_worker_is_ready_that_fails_its_self_test() -> None:
    with pytest.raises(NoWorker, match="loss 1 instead of 2"):
        async with misbehaving_pool([WorkerConfig("wrong")]):
            pass


async def test_one_that_begins_to_compute_wrongly_is_taken_out(tmp_path: Path) -> None:
    mark = tmp_path / "wrong"
    timeouts = Timeouts(
        heartbeat_seconds=0.1, restart_seconds=0.05, max_restart_seconds=0.1, self_test_interval_seconds=0.3
    )
    async with misbehaving_pool([WorkerConfig(f"wrong:{mark}")], timeouts) as pool:
        mark.touch()
        await until(lambda: not pool.status()[0].ready)
        with pytest.raises(NoWorker):
            await pool.evaluate(job("good", tmp_path))
        mark.unlink()
        await until_whole(pool)
        assert (await pool.evaluate(job("good", tmp_path))).cross_entropy == right_cross_entropy()


# -- the parent ends

PARENT = """
import asyncio, signal, sys
from tests.workers.processes.pools import cpus, job, misbehaving_pool, pids
from pathlib import Path

async def main():
    async with misbehaving_pool(cpus(2)) as pool:
        print(*pids(pool), flush=True)
        await pool.evaluate(job(sys.argv[1], Path(sys.argv[2]), 10_000))

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts with it ignored
asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["good", "hangs-ignoring-sigterm"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_workers_die_with_their_parent(kind: str, number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, kind, str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: ASYNC220
    assert parent.stdout is not None
    with parent, parent.stdout:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.send_signal(number)
        await until(lambda: parent.poll() is not None and not any(is_alive(pid) for pid in workers))


async def test_ctrl_c_reaches_the_parent_alone(pool: ProcessPool, tmp_path: Path) -> None:
    task = await busy(pool, job("good", tmp_path))
    pid = send_signal(pool, signal.SIGINT)
    assert os.getpgid(pid) != os.getpgid(0)  # a terminal would not even send it
    assert (await task).cross_entropy == right_cross_entropy()
    assert pids(pool) == [pid]


async def test_close_ends_whatever_a_worker_is_doing(tmp_path: Path) -> None:
    async with misbehaving_pool(cpus(2)) as pool:
        task = await busy(pool, job("hangs-ignoring-sigterm", tmp_path))
        send_signal(pool, signal.SIGSTOP)
    with pytest.raises(NoWorker):
        await task
    with pytest.raises(NoWorker):
        await pool.evaluate(job("good", tmp_path))
    assert not any(status.ready for status in pool.status())


# -- what must not leak


def of_process(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


async def test_no_secret_is_to_be_seen(
    pool: ProcessPool, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    key = b"canary-canary-canary-canary-cana"
    task = await busy(pool, job("good", tmp_path, key=key))
    seen = b"".join(of_process(pids(pool)[0], name) for name in ("cmdline", "comm"))
    await task
    with pytest.raises(WorkerCrashed) as raised:
        await pool.evaluate(job("raises-unexpected", tmp_path, key=key))
    out, err = capfd.readouterr()
    assert "unexpected ZeroDivisionError at" in caplog.text  # where it arose, and not what it says
    assert "the text of an unexpected error" not in caplog.text + out + err
    everything = seen + (out + err + caplog.text + repr(raised.value)).encode()
    assert b"canary" not in everything
    assert key.hex().encode() not in everything


async def test_the_services_secrets_are_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMA_EVAL_API_KEYS", "canary")
    async with misbehaving_pool() as pool:
        seen = (await pool.evaluate(job("good", tmp_path))).versions
    assert (seen["settings"], seen["threads"]) == ("", "1")


async def test_no_key_comes_into_a_core_file(pool: ProcessPool, tmp_path: Path) -> None:
    limits = of_process(pids(pool)[0], "limits").decode().splitlines()
    (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
    assert core[4:6] == ["0", "0"]
    assert (await pool.evaluate(job("good", tmp_path))).versions["dumpable"] == "0"


async def test_workers_are_ended_before_the_service_when_memory_runs_out(pool: ProcessPool) -> None:
    ours = int(of_process(os.getpid(), "oom_score_adj"))
    assert int(of_process(pids(pool)[0], "oom_score_adj")) > ours


async def test_what_a_worker_prints_comes_as_lines_of_the_log(
    pool: ProcessPool, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EvaluationCrashesWorker):
        await pool.evaluate(job("segfaults", tmp_path))
    assert "Fatal Python error: Segmentation fault" in caplog.text
    assert "Fatal" not in "".join(capfd.readouterr())


async def test_a_batch_that_takes_long_is_reported_in_part(tmp_path: Path) -> None:
    progress: list[EvalProgress] = []
    async with misbehaving_pool(cpus(2)) as pool:
        await pool.evaluate(job("says-how-far-it-is", tmp_path, 2), progress.append)
    in_part = [each for each in progress if each.batches_in_part]
    assert len(in_part) >= 2
    assert all(0 < each.fraction < 1 for each in in_part)
    assert progress[-1] == EvalProgress("evaluating", 2, 2)
    assert progress[-1].fraction == 1
