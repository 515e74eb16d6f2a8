"""The options --device and --precision of benchmarks, and what is refused."""

import argparse
from typing import get_args

from workers.errors import NoWorker
from workers.processes.devices import check_precision, resolve_devices
from workers.types import Precision


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Options `device` (cpu, cuda or cuda:N) and `precision`."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; cpu by default")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=get_args(Precision),
        help="float32 by default; the others need a GPU",
    )


def check_device_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program with one line where the machine has no such device, or the device no such precision."""
    try:
        check_precision(options.precision, [options.device])
        if options.device != "cpu":
            resolve_devices(["cuda"])
    except NoWorker as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
