"""What `check` says of uploads that went wrong, each in its own words, from a file and over the network."""

import asyncio
import json
import os
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import base58
import numpy as np
import pytest

from service.cache.folder import lock, make_private_folder
from service.checksum import checksum_of
from service.cli.check.check_weights import check_weights, parse_expected
from service.cli.diagnosis import Expected
from service.cli.header_check import Checked
from service.cli.usage import BadUsage
from service.config import Settings
from service.errors import BlobUnavailable, ForbiddenUrl
from service.lifespan import open_cache
from tests.file_server import FileServer
from tests.odd_weights_files import FILES as ODD_FILES
from tests.recipe import (
    SMALL_CONFIG,
    SMALL_WEIGHTS,
    TEST_KEY,
    RawTensor,
    Tensors,
    encrypt,
    golden_weights_files,
    make_weights,
    safetensors_bytes,
    safetensors_file,
    safetensors_parts,
    small_weights_bytes,
)
from tests.service.cli.command import SMALL, InProcess

KEY = base58.b58encode(TEST_KEY).decode()
PLAIN = small_weights_bytes()
SEALED = encrypt(PLAIN)
HTML = b"<!DOCTYPE html>\n<html><body>Sign in to see this file</body></html>\n"
S3_ERROR = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'
QUERY = "encoder.layers.0.attention.query.weight"

Look = Callable[..., Awaitable[Checked]]
SEALED_EXPECTED = Expected(TEST_KEY, checksum_of(SEALED), len(SEALED))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None,  # type: ignore[call-arg]  # pydantic-settings takes it, its stub does not show it
        small_model=True,
        data_dir=tmp_path / "data",
        allow_http=True,
        allow_private_addresses=True,
        max_download_attempts=1,
    )


@pytest.fixture
def look(tmp_path: Path, settings: Settings) -> Look:
    async def look(content: bytes, expected: Expected = SEALED_EXPECTED, full: bool = False) -> Checked:
        (tmp_path / "file").write_bytes(content)
        return await check_weights(str(tmp_path / "file"), expected, settings, full=full)

    return look


def changed(change: Callable[[Tensors], object]) -> bytes:
    tensors = make_weights(SMALL_CONFIG, SMALL_WEIGHTS)
    change(tensors)
    return safetensors_bytes(tensors)


def transpose_inner(tensors: Tensors) -> None:
    name = "encoder.layers.0.pwff.linear_inner.weight"
    tensors[name] = tensors[name].T.copy()


def drop_two(tensors: Tensors) -> None:
    del tensors["predictor.bias"], tensors["final_norm.beta"]


