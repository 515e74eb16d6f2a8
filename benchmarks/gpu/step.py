"""One step of the campaign in this process: `python -m benchmarks.gpu.step MODULE DEVICE PRECISION FOLDER FINDINGS`."""

import importlib
import sys
import traceback
from pathlib import Path
from typing import get_args

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import Testbed
from workers.types import Precision


def main() -> int:
    module, device, wanted, folder, path = sys.argv[1:]
    (precision,) = (each for each in get_args(Precision) if each == wanted)
    findings = Findings(Path(path))
    try:
        importlib.import_module(module).run(Testbed(device, Path(folder), precision), findings)
    except Exception as error:
        traceback.print_exc()
        findings.error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
