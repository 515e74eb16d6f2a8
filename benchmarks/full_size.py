"""One evaluation at full size: 1.2 billion parameters, 4.84 GB, against the number of the Rust runner.

    python -m benchmarks.full_size [--weights FILE] [--device cpu] [--precision float32] [--encrypted]

The weights are made by the golden recipe, tensor by tensor, into a temporary file that is deleted
afterwards; with --weights into that file, which is kept, and used as it is when it exists already. Exits with 1 when
the loss is further from that number than the precision may be.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

from rich.console import Console
from rich.table import Table

from benchmarks.device_options import add_device_options, check_device_options
from benchmarks.gpu.tolerances import TOLERANCES
from tests.recipe import TEST_KEY, GoldenCase, golden_full_size, make_data, write_weights
from workers.v1 import ModelConfig, ModelRunner


def main() -> int:
    parser = argparse.ArgumentParser(
        description="One evaluation at full size, against the Rust runner's number."
    )
    parser.add_argument("--weights", type=Path, help="where the weights are kept, or lie already")
    add_device_options(parser)
    parser.add_argument("--encrypted", action="store_true", help="publish the weights as the network does")
    arguments = parser.parse_args()
    check_device_options(parser, arguments)

    case, console = golden_full_size(), Console()
    key = TEST_KEY if arguments.encrypted else None
    with weights_file(case, arguments.weights, key, console) as path:
        before = peak_bytes()
        runner = ModelRunner(
            ModelConfig(**case.config),
            arguments.device,
            arguments.precision,
            max_seq_len=case.max_seq_len,
            batch_size=case.batch_size,
        )
        start = time.perf_counter()
        model = runner.load(path, key)
        load_seconds = time.perf_counter() - start
        data = make_data(case.data)
        start = time.perf_counter()
        (score,) = runner.eval_batches(model, data, case.seed, range(runner.num_batches(len(data))))
        eval_seconds = time.perf_counter() - start
    loss = score.cross_entropy + 0.02 * score.sig_reg
    largest_error = float(abs(score.embedding - case.embedding).max())

    table = Table("", "", title=f"full V1 on {arguments.device}, {arguments.precision}, {len(data)} bytes")
    table.add_row("loss", f"{loss:.7f}")
    table.add_row("loss of the Rust runner", f"{case.loss:.7f}")
    table.add_row("relative difference", f"{abs(loss - case.loss) / case.loss:.1e}")
    table.add_row("largest difference of the embedding", f"{largest_error:.1e}")
    table.add_row("seconds to load", f"{load_seconds:.1f}")
    table.add_row("seconds to evaluate", f"{eval_seconds:.1f}")
    table.add_row("weights, GB", f"{model.resident_bytes / 1e9:.2f}")
    table.add_row("peak memory of the process, GB", f"{peak_bytes() / 1e9:.2f} ({before / 1e9:.2f} before)")
    console.print(table)
    return 0 if abs(loss - case.loss) <= TOLERANCES[arguments.precision].loss * case.loss else 1


@contextmanager
def weights_file(case: GoldenCase, path: Path | None, key: bytes | None, console: Console) -> Iterator[Path]:
    """The case's weights as a file: the one given, made if need be; else one that is gone afterwards."""
    if path is not None:
        if not path.exists():
            make(case, path, key, console)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        make(case, path, key, console)
        yield path


def make(case: GoldenCase, path: Path, key: bytes | None, console: Console) -> None:
    start = time.perf_counter()
    write_weights(path, case.config, case.weights, key)
    console.print(
        f"made {path.stat().st_size / 1e9:.2f} GB of weights in {time.perf_counter() - start:.0f} s"
    )


def peak_bytes() -> int:
    """The largest resident size so far; mapped pages of the weights file count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
