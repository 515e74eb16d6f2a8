"""`checksum` prints what the network's own client computes."""

from pathlib import Path

from soma_sdk import SomaClient

from tests.recipe import small_weights_bytes
from tests.service.cli.command import InProcess


def test_it_is_the_networks(in_plain: InProcess, plain: Path) -> None:
    (plain / "empty").write_bytes(b"")
    ran = in_plain.run("checksum", "plain.safetensors", "empty")
    content = small_weights_bytes()
    assert ran.out.splitlines() == [
        f"{SomaClient.commitment(content)}  {len(content)}  plain.safetensors",
        f"{SomaClient.commitment(b'')}  0  empty",
    ]
    found = in_plain.run("checksum", "empty", "--json").json
    assert found == {"path": "empty", "checksum": SomaClient.commitment(b""), "size": 0}


def test_what_is_no_file_is_refused_before_any_is_read(in_plain: InProcess) -> None:
    ran = in_plain.run("checksum", "plain.safetensors", "nowhere")
    assert (ran.code, ran.out) == (2, "")
