"""A Ray cluster on this machine for tests, the demo and the benchmark: each node a `ray start` of its own.

Nothing is left behind: each node and all that it started are ended with it, by their process ids.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_START_SECONDS = 120.0
_STORE_BYTES = 150_000_000


class LocalNode:
    """One node: a `ray start --block` and the processes below it."""

    def __init__(
        self, name: str, *options: str, environment: dict[str, str], namespace: "Namespace | None" = None
    ) -> None:
        self.name = name
        self._log = tempfile.NamedTemporaryFile("w+b", prefix="ray-node-")  # noqa: SIM115  closed in `end`
        command = namespace.command() if namespace else []
        command += [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-name", name]
        self.process = subprocess.Popen(
            [*command, "--disable-usage-stats", "--include-log-monitor", "false", *options],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self._known: dict[int, psutil.Process] = {}

    def output(self) -> str:
        """What `ray start` printed."""
        return Path(self._log.name).read_text(errors="replace")

    def processes(self, *names: str) -> list[psutil.Process]:
        """Those below it that run now, whose name or first argument begins with one of these; all without a name."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self._known.setdefault(process.pid, process)
        return [
            each for each in self._known.values() if _runs(each) and (not names or _is_one_of(each, names))
        ]

    def raylet(self) -> psutil.Process:
        """The node's raylet."""
        return self.processes("raylet")[0]

    def actors(self) -> list[psutil.Process]:
        """The processes of our actors."""
        return self.processes("ray::RelayActor")

    def workers(self) -> list[psutil.Process]:
        """Worker processes of soma-eval."""
        return [each for each in self.processes() if any("workers." in word for word in _command(each))]

    def freeze(self) -> None:
        """Stop every process of the node, as when its machine hangs or is cut off."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Kill the node and all that is below it."""
        self.processes()
        self.process.kill()
        self.process.wait()
        for process in self._known.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(self._known.values()), timeout=10)
        self._log.close()


class LocalCluster:
    """A head without devices, and nodes that come and go."""

    def __init__(self, *, with_token: bool = True, tuned: bool = True, host: str = "127.0.0.1") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets lie below it
        self.host = host
        self.address = f"{host}:{free_port()}"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment["RAY_BACKEND_LOG_LEVEL"] = "error"
        if with_token:
            self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        if tuned:  # a node that is gone is noticed within seconds; by default within a minute
            self.environment |= {
                "RAY_health_check_initial_delay_ms": "1000",
                "RAY_health_check_period_ms": "1000",
                "RAY_health_check_timeout_ms": "2000",
                "RAY_health_check_failure_threshold": "3",
            }
        self.nodes: list[LocalNode] = []
        """The head first."""
        self.start_again()

    def start_again(self, *names: str) -> None:
        """A new cluster at the same address, with these nodes; the one before has ended."""
        self.nodes.clear()
        port = self.address.rpartition(":")[2]
        options = ["--num-cpus", "0", "--include-dashboard", "false", "--temp-dir", str(self.folder)]
        options += ["--ray-client-server-port", str(free_port())]
        self._start("head", None, "--head", "--port", port, *options)
        for name in names:
            self.add_node(name)

    def add_node(self, name: str, namespace: "Namespace | None" = None) -> LocalNode:
        """One more node, running, which lends one processor; in a network namespace, if one is given."""
        return self._start(name, namespace, "--address", self.address, "--num-cpus", "1")

    def _start(self, name: str, namespace: "Namespace | None", *options: str) -> LocalNode:
        host = namespace.host_inside if namespace else self.host
        options += ("--min-worker-port", "0", "--max-worker-port", "0")  # any that is free
        options += ("--object-store-memory", str(_STORE_BYTES), "--node-ip-address", host, "--num-gpus", "0")
        node = LocalNode(name, *options, environment=self.environment, namespace=namespace)
        self.nodes.append(node)
        end = time.monotonic() + _START_SECONDS
        while "Ray runtime started" not in node.output():
            if node.process.poll() is not None or time.monotonic() > end:
                said = node.output()
                self.nodes.remove(node)
                node.end()
                raise RuntimeError(f"node {name} did not start:\n{said}")
            time.sleep(0.1)
        return node

    def end(self) -> None:
        """Kill every node."""
        for node in reversed(self.nodes):
            node.thaw()
            node.end()
        shutil.rmtree(self.folder, ignore_errors=True)


class Namespace:
    """A network of its own that reaches this machine at one address, and nothing else."""

    def __init__(self) -> None:
        self.name = f"soma{secrets.token_hex(3)}"
        number = secrets.randbelow(250) + 2
        self.host, self.host_inside = f"10.213.{number}.1", f"10.213.{number}.2"
        self._link = f"{self.name}a"
        inside = f"{self.name}b"
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", inside, "netns", self.name)
        _ip("address", "add", f"{self.host}/30", "dev", self._link)
        _ip("link", "set", self._link, "up")
        for command in (
            f"address add {self.host_inside}/30 dev {inside}",
            f"link set {inside} up",
            "link set lo up",
        ):
            _ip("-netns", self.name, *command.split())

    def command(self) -> list[str]:
        """What runs another command inside."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Nothing comes in or out any more."""
        _ip("link", "set", self._link, "down")

    def mend(self) -> None:
        """As before."""
        _ip("link", "set", self._link, "up")

    def end(self) -> None:
        """Remove it."""
        _ip("link", "delete", self._link)
        _ip("netns", "delete", self.name)


@contextlib.contextmanager
def network_namespace() -> Iterator[Namespace]:
    """A namespace for the length of the block. Raises OSError or CalledProcessError where none can be made."""
    namespace = Namespace()
    try:
        yield namespace
    finally:
        namespace.end()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def local_cluster(
    *, with_token: bool = True, tuned: bool = True, host: str = "127.0.0.1"
) -> Iterator[LocalCluster]:
    """A cluster for the length of the block; this process's environment has its token meanwhile."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    cluster = None
    try:
        cluster = LocalCluster(with_token=with_token, tuned=tuned, host=host)
        ours = {name: value for name, value in cluster.environment.items() if name.startswith("RAY_")}
        os.environ.update(ours)
        yield cluster
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]
        os.environ.update(before)
        if cluster:
            cluster.end()


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def _is_one_of(process: psutil.Process, names: tuple[str, ...]) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name().startswith(names) or "".join(_command(process)[:1]).startswith(names)
    return False
