"""One precision at full size: the Rust runner's number, and the same bits however and whenever it is asked."""

from typing import Any

from benchmarks.gpu.busy import busy_process
from benchmarks.gpu.findings import NEEDS_GPU, Findings
from benchmarks.gpu.testbed import SEED, Testbed
from benchmarks.gpu.tolerances import deviation
from tests.recipe import make_data
from workers.v1 import BatchScore, LoadedModel, ModelRunner, running_mean

NUM_BATCHES = 3


def run(testbed: Testbed, findings: Findings) -> None:
    precision = testbed.precision
    runner = testbed.runner()
    model = runner.load(testbed.plain)
    _against_the_rust_runner(testbed, runner, model, findings)

    data = testbed.data(NUM_BATCHES)
    whole = _bits(runner, model, data)
    same = _bits(runner, model, data) == whole == _by_ranges(testbed, model, data)
    findings.add(f"same bits twice and by ranges, {precision}", "yes" if same else "NO", same)
    with busy_process(testbed.device):
        same = _bits(runner, model, data) == whole
    findings.add(f"same bits beside a busy process, {precision}", "yes" if same else "NO", same)

    smaller = testbed.runner(micro_batch_size=max(1, runner.micro_batch_size // 4))
    same = _bits(smaller, model, data) == whole
    findings.add(
        f"cut smaller, {precision}",
        "the same bits" if same else "other bits, as provenance says",
        note=f"{smaller.micro_batch_size} sequences at once in place of {runner.micro_batch_size}",
        same_bits=float(same),
    )
    _memory(testbed, model, findings)


def _against_the_rust_runner(
    testbed: Testbed, runner: ModelRunner, model: LoadedModel, findings: Findings
) -> None:
    case = testbed.case
    data = make_data(case.data)
    batches = range(runner.num_batches(len(data)))
    found = deviation(
        case, running_mean(runner.eval_batches(model, data, case.seed, batches)), testbed.precision
    )
    findings.add(
        f"one evaluation against the Rust runner, {testbed.precision}",
        f"loss {found.loss:.1e}, embedding {found.embedding:.1e}",
        found.is_allowed and found.has_flag,
        loss_relative=found.loss,
        embedding=found.embedding,
    )


def _by_ranges(testbed: Testbed, model: LoadedModel, data: bytes) -> list[tuple[Any, ...]]:
    """The last batch first, by another runner, as two workers would share an evaluation."""
    runner = testbed.runner()
    last = runner.num_batches(len(data)) - 1
    scores = [
        *runner.eval_batches(model, data, SEED, range(last, last + 1)),
        *runner.eval_batches(model, data, SEED, range(last)),
    ]
    return sorted(map(_score_bits, scores))


def _bits(runner: ModelRunner, model: LoadedModel, data: bytes) -> list[tuple[Any, ...]]:
    scores = runner.eval_batches(model, data, SEED, range(runner.num_batches(len(data))))
    return [_score_bits(score) for score in scores]


def _score_bits(score: BatchScore) -> tuple[Any, ...]:
    """All that must not differ."""
    return (
        score.index,
        score.cross_entropy,
        score.sig_reg,
        score.embedding.tobytes(),
        score.attends_to_future,
    )


def _memory(testbed: Testbed, model: LoadedModel, findings: Findings) -> None:
    name = f"memory of the card, {testbed.precision}"
    if not testbed.is_gpu:
        findings.missing(name, NEEDS_GPU)
        return
    import torch

    peak, (free, total) = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()
    findings.add(
        name,
        f"peak {peak / 1e9:.2f} GB, {model.resident_bytes / 1e9:.2f} GB of it weights",
        note=f"{(total - free) / 1e9:.2f} GB of {total / 1e9:.0f} GB used on the card",
        peak_gb=peak / 1e9,
        weights_gb=model.resident_bytes / 1e9,
    )
