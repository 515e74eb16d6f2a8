"""What `soma-eval encrypt` does: check the weights, encrypt them, and print what a commit needs."""

import errno
import json as json_format
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import base58

from service.cli.commit_steps import Sealed, commit_steps, to_json
from service.cli.encrypt.fitness import (
    check_fit,
    print_refusal,
    read_embedding_to_commit,
    refuse_other_embedding,
)
from service.cli.encrypt.new_file import named_when_done
from service.cli.encryption import encrypt_file, new_key
from service.cli.exit_codes import ExitCode
from service.cli.input_file import require_regular_file
from service.cli.keys import parse_key, write_key_file
from service.cli.progress_bars import byte_bar
from service.cli.standard_streams import write_out
from service.cli.usage import BadUsage, CommandFailed
from service.config import Settings


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
    committed = None if embedding is None else read_embedding_to_commit(embedding, settings)
    checked = check_fit(weights, settings, allow_non_finite=allow_non_finite)
    if checked.findings:
        print_refusal(weights, checked.findings, "nothing was written")
        return ExitCode.AT_FAULT
    if embedding is not None and committed is not None:
        refuse_other_embedding(embedding, committed, weights, checked, settings)
    text = base58.b58encode(secret).decode()
    with _key_written(key_file, text), named_when_done(output) as unfinished:
        with byte_bar("encrypting") as report:
            encrypted = encrypt_file(weights, unfinished, secret, lambda done: report(done, checked.size))
        if encrypted.plain_checksum != checked.checksum:
            raise OSError(
                errno.EAGAIN, "it changed while it was encrypted: nothing was written", str(weights)
            )
        sealed = Sealed(
            weights=weights,
            output=output,
            published=None,
            url=None,
            key=text,
            key_file=key_file,
            embedding_file=embedding,
            embedding_dim=None if committed is None else len(committed.embedding),
            checksum=encrypted.checksum,
            plain_checksum=encrypted.plain_checksum,
            size=encrypted.size,
            allow_non_finite=allow_non_finite,
        )
        _print(output, json_format.dumps(to_json(sealed)) + "\n" if json else commit_steps(sealed, settings))
    return ExitCode.GOOD


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


@contextmanager
def _key_written(path: Path | None, text: str) -> Iterator[None]:
    """The key is durable in its file, if there is to be one, within the block; the file goes if the block fails."""
    if path is None:
        yield
        return
    write_key_file(path, text)
    try:
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
