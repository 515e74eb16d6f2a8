"""What `soma-eval publish` does: check the weights, upload their ciphertext, check what arrived, hand over the key."""

import asyncio
import errno
import json as json_format
import sys
from dataclasses import dataclass
from pathlib import Path

import base58

from service.cli.check.check_weights import check_weights
from service.cli.commit_steps import Sealed, commit_steps, to_json
from service.cli.diagnosis import Expected, Finding, finding_lines
from service.cli.encrypt.fitness import (
    check_fit,
    print_refusal,
    read_embedding_to_commit,
    refuse_other_embedding,
)
from service.cli.encryption import Commitment, Encrypted, new_key
from service.cli.exit_codes import ExitCode
from service.cli.header_check import Checked
from service.cli.input_file import read_small_file, require_regular_file
from service.cli.keys import parse_key, write_key_file
from service.cli.progress_bars import byte_bar
from service.cli.publish.open_store import open_store
from service.cli.publish.read_back import commitment_in
from service.cli.publish.store import Store, StoreFailed
from service.cli.publish.upload import abort, part_bytes_for, upload
from service.cli.publish.upload_record import UploadRecord, read_record, record_path
from service.cli.standard_streams import complain, write_out
from service.cli.urls import is_url
from service.cli.usage import BadUsage, CommandFailed
from service.config import Settings

_AGAIN = "Run the same command again: what has arrived is not sent again"
_MAX_KEY_BYTES = 4096


def run_publish(
    weights: Path,
    to: str,
    public_url: str | None,
    key_file: Path | None,
    embedding: Path | None,
    *,
    allow_non_finite: bool,
    json: bool,
    settings: Settings,
) -> int:
    """Returns the exit code. Raises BadUsage, CommandFailed, a ScoringError or OSError.

    From before the first byte is sent until the key has been printed or is in its file, it is in the upload's record.
    """
    _refuse_impossible(weights, public_url, key_file)
    committed = None if embedding is None else read_embedding_to_commit(embedding, settings)
    try:
        store = open_store(to)
        with record_path(settings.data_dir, weights, store.name) as path:
            record = read_record(path)
            if record is None:
                _refuse_taken(store, key_file)
            checked = check_fit(weights, settings, allow_non_finite=allow_non_finite)
            if checked.findings:
                print_refusal(weights, checked.findings, "nothing was uploaded")
                return ExitCode.AT_FAULT
            if embedding is not None and committed is not None:
                refuse_other_embedding(embedding, committed, weights, checked, settings)
            record = _record_for(checked, record, path, store, key_file)
            encrypted = _upload(weights, store, record, key_file)
            findings = _check_arrived(
                _Arrived(store, public_url, encrypted, record, settings, allow_non_finite)
            )
            if findings:
                sys.stderr.writelines(f"{line}\n" for line in finding_lines(findings))
                complain(f"{store.name} is not what was sent: do not commit it.")
                return ExitCode.AT_FAULT
            sealed = Sealed(
                weights=weights,
                output=None,
                published=store.name,
                url=public_url,
                key=record.key,
                key_file=key_file,
                embedding_file=embedding,
                embedding_dim=None if committed is None else len(committed.embedding),
                checksum=encrypted.checksum,
                plain_checksum=encrypted.plain_checksum,
                size=encrypted.size,
                allow_non_finite=allow_non_finite,
            )
            _print(json_format.dumps(to_json(sealed)) + "\n" if json else commit_steps(sealed, settings))
            record.delete()
    except StoreFailed as error:
        raise CommandFailed(str(error)) from error
    return ExitCode.GOOD


def _refuse_impossible(weights: Path, public_url: str | None, key_file: Path | None) -> None:
    require_regular_file(weights)
    if sys.stdout is None:
        raise CommandFailed("standard output cannot be written (it is closed): nothing was uploaded")
    if public_url is not None and not is_url(public_url):
        raise BadUsage("--public-url is not an http(s) URL")
    if key_file is not None and not key_file.parent.is_dir():
        raise BadUsage(f"{key_file.parent}: there is no such folder")


def _refuse_taken(store: Store, key_file: Path | None) -> None:
    """Before a new upload. An interrupted one goes on."""
    if key_file is not None and (key_file.exists() or key_file.is_symlink()):
        raise BadUsage(f"{key_file} exists, and nothing is overwritten: choose another name or remove it")
    if store.size() is not None:
        raise BadUsage(f"{store.name} exists, and nothing is overwritten: choose another name or remove it")


