"""What `encrypt` and `publish` print: what a commit needs, and the steps that are left, to be copied as they stand."""

import os
import shlex
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.cli.printable import printable
from service.config import Settings

_WIDTH = 80


@dataclass(frozen=True, slots=True)
class Sealed:
    """Encrypted weights, and all that a commit of them needs."""

    weights: Path
    """The plain file."""
    output: Path | None
    """The ciphertext; None where it was published from here, and lies nowhere else."""
    published: str | None
    """Where it was published: s3://bucket/key. None where that is still to be done."""
    url: str | None
    """Where validators can fetch it, as was seen; None where that is not known."""
    key: str = field(repr=False)
    """Base58."""
    key_file: Path | None
    """Where the key was written; None where it is printed."""
    embedding_file: Path | None
    """None where the embedding is still to be made."""
    embedding_dim: int | None
    checksum: str
    """Of the ciphertext: what a commit promises."""
    plain_checksum: str
    """Of the weights before encryption: what an embedding file names."""
    size: int
    """Bytes of the ciphertext."""
    allow_non_finite: bool
    """The weights hold NaN or infinity, and are wanted all the same."""


def commit_steps(sealed: Sealed, settings: Settings) -> str:
    """The whole text."""
    key = sealed.key if sealed.key_file is None else f"in {_shown(sealed.key_file)}, which only you can read"
    if sealed.embedding_file is None:
        embedding = "not made yet: see step 1"
    else:
        numbers = f"{sealed.embedding_dim:,} numbers"
        embedding = f"{numbers} in {_shown(sealed.embedding_file)}, computed from these very weights"
    steps = [] if sealed.embedding_file is not None else [_make_embedding(sealed, settings)]
    steps += [] if sealed.url is not None else [_see_that_it_arrived(sealed, settings)]
    steps += [_commit(sealed)]
    steps += [_reveal(commit_step=len(steps))]
    numbered = "\n".join(_numbered(number, step) for number, step in enumerate(steps, start=1))
    small = (
        "\nThis is the small model, for trying things: the network evaluates the full one.\n"
        if settings.small_model
        else ""
    )
    return f"""\
{_where(sealed)}
key        {key}
checksum   {sealed.checksum}
size       {sealed.size}
embedding  {embedding}
{small}
Next:
{numbered}
"""


def _numbered(number: int, step: str) -> str:
    """What it says fits into a terminal; what is to be copied stays in one line."""
    says, _, lines = step.partition("\n")
    said = textwrap.fill(
        f"{number}. {says}", _WIDTH, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False
    )
    return f"{said}\n{lines}"


def to_json(sealed: Sealed) -> dict[str, Any]:
    """What `--json` prints of it."""
    where = {"path": _text(sealed.output)} if sealed.published is None else {"published": sealed.published}
    return {
        "key": sealed.key if sealed.key_file is None else None,
        "key_file": _text(sealed.key_file),
        "checksum": sealed.checksum,
        "size": sealed.size,
        **where,
        **({} if sealed.published is None else {"url": sealed.url}),
        "plain_checksum": sealed.plain_checksum,
        "embedding_file": _text(sealed.embedding_file),
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _where(sealed: Sealed) -> str:
    if sealed.output is not None:
        return f"encrypted  {_shown(sealed.output)}"
    fetched = "" if sealed.url is None else f"\nurl        {printable(sealed.url)}"
    return f"published  {printable(sealed.published or '')}{fetched}"


def embedding_command(weights: Path, embedding_file: Path, settings: Settings) -> str:
    """The command that makes the embedding of exactly this file."""
    small = "".join(f" {word}" for word in _architecture_words(settings))
    return (
        f"soma-eval score {shell_word(weights)}{small} --data HELD_OUT_FILE --seed 0 "
        f"--embedding-out {shell_word(embedding_file)}"
    )


def shell_word(path: Path) -> str:
    """A path as bash reads it back, whatever characters or bytes its name has."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    escaped = (chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(path))
    return f"$'{''.join(escaped)}'"


def _architecture_words(settings: Settings) -> list[str]:
    if settings.architecture is not None:
        return ["--architecture", shell_word(settings.architecture.path)]
    return ["--small-model"] if settings.small_model else []


def _shown(path: Path) -> str:
    return printable(str(path))


def _embedding_file(sealed: Sealed) -> Path:
    return sealed.embedding_file or (sealed.output or sealed.weights).with_suffix(".embedding.json")


def _make_embedding(sealed: Sealed, settings: Settings) -> str:
    return f"""\
Make the embedding to commit, of exactly these weights (no seed changes it):
   {embedding_command(sealed.weights, _embedding_file(sealed), settings)}"""


def _see_that_it_arrived(sealed: Sealed, settings: Settings) -> str:
    small = "".join(f" {word}" for word in _architecture_words(settings))
    odd = " --allow-non-finite" if sealed.allow_non_finite else ""
    key_file = "FILE_WITH_THE_KEY" if sealed.key_file is None else shell_word(sealed.key_file)
    what = (
        "See that validators can fetch it at the URL that you will commit"
        if sealed.output is None
        else f"Upload {_shown(sealed.output)} to a URL that validators can fetch, and see that it arrived"
    )
    return f"""\
{what} (exit code 0):
   soma-eval check URL{small}{odd} --key-file {key_file} \\
     --checksum {sealed.checksum} --size {sealed.size} --full"""


def _commit(sealed: Sealed) -> str:
    key = repr(sealed.key) if sealed.key_file is None else f"{_path(sealed.key_file)}.read_text().strip()"
    encrypted = (
        f"SomaClient.encrypt_weights({_path(sealed.weights)}.read_bytes(), key)[0]"
        if sealed.output is None
        else f"{_path(sealed.output)}.read_bytes()"
    )
    url = "URL" if sealed.url is None else repr(sealed.url)
    return f"""\
Commit it with soma-sdk 0.1.15. MODEL_ID is what `client.create_model` returned, once per model:
   import json; from pathlib import Path; from soma_sdk import SomaClient
   key = {key}
   encrypted = {encrypted}
   assert SomaClient.commitment(encrypted) == {sealed.checksum!r}
   scored = json.loads({_path(_embedding_file(sealed))}.read_text())
   assert scored["checksum"] == {sealed.plain_checksum!r}  # of these weights
   await client.commit_model(signer=keypair, model_id=MODEL_ID, weights_url={url}, encrypted_weights=encrypted,
                             decryption_key=key, embedding=scored["embedding"])"""


def _reveal(commit_step: int) -> str:
    return f"""\
Reveal it in the epoch after that of the commit, with the same key and the same embedding; a commit that is not \
revealed then can cost stake. So run this right after step {commit_step}: a wait that begins later ends an epoch too \
late. The timeout, in seconds, is to be longer than an epoch:
   await client.wait_for_next_epoch(timeout=7 * 24 * 3600)
   await client.reveal_model(signer=keypair, model_id=MODEL_ID, decryption_key=key, embedding=scored["embedding"])"""


def _path(path: Path) -> str:
    return f"Path({str(path)!r})"
