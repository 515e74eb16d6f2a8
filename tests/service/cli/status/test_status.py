"""`status` of a service that is there, of one that is not, and of what is none."""

import json
import re
import signal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

from service.cli.status.run import screen
from service.cli.status.state import ServiceState
from tests.live_service import LiveService
from tests.service.cli.command import InProcess, start_command


def test_a_running_service_on_one_screen(in_plain: InProcess, service: LiveService) -> None:
    ran = in_plain.run("status", service.http_url, "--json")
    assert ran.code == 0, ran.err
    state = ran.json
    assert (state["status"], state["precision"], state["reason"]) == ("ready", "float32", "")
    assert [device["ready"] for device in state["devices"]] == [True]
    assert state["queue"].keys() == {"admitted", "evaluations_waiting", "weights_waiting", "size"}
    assert state["cache_bytes"] >= 0
    assert state["versions"]["soma-eval"] == state["version"]
    text = in_plain.run("status", service.http_url).out
    assert text.startswith(f"service  {service.http_url} is ready\n")
    assert re.search(r"^device   cpu .*ready$", text, re.MULTILINE)


def test_on_a_narrow_terminal_a_line_goes_on_below_its_text() -> None:
    state = ServiceState("http://127.0.0.1:8000", "no-worker", "the device is lost " * 8)
    lines = screen(state, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line[:9].strip() for line in lines] == ["service", "", ""]
    assert len(screen(state, 1000).splitlines()) == 1


def test_where_nothing_answers(in_plain: InProcess) -> None:
    ran = in_plain.run("status", "http://127.0.0.1:9", "--json")
    assert (ran.code, ran.json["status"], ran.json["reason"]) == (3, "unreachable", "nothing listens there")
    by_default = in_plain.run("status", SOMA_EVAL_PORT="9")
    assert by_default.out == "service  http://127.0.0.1:9 is unreachable: nothing listens there\n"
    assert in_plain.run("status", "127.0.0.1:9").code == 2


def test_what_is_no_service_is_said_to_be_none(in_plain: InProcess) -> None:
    class Odd(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ready?", "devices": 3, "versions": [1]}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        ran = in_plain.run("status", f"http://127.0.0.1:{server.server_address[1]}", "--json")
        server.shutdown()
        thread.join()
    assert (ran.code, ran.json["status"]) == (3, "unreachable")
    assert ran.json["reason"] == "what answers there is not soma-eval"


def test_watching_goes_on_until_it_is_interrupted(plain: Path, service: LiveService) -> None:
    process = start_command(plain, "status", service.http_url, "--watch", "--json")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [json.loads(line)["status"] for line in lines] == ["ready", "ready"]