BROKEN: dict[str, tuple[bytes, Expected, list[str], str]] = {
    "truncated": (SEALED[:-1000], Expected(TEST_KEY), ["truncated"], "cut off: it has"),
    "truncated-in-header": (SEALED[:900], Expected(TEST_KEY), ["truncated"], "within its header"),
    "truncated-and-expected": (
        SEALED[:-1000],
        Expected(TEST_KEY, size=len(SEALED)),
        ["size-mismatch", "truncated"],
        "were expected",
    ),
    "empty": (b"", Expected(TEST_KEY), ["truncated"], "nothing is in it"),
    "trailing": (encrypt(PLAIN + b"more"), Expected(TEST_KEY), ["trailing-bytes"], "4 bytes follow"),
    "wrong-key": (SEALED, Expected(bytes(32)), ["wrong-key"], "key does not fit"),
    "no-key": (SEALED, Expected(), ["no-header"], "encrypted"),
    "key-for-plain": (PLAIN, Expected(TEST_KEY), ["not-encrypted"], "not encrypted"),
    "html": (HTML, SEALED_EXPECTED, ["size-mismatch", "not-weights", "checksum-mismatch"], "were expected"),
    "html-alone": (HTML, Expected(TEST_KEY), ["not-weights"], "an HTML page"),
    "storage-error": (S3_ERROR, Expected(TEST_KEY), ["not-weights"], "an XML answer"),
    "torch-save": (b"PK\x03\x04" + bytes(200), Expected(), ["not-weights"], "torch.save"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", Expected(), ["not-weights"], "Git LFS"),
    "zeros": (bytes(5000), Expected(), ["not-weights"], "zeros"),
    "other-checksum": (SEALED, Expected(TEST_KEY, checksum_of(b"")), ["checksum-mismatch"], "not the one"),
    "plain-checksum": (
        SEALED,
        Expected(TEST_KEY, checksum_of(PLAIN)),
        ["checksum-mismatch"],
        "before encryption",
    ),
    "swapped": (
        SEALED,
        Expected(base58.b58decode(checksum_of(SEALED)), base58.b58encode(TEST_KEY).decode()),
        ["swapped", "checksum-mismatch"],
        "the checksum is the key",
    ),
    "transposed": (
        encrypt(changed(transpose_inner)),
        Expected(TEST_KEY),
        ["transposed-tensor"],
        "linear_inner.weight is transposed: [32, 16] in place of [16, 32]",
    ),
    "missing": (
        encrypt(changed(drop_two)),
        Expected(TEST_KEY),
        ["missing-tensor", "missing-tensor"],
        "final_norm.beta is missing",
    ),
    "float8": (
        safetensors_bytes(
            {**make_weights(SMALL_CONFIG, SMALL_WEIGHTS), QUERY: RawTensor("F8_E4M3", (16, 16), bytes(256))}
        ),
        Expected(),
        ["wrong-dtype"],
        "F8_E4M3",
    ),
    "prefixed": (
        safetensors_bytes(
            {f"_orig_mod.{n}": t for n, t in make_weights(SMALL_CONFIG, SMALL_WEIGHTS).items()}
        ),
        Expected(),
        ["prefixed-names"],
        "_orig_mod.",
    ),
    "no-object": (safetensors_file(b"[1, 2, 3]", b""), Expected(), ["no-header"], "not a weights file"),
    "no-json": (safetensors_file(b'{"a": [}', b""), Expected(), ["header-invalid"], "not JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_file_is_named_for_what_it_is(look: Look, name: str) -> None:
    content, expected, codes, words = BROKEN[name]
    checked = await look(content, expected)
    assert [finding.code for finding in checked.findings] == codes
    assert words in checked.findings[0].detail
    assert all(finding.remedy for finding in checked.findings)
    assert not any("upload" in finding.remedy or "URL" in finding.remedy for finding in checked.findings)


@pytest.mark.parametrize("name", BROKEN)
async def test_the_same_over_the_network(files: FileServer, settings: Settings, name: str) -> None:
    content, expected, codes, words = BROKEN[name]
    checked = await check_weights(files.publish("broken", content), expected, settings)
    found = [code for code in codes if code != "checksum-mismatch"]
    assert [finding.code for finding in checked.findings] == found
    if found:
        assert words in checked.findings[0].detail
    if {"truncated", "size-mismatch", "not-encrypted"} & set(found):
        assert "upload" in checked.findings[0].remedy
    assert any("--full" in remark for remark in checked.remarks) == (expected.checksum is not None)


@pytest.mark.parametrize("name", ODD_FILES)
async def test_what_is_accepted_is_what_the_network_accepts(look: Look, name: str) -> None:
    content = ODD_FILES[name]()
    for published, expected in ((content, Expected()), (encrypt(content), Expected(TEST_KEY))):
        checked = await look(published, expected)
        assert (not checked.findings) == golden_weights_files()[name]["accepted"], checked.findings


async def test_what_is_right_is_accepted(look: Look) -> None:
    checked = await look(SEALED)
    assert checked.findings == []
    assert [remark.partition(":")[0] for remark in checked.remarks] == [
        "checked as the small model, for trying things"
    ]
    assert (checked.checksum, checked.size) == (SEALED_EXPECTED.checksum, SEALED_EXPECTED.size)


async def test_the_header_alone_moves(tmp_path: Path, settings: Settings, files: FileServer) -> None:
    large = safetensors_bytes(
        {**make_weights(SMALL_CONFIG, SMALL_WEIGHTS), "extra": RawTensor("U8", (1 << 24,), bytes(1 << 24))}
    )
    checked = await check_weights(files.publish("large", encrypt(large)), Expected(TEST_KEY), settings)
    assert not checked.findings
    assert checked.checksum is None
    assert not settings.data_dir.exists()


async def test_full_downloads_and_verifies(files: FileServer, settings: Settings) -> None:
    url = files.publish("sealed", SEALED)
    checked = await check_weights(url, SEALED_EXPECTED, settings, full=True)
    assert (checked.findings, checked.is_whole) == ([], True)
    swapped = Expected(TEST_KEY, checksum_of(PLAIN), len(SEALED))
    checked = await check_weights(url, swapped, settings, full=True)
    assert [finding.code for finding in checked.findings] == ["checksum-mismatch"]


async def test_full_works_beside_a_running_service_and_leaves_nothing(
    files: FileServer, settings: Settings
) -> None:
    url = files.publish("sealed.enc", SEALED)
    async with open_cache(settings):
        before = sorted(settings.data_dir.rglob("*"))
        checked = await check_weights(url, SEALED_EXPECTED, settings, full=True)
        assert (checked.findings, checked.is_whole) == ([], True)
        assert list((settings.data_dir / "commands").iterdir()) == []
        assert sorted(settings.data_dir.rglob("*")) == sorted([*before, settings.data_dir / "commands"])


async def test_what_a_killed_command_left_is_deleted_by_the_next(
    files: FileServer, settings: Settings
) -> None:
    left = make_private_folder(settings.data_dir)
    (left / "blobs").mkdir()
    os.utime(left, (0, 0))
    in_use = make_private_folder(settings.data_dir)
    assert not left.exists()
    fd = lock(in_use)
    os.utime(in_use, (0, 0))
    await check_weights(files.publish("sealed.enc", SEALED), SEALED_EXPECTED, settings, full=True)
    assert in_use.exists()
    os.close(fd)


@pytest.mark.parametrize("start", ["", "  "], ids=["", "after-spaces"])
async def test_a_long_header_is_fetched_whole(files: FileServer, settings: Settings, start: str) -> None:
    header, bodies = safetensors_parts(make_weights(SMALL_CONFIG, SMALL_WEIGHTS), {"note": "x" * 400_000})
    long = safetensors_file(start + json.dumps(header), b"".join(bodies))
    files.requests.clear()
    url = files.publish("long", encrypt(long))
    assert not (await check_weights(url, Expected(TEST_KEY), settings)).findings
    assert files.requests.count("/long") == 2


async def test_values_that_are_not_finite_are_named(look: Look) -> None:
    tensors = make_weights(SMALL_CONFIG, SMALL_WEIGHTS)
    tensors[QUERY][0, :3] = np.nan
    tensors["final_norm.beta"][1] = -np.inf
    content = safetensors_bytes(tensors)
    for published, expected in ((content, Expected()), (encrypt(content), Expected(TEST_KEY))):
        checked = await look(published, expected, full=True)
        details = [finding.detail for finding in checked.findings]
        assert details == [f"{QUERY}: 3 NaN of 256 values", "final_norm.beta: 1 infinite of 16 values"]
        assert {finding.code for finding in checked.findings} == {"non-finite-weights"}
        assert not (await look(published, expected, full=False)).findings  # the header alone cannot tell


async def test_values_that_are_not_finite_may_be_allowed(tmp_path: Path, settings: Settings) -> None:
    tensors = make_weights(SMALL_CONFIG, SMALL_WEIGHTS)
    tensors["predictor.bias"][0] = np.nan
    (tmp_path / "file").write_bytes(safetensors_bytes(tensors))
    checked = await check_weights(
        str(tmp_path / "file"), Expected(), settings, full=True, allow_non_finite=True
    )
    assert not checked.findings
    assert "predictor.bias: 1 NaN of 264 values, as you allow" in checked.remarks


async def test_reading_ends_when_it_is_cancelled(tmp_path: Path, settings: Settings) -> None:
    extra = RawTensor("U8", (200 << 20,), bytes(200 << 20))
    (tmp_path / "file").write_bytes(
        safetensors_bytes({**make_weights(SMALL_CONFIG, SMALL_WEIGHTS), "extra": extra})
    )
    loop, seen = asyncio.get_running_loop(), []

    def cancel(done: int, total: int | None) -> None:
        seen.append(done)
        loop.call_soon_threadsafe(checking.cancel)
        time.sleep(0.05)  # in the thread that reads: slower than the cancel

    checking = asyncio.create_task(
        check_weights(str(tmp_path / "file"), Expected(), settings, full=True, on_bytes=cancel)
    )
    with pytest.raises(asyncio.CancelledError):
        await checking
    await loop.shutdown_default_executor()
    assert seen[-1] < 200 << 20


async def test_the_other_size_of_model_is_named(look: Look, settings: Settings) -> None:
    tiny = {**SMALL_CONFIG}
    full = settings.model_copy(update={"small_model": False})
    path = settings.data_dir.parent / "small"
    path.write_bytes(safetensors_bytes(make_weights(tiny, SMALL_WEIGHTS)))
    checked = await check_weights(str(path), Expected(), full)
    assert [finding.code for finding in checked.findings] == ["other-model"]


async def test_names_out_of_the_file_are_escaped(look: Look) -> None:
    prefix = "\x1b[2J\n"
    hostile = {f"{prefix}{name}": t for name, t in make_weights(SMALL_CONFIG, SMALL_WEIGHTS).items()}
    checked = await look(safetensors_bytes(hostile), Expected())
    assert "\x1b" not in checked.findings[0].detail


async def test_trouble_on_the_way_is_no_finding(files: FileServer, settings: Settings) -> None:
    with pytest.raises(BlobUnavailable):
        await check_weights(f"{files.base_url}/nothing-here", Expected(), settings)
    with pytest.raises(ForbiddenUrl):
        await check_weights(
            f"{files.base_url}/x", Expected(), settings.model_copy(update={"allow_http": False})
        )


def test_a_checksum_that_can_be_none_is_refused() -> None:
    with pytest.raises(BadUsage):
        parse_expected(None, "0OIl", None)


def test_check_says_what_to_do(in_process: InProcess) -> None:
    ran = in_process.run("check", "sealed.enc", *SMALL, "--key", base58.b58encode(bytes(32)).decode())
    assert ran.code == 1
    assert ran.out.startswith("✗ the key does not fit: decrypting gives no safetensors header → give the key")
    assert ran.out.endswith("Refused: 1 finding. Do not commit this.\n")
    ran = in_process.run("check", "sealed.enc", "--small-model", "--json", SOMA_EVAL_KEY=KEY)
    assert (ran.code, ran.json["accepted"], ran.json["findings"]) == (0, True, [])
    ran = in_process.run("check", "sealed.enc", "--small-model", "--key-file", "key")
    assert "Accepted" not in ran.out  # by the header alone
    assert "add --full before you commit" in ran.out


def test_a_hostile_header_is_explained_in_bounded_memory(settings: Settings, tmp_path: Path) -> None:
    text = b'{"a":[' + b"{}," * 2_000_000 + b"{}]}"
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text)
    tracemalloc.start()
    try:
        checked = asyncio.run(check_weights(str(tmp_path / "file"), Expected(), settings))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [finding.code for finding in checked.findings] == ["header-invalid"]
    assert peak < 10 * len(text)  # as Python's objects it takes more than 20 times its length