def _record_for(
    checked: Checked, record: UploadRecord | None, path: Path, store: Store, key_file: Path | None
) -> UploadRecord:
    """The record of the interrupted upload of these bytes, or a new one; its key is durable, also in the key's file."""
    assert checked.checksum is not None
    if record is not None and record.plain_checksum != checked.checksum:
        complain("The weights are not those whose upload was interrupted: it begins anew, with a new key.")
        _forget(store, record, key_file)
        record = None
    if record is None:
        key = base58.b58encode(new_key()).decode()
        record = UploadRecord(path, key, checked.checksum, part_bytes_for(checked.size or 0))
        record.save()
    elif record.upload_id is not None:
        complain("An interrupted upload goes on: what has arrived is not sent again.")
    if key_file is not None:
        _keep_key(key_file, record.key)
    return record


def _keep_key(key_file: Path, key: str) -> None:
    if not key_file.exists():
        write_key_file(key_file, key)
    elif not _holds(key_file, key):
        raise BadUsage(
            f"{key_file} exists and holds something else than this upload's key: choose another name"
        )


def _holds(key_file: Path, key: str) -> bool:
    return read_small_file(key_file, _MAX_KEY_BYTES).strip() == key.encode()


def _forget(store: Store, record: UploadRecord, key_file: Path | None) -> None:
    """Give up an upload, and its key: no other bytes may be encrypted with it."""
    abort(store, record)
    if key_file is not None and key_file.exists() and _holds(key_file, record.key):
        key_file.unlink()
    record.delete()


def _upload(weights: Path, store: Store, record: UploadRecord, key_file: Path | None) -> Encrypted:
    size = weights.stat().st_size
    try:
        with byte_bar("uploading") as report:
            encrypted = asyncio.run(
                upload(weights, parse_key(record.key), store, record, lambda done: report(done, size))
            )
    except BaseException as error:
        has_begun = record.upload_id is not None
        if not has_begun:
            _forget(store, record, key_file)
        if isinstance(error, StoreFailed | OSError):
            reason = (
                str(error) if isinstance(error, StoreFailed) else (error.strerror or type(error).__name__)
            )
            raise CommandFailed(f"{reason}. {_AGAIN}" if has_begun else reason) from error
        if has_begun:
            complain(f"{_AGAIN}.")
        raise
    if encrypted.plain_checksum != record.plain_checksum:
        _forget(store, record, key_file)
        raise OSError(errno.EAGAIN, "it changed while it was uploaded: the upload was given up", str(weights))
    return encrypted


@dataclass(frozen=True, slots=True)
class _Arrived:
    """What arrived, and what it is to be."""

    store: Store
    public_url: str | None
    sent: Commitment
    record: UploadRecord
    settings: Settings
    allow_non_finite: bool


def _check_arrived(arrived: _Arrived) -> list[Finding]:
    """Read every byte where validators will, or in the store itself where nobody has said where that is."""
    if arrived.public_url is not None:
        return _check_url(arrived, arrived.public_url)
    with byte_bar("checking") as report:
        found = commitment_in(arrived.store, lambda done: report(done, arrived.sent.size))
    if found == Commitment(arrived.sent.checksum, arrived.sent.size):
        return []
    arrived.record.start_over()
    arrived.record.save()
    detail = (
        f"of {arrived.sent.size:,} bytes sent, {found.size:,} arrived, and the checksum is {found.checksum}"
    )
    return [
        Finding("checksum-mismatch", detail, f"remove {arrived.store.name}, and run the same command again")
    ]


def _check_url(arrived: _Arrived, url: str) -> list[Finding]:
    sent = arrived.sent
    expected = Expected(parse_key(arrived.record.key), sent.checksum, sent.size)
    with byte_bar("checking") as report:
        checked = asyncio.run(
            check_weights(
                *(url, expected, arrived.settings),
                full=True,
                allow_non_finite=arrived.allow_non_finite,
                on_bytes=report,
            )
        )
    return checked.findings


def _print(text: str) -> None:
    """Raises CommandFailed, which says where the key is."""
    try:
        write_out(text)
    except CommandFailed as error:
        raise CommandFailed(
            f"{error}: it is uploaded, and its key is kept. Run the same command again to see it"
        ) from error
