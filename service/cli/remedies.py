"""What to do about an error: one sentence for each code that a trainer can meet."""

from service.errors import ScoringError

_REMEDIES = {
    "decryption-failed": "Give the key these very bytes were encrypted with, and none for unencrypted weights.",
    "weights-invalid": "`soma-eval check` names every tensor that is wrong; encrypted weights need --key-file.",
    "non-finite-result": "Training has diverged: take an earlier checkpoint. `soma-eval check --full` names NaN in it.",
    "zero-embedding": "The model gives no representation at all: take another checkpoint.",
    "empty-data": "Give a file with at least one byte in it.",
    "evaluation-crashes-worker": "It ended two workers: evaluate it on another machine before you commit it.",
    "model-checksum-mismatch": "Upload the file again, or give the checksum that `encrypt` printed.",
    "model-size-mismatch": "Upload the file again, or give the size that `encrypt` printed.",
    "model-too-large": "Raise SOMA_EVAL_MAX_MODEL_BYTES if it is meant to be so large.",
    "data-too-large": "The network evaluates at most 1 MiB at once: cut the data.",
    "model-unavailable": "Open the URL from another machine, and try again.",
    "data-unavailable": "Open the URL from another machine, and try again.",
    "download-timeout": "Try again, or allow slower downloads with SOMA_EVAL_MIN_DOWNLOAD_RATE.",
    "invalid-url": "Give a whole URL: https://host/path, without user, password or fragment.",
    "url-forbidden": "Publish on https at a public address; --allow-http and --allow-private-addresses are for tests.",
    "invalid-key": "Copy the key once more: 32 bytes in Base58, 43 or 44 characters.",
    "unauthorized": "Give the service's key by SOMA_EVAL_API_KEY or --api-key.",
    "no-service": "Is `soma-eval serve` running at that URL?",
    "queue-full": "Try again in a moment.",
    "draining": "Try again when the service is up again.",
    "no-worker": "Look at what the worker said above; --device cpu works everywhere.",
    "deadline-exceeded": "Give it less data, or raise the service's --request-timeout-seconds.",
    "worker-crashed": "Try again; if it stays so, report it with the command you gave.",
    "out-of-memory": "Close what else uses the device, or take --device cpu.",
    "out-of-resources": "Close other programs, or raise the limits (ulimit -n, ulimit -u), and try again.",
    "file-changed": "Score it again when nothing writes to it: no number here belongs to the file as it is now.",
    "file-incomplete": "Write it whole: it is looked at again once it has changed.",
    "file-unreadable": "See that it is there, and that you may read it.",
    "interrupted": "Send the request again: the service was started anew without the key of its stored requests.",
    "insufficient-storage": "Make room, or give --data-dir another place.",
}


def remedy(error: ScoringError) -> str:
    """What to do about it; an empty text where nobody knows."""
    return _REMEDIES.get(error.full_code, "")
