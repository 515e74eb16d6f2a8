"""The key of the stored requests: a file of its own, so that a copy of the database alone gives no secret away."""

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FILE_NAME = "state.key"
MIN_BYTES = 32
_NONCE_BYTES = 12


class BadStateKey(OSError):
    """The file of the key is too short to be one."""


class WrongKey(Exception):
    """The sealed bytes are of another key or of another job, or were changed."""


class StateKey:
    """Seals requests with AES-256-GCM, and makes hashes that say nothing to whoever has not got the key."""

    def __init__(self, secret: bytes) -> None:
        """`secret` is random: a seal and a hash each get a key of their own made from it."""
        self._cipher = AESGCM(_derive(secret, b"soma-eval state: seal"))
        self._hash_key = _derive(secret, b"soma-eval state: hash")

    def seal(self, content: bytes, job_id: str) -> bytes:
        """The content, encrypted; it can be opened only as that of this job."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, job_id.encode())

    def open(self, sealed: bytes, job_id: str) -> bytes:
        """What was sealed for this job. Raises WrongKey."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], job_id.encode())
        except (InvalidTag, ValueError) as error:
            raise WrongKey from error

    def hash(self, kind: str, content: bytes) -> str:
        """A hash, in hex, that can be compared with others of the same kind and key, and not be guessed from."""
        return hmac.digest(self._hash_key, kind.encode() + b"\0" + content, hashlib.sha256).hex()


def load_state_key(path: Path) -> StateKey:
    """The key in the file, which is made, with mode 0600, where there is none.

    Any file of 32 bytes or more will do. Raises BadStateKey, OSError.
    """
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = _make(path)
    if len(secret) < MIN_BYTES:
        raise BadStateKey(f"{path.name} is no key: it has {len(secret)} bytes, and {MIN_BYTES} are needed")
    return StateKey(secret)


def random_state_key() -> StateKey:
    """A key that ends with this process."""
    return StateKey(os.urandom(MIN_BYTES))


def _make(path: Path) -> bytes:
    """Publish a new key, whole and durable; that of another process if it was faster."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(secrets.token_hex(MIN_BYTES).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, it replaces nothing
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink(missing_ok=True)
    return path.read_bytes()


def _derive(secret: bytes, purpose: bytes) -> bytes:
    return hmac.digest(hashlib.sha256(secret).digest(), purpose, hashlib.sha256)
