"""`soma-eval encrypt`: judge, encrypt, and say what a commit needs."""

import asyncio
import json as json_format
import os
import sys
from dataclasses import replace
from pathlib import Path

import base58

from service.commands.check import check
from service.commands.diagnosis import Expected, Finding
from service.commands.question import BadUsage, parse_key
from service.commands.terminal import byte_bar, print_findings
from service.config import Settings
from service.encryption import Commitment, encrypt_file, new_key
from service.exit_codes import ExitCode


def run_encrypt(
    weights: Path, output: Path, key: str | None, key_file: Path | None, *, json: bool, settings: Settings
) -> int:
    """Returns the exit code. Raises BadUsage, or OSError; nothing half-done is left behind."""
    _refuse_impossible(weights, output, key, key_file)
    checked = asyncio.run(check(str(weights), Expected(), settings))
    if checked.findings:
        print_findings([_before_encryption(finding) for finding in checked.findings], sys.stderr)
        sys.stderr.write(f"soma-eval: the network would refuse {weights}: nothing was written.\n")
        return ExitCode.AT_FAULT
    secret = new_key() if key is None else parse_key(key)
    text = base58.b58encode(secret).decode()
    if key_file is not None:
        _write_for_owner(key_file, text)
    try:
        with byte_bar("encrypting") as report:
            commitment = encrypt_file(weights, output, secret, lambda done: report(done, checked.size))
    except BaseException:
        if key_file is not None:
            key_file.unlink(missing_ok=True)
        raise
    if json:
        answer = {
            "key": text if key_file is None else None,
            "key_file": None if key_file is None else str(key_file),
            "checksum": commitment.checksum,
            "size": commitment.size,
            "path": str(output),
        }
        sys.stdout.write(json_format.dumps(answer) + "\n")
    else:
        sys.stdout.write(_account(commitment, output, text, key_file, settings))
    return ExitCode.GOOD


def _before_encryption(finding: Finding) -> Finding:
    """What there is to do when there is nothing encrypted yet."""
    return (
        replace(finding, remedy="give the file that Model.save wrote")
        if finding.code == "no-header"
        else finding
    )


def _refuse_impossible(weights: Path, output: Path, key: str | None, key_file: Path | None) -> None:
    if key is not None and key_file is not None:
        raise BadUsage("--key and --key-file exclude each other: --key-file is where a new key is written")
    if not weights.is_file():
        raise BadUsage(f"{weights}: there is no such file")
    for path in (output, key_file):
        if path is not None and (path.exists() or path.is_symlink()):
            raise BadUsage(f"{path} exists, and nothing is overwritten: choose another name or remove it")
        if path is not None and not path.parent.is_dir():
            raise BadUsage(f"{path.parent}: there is no such folder")
    if key_file is not None and key_file.absolute() == output.absolute():
        raise BadUsage("the key and the weights cannot go to one file")


def _write_for_owner(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())


def _account(
    commitment: Commitment, output: Path, key: str, key_file: Path | None, settings: Settings
) -> str:
    shown_key = key if key_file is None else f"in {key_file}, which only you can read"
    key_flag = "--key-file FILE_WITH_THE_KEY" if key_file is None else f"--key-file {key_file}"
    key_code = repr(key) if key_file is None else f"Path({str(key_file)!r}).read_text().strip()"
    small = " --small-model" if settings.small_model else ""
    return f"""\
encrypted  {output}
key        {shown_key}
checksum   {commitment.checksum}
size       {commitment.size}

Next:
1. Upload {output.name} to a URL that validators can fetch, and see that it arrived:
   soma-eval check URL{small} {key_flag} \\
     --checksum {commitment.checksum} --size {commitment.size} --full
2. Commit it with soma-sdk; EMBEDDING is `models[0].embedding` of `soma-eval score --json`:
   key = {key_code}
   encrypted = Path({str(output)!r}).read_bytes()
   assert SomaClient.commitment(encrypted) == {commitment.checksum!r}
   await client.commit_model(signer=keypair, model_id=MODEL_ID, weights_url=URL,
                             encrypted_weights=encrypted, decryption_key=key, embedding=EMBEDDING)
3. Reveal it in the next epoch:
   await client.wait_for_next_epoch()
   await client.reveal_model(signer=keypair, model_id=MODEL_ID, decryption_key=key, embedding=EMBEDDING)
"""
