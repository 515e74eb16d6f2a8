"""A day of the network, simulated: how many GPUs it takes, what it costs, and where the head saturates.

python -m benchmarks.network_day [--price 2.5] [--image docs/images/network-day.svg]
python -m benchmarks.network_day others         more rows: one thing changed at a time
python -m benchmarks.network_day check          the simulation against 1, 2 and 3 real Ray nodes of this machine
python -m benchmarks.network_day whole-day      86,400 submissions, one day after the other by number of nodes
"""

import argparse
from pathlib import Path

from benchmarks.network_day import check, report
from benchmarks.network_day.service_times import DOLLARS_PER_GPU_HOUR


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=["table", "others", "check", "whole-day"], default="table")
    parser.add_argument("--price", type=float, default=DOLLARS_PER_GPU_HOUR, help="dollars per GPU hour")
    parser.add_argument("--image", type=Path, default=Path("docs/images/network-day.svg"))
    parser.add_argument("--nodes", type=int, nargs="+", default=[16], help="of whole days")
    options = parser.parse_args()
    match options.part:
        case "table":
            report.write(options.price, options.image)
        case "others":
            report.others(options.price)
        case "whole-day":
            report.whole_days(options.nodes, options.price)
        case "check":
            raise SystemExit(0 if check.main() else 1)


if __name__ == "__main__":
    main()
