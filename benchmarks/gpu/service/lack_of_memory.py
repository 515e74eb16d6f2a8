"""Another process takes the card's memory: what the real service answers then, and once the memory is back."""

import httpx

from benchmarks.gpu.busy import busy_process
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.live import Live, live
from benchmarks.gpu.testbed import SEED, Testbed
from benchmarks.gpu.tolerances import TOLERANCES
from tests.recipe import make_data

TOO_LITTLE_FOR_WEIGHTS = 2 << 30
LITTLE_FOR_A_BATCH = 700 << 20


def run(testbed: Testbed, findings: Findings) -> None:
    case = testbed.case
    data = make_data(case.data)
    with live(testbed) as running:
        with busy_process(testbed.device, TOO_LITTLE_FOR_WEIGHTS):
            refused = running.eval(data, case.seed)
        code = refused.json().get("code", "")
        findings.add(
            "no memory for the weights",
            f"HTTP {refused.status_code}, {code}",
            code == "out-of-memory",
            note=_restarts(running),
        )
        answer = running.eval(data, case.seed).raise_for_status().json()
        off = abs(answer["loss"] / case.loss - 1)
        findings.add(
            "once the memory is back",
            f"loss {off:.1e} off",
            off <= TOLERANCES["float32"].loss,
            note=_restarts(running),
        )
        with busy_process(testbed.device, LITTLE_FOR_A_BATCH):
            little = running.eval(testbed.data(1), SEED)
        enough = running.eval(testbed.data(1), SEED).raise_for_status().json()
        off = abs(little.json()["loss"] / enough["loss"] - 1) if little.status_code == 200 else None
        findings.add(
            "little memory for a batch",
            f"HTTP {little.status_code}" + ("" if off is None else f", loss {off:.1e} from that with enough"),
            off is not None and off <= TOLERANCES["float32"].loss,
            note=f"{_restarts(running)}; cut smaller: {_was_cut_smaller(little)}",
        )


def _was_cut_smaller(answer: httpx.Response) -> str:
    """As the answer's provenance says."""
    return str(answer.json().get("provenance", {}).get("was_cut_smaller", "not said"))


def _restarts(running: Live) -> str:
    return f"{running.num_restarts()} restarts"
