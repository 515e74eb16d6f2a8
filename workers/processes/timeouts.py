"""How long a supervisor waits for what."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The limits of a worker process and of its restarts."""

    heartbeat_seconds: float = 0.5
    """Between two heartbeats."""
    frozen_seconds: float = 10.0
    """Silence after which a worker counts as frozen; one that starts or is busy, if the system says that it is
    stopped too."""
    progress_seconds: float = 180.0
    """Without progress of a task after which a worker counts as hung. The longest step of full V1 on a CPU is a
    feed-forward layer of one sequence, 0.7 s on two cores and ten times that for denormal weights; an operation
    that delays the heartbeats, such as parsing the largest header, must end within this time too."""
    start_seconds: float = 300.0
    """From spawn to a passed self-test. Nothing else limits a start that was not stopped: while a library is opened
    from a cold disk, no thread of the process runs."""
    self_test_seconds: float = 60.0
    """From the request for another self-test to its result."""
    stop_seconds: float = 15.0
    """From the request to stop a task to SIGTERM."""
    terminate_seconds: float = 3.0
    """From SIGTERM to SIGKILL."""
    restart_seconds: float = 0.2
    """Before the first restart; doubles with each death in a row, and is jittered."""
    max_restart_seconds: float = 30.0
    """The longest wait before a restart. A worker that ran longer than this was sound: its death starts a new row."""
    out_of_service_seconds: float = 60.0
    """Before the first restart of a device that is out of service; doubles each time it is taken out again."""
    max_out_of_service_seconds: float = 900.0
    self_test_interval_seconds: float = 60.0
    """Age of a self-test at which an idle worker takes another."""
