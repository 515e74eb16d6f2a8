"""What `soma-eval encrypt` does: check the weights, encrypt them, and print what a commit needs."""

import asyncio
import errno
import json as json_format
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import base58

from service.cli.check.check_weights import NON_FINITE, check_weights
from service.cli.diagnosis import Expected, Finding, finding_lines
from service.cli.embedding_file import EmbeddingFile, read_embedding_file
from service.cli.encrypt.commit_steps import Sealed, commit_steps, embedding_command
from service.cli.encrypt.new_file import named_when_done
from service.cli.encryption import encrypt_file, new_key
from service.cli.exit_codes import ExitCode
from service.cli.header_check import Checked, model_config
from service.cli.input_file import require_regular_file
from service.cli.keys import parse_key
from service.cli.progress_bars import byte_bar
from service.cli.standard_streams import complain, write_out
from service.cli.usage import BadUsage, CommandFailed
from service.config import Settings
from service.download.partial_file import sync_folder
from workers.architectures import CURRENT_VERSION


def run_encrypt(
    weights: Path,
    output: Path,
    key: str | None,
    key_file: Path | None,
    embedding: Path | None,
    *,
    allow_non_finite: bool,
    json: bool,
    settings: Settings,
) -> int:
    """Returns the exit code. Raises BadUsage, or OSError; nothing is left behind then.

    The ciphertext gets its name last, when its key has been printed or is in its file.
    """
    _refuse_impossible(weights, output, key, key_file)
    secret = new_key() if key is None else parse_key(key)
    committed = None if embedding is None else _read_embedding(embedding, settings)
    checked = _check(weights, settings, allow_non_finite=allow_non_finite)
    if checked.findings:
        _print_refusal(weights, checked.findings)
        return ExitCode.AT_FAULT
    if embedding is not None and committed is not None and committed.checksum != checked.checksum:
        raise BadUsage(
            f"--embedding {embedding}: this is the embedding of other weights, then named {committed.weights}: "
            f"nothing was written. Make that of this file: {embedding_command(weights, embedding, settings)}"
        )
    text = base58.b58encode(secret).decode()
    with _written_for_owner(key_file, text), named_when_done(output) as unfinished:
        with byte_bar("encrypting") as report:
            encrypted = encrypt_file(weights, unfinished, secret, lambda done: report(done, checked.size))
        if encrypted.plain_checksum != checked.checksum:
            raise OSError(
                errno.EAGAIN, "it changed while it was encrypted: nothing was written", str(weights)
            )
        sealed = Sealed(
            weights=weights,
            output=output,
            key=text,
            key_file=key_file,
            embedding_file=embedding,
            embedding_dim=None if committed is None else len(committed.embedding),
            checksum=encrypted.checksum,
            plain_checksum=encrypted.plain_checksum,
            size=encrypted.size,
            allow_non_finite=allow_non_finite,
        )
        _print(output, json_format.dumps(_to_json(sealed)) + "\n" if json else commit_steps(sealed, settings))
    return ExitCode.GOOD


def _check(weights: Path, settings: Settings, *, allow_non_finite: bool) -> Checked:
    with byte_bar("reading") as report:
        return asyncio.run(
            check_weights(
                *(str(weights), Expected(), settings),
                full=True,
                allow_non_finite=allow_non_finite,
                on_bytes=report,
            )
        )


def _print_refusal(weights: Path, findings: Sequence[Finding]) -> None:
    not_encrypted_yet = "give the file that Model.save wrote"
    own = [replace(f, remedy=not_encrypted_yet) if f.code == "no-header" else f for f in findings]
    sys.stderr.writelines(f"{line}\n" for line in finding_lines(own))
    complain(f"{weights} is not fit to commit: nothing was written.")
    if any(finding.code == NON_FINITE for finding in findings):
        complain("--allow-non-finite encrypts it all the same.")


def _refuse_impossible(weights: Path, output: Path, key: str | None, key_file: Path | None) -> None:
    if key is not None and key_file is not None:
        raise BadUsage("--key and --key-file exclude each other: --key-file is where a new key is written")
    require_regular_file(weights)
    for path in (output, key_file):
        if path is not None and (path.exists() or path.is_symlink()):
            raise BadUsage(f"{path} exists, and nothing is overwritten: choose another name or remove it")
        if path is not None and not path.parent.is_dir():
            raise BadUsage(f"{path.parent}: there is no such folder")
    if key_file is not None and key_file.absolute() == output.absolute():
        raise BadUsage("the key and the weights cannot go to one file")


def _read_embedding(path: Path, settings: Settings) -> EmbeddingFile:
    """An embedding that the network could have computed. Raises BadUsage or OSError."""
    embedding = read_embedding_file(path)
    dim = model_config(settings).embedding_dim
    if len(embedding.embedding) != dim:
        raise BadUsage(
            f"--embedding {path}: it has {len(embedding.embedding):,} numbers, an embedding of this model "
            f"{dim:,}: is it that of the other size of model?"
        )
    if embedding.precision != "float32" or embedding.architecture_version != CURRENT_VERSION:
        raise BadUsage(
            f"--embedding {path}: it was computed in {embedding.precision}, by architecture version "
            f"{embedding.architecture_version}; the network's is float32, version {CURRENT_VERSION}: score again"
        )
    return embedding


@contextmanager
def _written_for_owner(path: Path | None, text: str) -> Iterator[None]:
    """The key is durable in its file, if there is to be one, within the block; the file goes if the block fails."""
    if path is None:
        yield
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _print(output: Path, text: str) -> None:
    """Raises CommandFailed, which says that there is no output either."""
    try:
        write_out(text)
    except CommandFailed as error:
        raise CommandFailed(f"{error}: {output} was not written") from error


def _to_json(sealed: Sealed) -> dict[str, Any]:
    return {
        "key": sealed.key if sealed.key_file is None else None,
        "key_file": _text(sealed.key_file),
        "checksum": sealed.checksum,
        "size": sealed.size,
        "path": str(sealed.output),
        "plain_checksum": sealed.plain_checksum,
        "embedding_file": _text(sealed.embedding_file),
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
