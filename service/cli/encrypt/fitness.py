"""Whether weights, and the embedding to commit with them, are fit to be committed."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from service.cli.check.check_weights import NON_FINITE, check_weights
from service.cli.commit_steps import embedding_command
from service.cli.diagnosis import Expected, Finding, finding_lines
from service.cli.embedding_file import EmbeddingFile, read_embedding_file
from service.cli.header_check import Checked
from service.cli.progress_bars import byte_bar
from service.cli.standard_streams import complain
from service.cli.usage import BadUsage
from service.config import Settings
from service.scoring.served_architecture import architecture_of
from workers.architectures import CURRENT_VERSION


def check_fit(weights: Path, settings: Settings, *, allow_non_finite: bool) -> Checked:
    """What `check --full` finds in a plain file. Raises OSError."""
    with byte_bar("reading") as report:
        return asyncio.run(
            check_weights(
                *(str(weights), Expected(), settings),
                full=True,
                allow_non_finite=allow_non_finite,
                on_bytes=report,
            )
        )


def print_refusal(weights: Path, findings: Sequence[Finding], consequence: str) -> None:
    """Say on stderr why these weights are not taken."""
    not_encrypted_yet = "give the file that Model.save wrote"
    own = [replace(f, remedy=not_encrypted_yet) if f.code == "no-header" else f for f in findings]
    sys.stderr.writelines(f"{line}\n" for line in finding_lines(own))
    complain(f"{weights} is not fit to commit: {consequence}.")
    if any(finding.code == NON_FINITE for finding in findings):
        complain("--allow-non-finite takes it all the same.")


def read_embedding_to_commit(path: Path, settings: Settings) -> EmbeddingFile:
    """An embedding that the network could have computed. Raises BadUsage or OSError."""
    embedding = read_embedding_file(path)
    architecture = architecture_of(settings)
    dim = architecture.model.embedding_dim
    if len(embedding.embedding) != dim:
        raise BadUsage(
            f"--embedding {path}: it has {len(embedding.embedding):,} numbers, an embedding of this model "
            f"{dim:,}: is it that of the other size of model?"
        )
    if embedding.architecture != architecture.name:
        raise BadUsage(
            f"--embedding {path}: it was computed by the architecture {embedding.architecture}, and the weights are "
            f"checked by {architecture.name}: give both commands the same --small-model or --architecture"
        )
    if embedding.precision != "float32" or embedding.architecture_version != CURRENT_VERSION:
        raise BadUsage(
            f"--embedding {path}: it was computed in {embedding.precision}, by architecture version "
            f"{embedding.architecture_version}; the network's is float32, version {CURRENT_VERSION}: score again"
        )
    return embedding


def refuse_other_embedding(
    path: Path, embedding: EmbeddingFile, weights: Path, checked: Checked, settings: Settings
) -> None:
    """Raises BadUsage where it is not the embedding of the weights that were checked."""
    if embedding.checksum != checked.checksum:
        raise BadUsage(
            f"--embedding {path}: this is the embedding of other weights, then named {embedding.weights}: "
            f"nothing was written. Make that of this file: {embedding_command(weights, path, settings)}"
        )
