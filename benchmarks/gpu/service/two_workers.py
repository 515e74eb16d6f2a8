"""Two workers of the real service on one card: a golden answer, and an evaluation that they share."""

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.live import live
from benchmarks.gpu.pools import first_device
from benchmarks.gpu.testbed import SEED, Testbed
from benchmarks.gpu.tolerances import TOLERANCES
from tests.recipe import make_data


def run(testbed: Testbed, findings: Findings) -> None:
    case = testbed.case
    data = testbed.data_of_workers(8, sequences_on_cpu=17)
    device = first_device(testbed)
    with live(testbed, device=f"{device},{device}") as running:
        golden = running.eval(make_data(case.data), case.seed).raise_for_status().json()
        off = abs(golden["loss"] / case.loss - 1)
        whole, again = (running.eval(data, SEED).raise_for_status().json() for _ in range(2))
        num_workers, restarts = len(running.workers()), running.num_restarts()
    same = len({(answer["loss"], *answer["embedding"]) for answer in (whole, again)}) == 1
    findings.add(
        "two workers on one device",
        f"loss {off:.1e} off, {'the same bits' if same else 'OTHER BITS'} again",
        off <= TOLERANCES["float32"].loss and same and num_workers == 2 and not restarts,
        note=f"{again['timings']['eval_seconds']:.2f} s for {again['num_batches']} batches, "
        f"{num_workers} workers, {restarts} restarts",
        eval_seconds=again["timings"]["eval_seconds"],
    )
