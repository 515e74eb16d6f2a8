"""The runner's promises beside its numbers: the same bits however it is asked, and what it refuses."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.odd_weights_files import FILES
from tests.recipe import (
    SMALL_CONFIG,
    TEST_KEY,
    golden_cases,
    make_data,
    make_weights,
    safetensors_bytes,
    small_weights_bytes,
    write_weights,
)
from workers.v1 import (
    BatchScore,
    EmptyData,
    LoadedModel,
    Model,
    ModelConfig,
    ModelRunner,
    NonFiniteResult,
    SIGRegConfig,
    attention,
    batch_scorer,
    running_mean,
    tokenizer,
)
from workers.v1 import forward as v1_forward
from workers.v1.noise import batch_noise
from workers.v1.precisions import Precision, hold_in_bf16, hold_linear_weights

WEIGHTS = small_weights_bytes()
MAX_SEQ_LEN = 256
"""A quarter of the network's, so that a batch costs little. The golden cases have the network's."""
DATA = make_data({"pattern": "hash", "size": 10_000, "seed": 5})
"""Three batches."""
SHORT = DATA[:300]


def small_runner(micro_batch_size: int | None = None) -> ModelRunner:
    return ModelRunner(ModelConfig.small(), max_seq_len=MAX_SEQ_LEN, micro_batch_size=micro_batch_size)


@pytest.fixture
def runner() -> ModelRunner:
    return small_runner()


def bits(score: BatchScore) -> tuple[Any, ...]:
    return (
        score.index,
        score.cross_entropy,
        score.sig_reg,
        score.embedding.tobytes(),
        score.attends_to_future,
    )


def test_eval_gives_plain_numbers_and_a_tensor(runner: ModelRunner) -> None:
    output = runner.eval(DATA, WEIGHTS, seed=0)
    assert output.loss == pytest.approx(output.cross_entropy + 0.02 * output.sig_reg, rel=1e-6)
    assert (output.num_sequences, output.num_batches) == (40, 3)
    assert output.embedding.shape == (16,)
    assert output.embedding.dtype == torch.float32
    assert output.attends_to_future is False


def test_twice_is_the_same_to_the_bit(runner: ModelRunner) -> None:
    first, second = (runner.eval(DATA, WEIGHTS, seed=1) for _ in range(2))
    assert first.loss == second.loss
    assert torch.equal(first.embedding, second.embedding)


def test_split_in_two_ranges_is_the_same_to_the_bit(runner: ModelRunner) -> None:
    model = runner.load(WEIGHTS)
    whole = [bits(score) for score in runner.eval_batches(model, DATA, 1, range(3))]
    last = list(runner.eval_batches(model, DATA, 1, range(2, 3)))
    first = list(small_runner().eval_batches(model, DATA, 1, range(2)))
    assert [bits(score) for score in first + last] == whole
    assert running_mean(last + first).loss == running_mean(first + last).loss


def test_encrypted_file_plain_file_and_bytes_are_the_same_to_the_bit(
    runner: ModelRunner, tmp_path: Path
) -> None:
    recipe = {"scheme": "scaled", "seed": 7}
    plain = write_weights(tmp_path / "plain", SMALL_CONFIG, recipe)
    encrypted = write_weights(tmp_path / "encrypted", SMALL_CONFIG, recipe, TEST_KEY)
    outputs = [
        runner.eval(SHORT, plain, 1),
        runner.eval(SHORT, str(plain), 1),
        runner.eval(SHORT, encrypted, 1, decryption_key=TEST_KEY),
        runner.eval(SHORT, plain.read_bytes(), 1),
    ]
    assert len({(output.loss, output.embedding.numpy().tobytes()) for output in outputs}) == 1


def test_the_seed_is_0_by_default(runner: ModelRunner) -> None:
    assert runner.eval(SHORT, WEIGHTS).loss == runner.eval(SHORT, WEIGHTS, 0).loss


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length(runner: ModelRunner, key: bytes) -> None:
    with pytest.raises(ValueError, match=f"a decryption key is 32 bytes, not {len(key)}"):
        runner.eval(SHORT, WEIGHTS, decryption_key=key)


def test_a_key_as_text_is_told_how_to_become_bytes(runner: ModelRunner) -> None:
    text: Any = "4wBqpZM9k4LxKsvLCFLEBRNR5bmRnQjQmYpQbmmYPNUi"
    with pytest.raises(TypeError, match=r"32 bytes, not text: base58\.b58decode") as raised:
        runner.eval(SHORT, WEIGHTS, decryption_key=text)
    assert text not in str(raised.value)
    with pytest.raises(TypeError, match="32 bytes, not int"):
        runner.load(WEIGHTS, 7)  # type: ignore[arg-type]


def test_device_auto() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert ModelRunner(ModelConfig.small(), "auto").device.type == expected


def test_fewer_sequences_at_once_are_the_same_to_the_bit(runner: ModelRunner) -> None:
    smaller = small_runner(micro_batch_size=3)
    assert smaller.micro_batch_size == 3
    model = runner.load(WEIGHTS)
    found, expected = (
        [bits(score) for score in each.eval_batches(model, DATA, 1, range(3))] for each in (smaller, runner)
    )
    assert found == expected


@pytest.mark.parametrize("path", ["fast", "reference"])
@pytest.mark.parametrize("max_seq_len", [7, 300, pytest.param(1024, marks=pytest.mark.slow)])
def test_any_number_of_threads_has_the_same_bits(
    path: str, max_seq_len: int, monkeypatch: pytest.MonkeyPatch, set_num_threads: Callable[[int], None]
) -> None:
    """Also where a thread does some rows of a sequence, which else only wide models are large enough for."""
    monkeypatch.setattr(v1_forward, "MIN_CPU_TILE_ROWS", 64)
    monkeypatch.setattr(v1_forward, "CPU_TILE_ELEMENTS", 0)
    monkeypatch.setattr(attention, "FILLED_SCORES_PER_BLOCK", 1 << 17)
    if path == "reference":
        monkeypatch.setattr("workers.v1.batch_scorer.MAX_SAFE_SCORE", -1.0)
    runner = ModelRunner(ModelConfig.small(), max_seq_len=max_seq_len, batch_size=4)
    model = runner.load(with_score_offset(140.0))
    data = DATA[: 5 * max_seq_len - 3]
    found = set()
    for num_threads in (1, 2, 5):
        set_num_threads(num_threads)
        found.add(tuple(map(bits, runner.eval_batches(model, data, 1, range(2)))))
    assert len(found) == 1


def test_threads_stop_where_a_cancel_check_raises(
    runner: ModelRunner, set_num_threads: Callable[[int], None]
) -> None:
    set_num_threads(3)
    model = runner.load(WEIGHTS)
    whole = [bits(score) for score in runner.eval_batches(model, DATA, 0, range(3))]

    def stop() -> None:
        raise Stop

    for _ in range(3):
        with pytest.raises(Stop):
            list(runner.eval_batches(model, DATA, 0, range(3), stop))
    assert [bits(score) for score in runner.eval_batches(model, DATA, 0, range(3))] == whole


def test_full_size_takes_few_sequences_at_once_on_a_cpu() -> None:
    assert ModelRunner(ModelConfig()).micro_batch_size == 1
    assert ModelRunner(ModelConfig.small()).micro_batch_size == 16


def test_the_same_weights_are_loaded_once(
    runner: ModelRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    load = runner.load

    def counting_load(weights: Any, decryption_key: bytes | None = None) -> Any:
        loads.append(weights)
        return load(weights, decryption_key)

    monkeypatch.setattr(runner, "load", counting_load)
    path = write_weights(tmp_path / "weights", SMALL_CONFIG, {"scheme": "scaled", "seed": 7})
    for weights in (path, str(path), WEIGHTS, bytes(bytearray(WEIGHTS))):
        runner.eval(SHORT, weights, 0)
    assert loads == [path, WEIGHTS]
    runner.eval(SHORT, path, 0)
    path.write_bytes(small_weights_bytes({"scheme": "scaled", "seed": 8}))
    runner.eval(SHORT, path, 0)
    assert len(loads) == 4


def test_resident_bytes(runner: ModelRunner) -> None:
    assert runner.load(WEIGHTS).resident_bytes == 4 * 13_192


@pytest.mark.parametrize("file", ["baseline", "all-f16", "all-bf16", "all-f64"])
@pytest.mark.parametrize("precision", get_args(Precision))
def test_what_weights_will_take_is_known_before_they_are_loaded(
    runner: ModelRunner, file: str, precision: Precision
) -> None:
    runner.precision = precision  # which a CPU is not given otherwise
    assert runner.load(FILES[file]()).resident_bytes == runner.resident_bytes


def test_the_served_model_takes_in_parts_what_it_takes_in_float32() -> None:
    runner = ModelRunner(ModelConfig())
    in_float32 = runner.resident_bytes
    runner.precision = "float32-split"
    assert 4.8e9 < in_float32 < 4.9e9
    assert runner.resident_bytes == in_float32


def test_a_loaded_file_may_be_deleted(runner: ModelRunner, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "weights", SMALL_CONFIG, {"scheme": "scaled", "seed": 7})
    model = runner.load(path)
    path.unlink()
    assert list(runner.eval_batches(model, SHORT, 0, range(1)))


def test_a_missing_file_is_an_error_of_the_system(runner: ModelRunner, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        runner.eval(SHORT, tmp_path / "nothing", 0)


class Stop(Exception):
    """What a caller raises to end the work."""


def test_a_cancel_check_ends_the_work_where_it_raises(runner: ModelRunner) -> None:
    calls = 0

    def stop_at_third() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stop

    with pytest.raises(Stop):
        list(runner.eval_batches(runner.load(WEIGHTS), DATA, 0, range(3), stop_at_third))
    assert calls == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_cancel_check_ends_the_loading_where_it_raises(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, dtype: type[np.floating[Any]]
) -> None:
    """It is called for the header and for each tensor, all of which are small."""
    tensors = make_weights(SMALL_CONFIG, {"scheme": "scaled", "seed": 7})
    weights = safetensors_bytes({name: tensor.astype(dtype) for name, tensor in tensors.items()})
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    def stop_at_tenth() -> None:
        count()
        if calls == 10:
            raise Stop

    runner.load(weights, check_cancelled=count)
    assert calls > len(tensors)
    calls = 0
    with pytest.raises(Stop):
        runner.load(weights, check_cancelled=stop_at_tenth)
    assert calls == 10


def test_work_that_was_stopped_may_be_done_later(runner: ModelRunner) -> None:
    model = runner.load(WEIGHTS)
    whole = [bits(score) for score in runner.eval_batches(model, DATA, 0, range(3))]
    iterator = runner.eval_batches(model, DATA, 0, range(3))
    first = next(iterator)
    assert not torch.is_inference_mode_enabled()
    iterator.close()  # type: ignore[attr-defined]
    rest = runner.eval_batches(model, DATA, 0, range(1, 3))
    assert [bits(score) for score in [first, *rest]] == whole


@pytest.mark.parametrize("name", ["small-1025", "small-zeros", "wide-head-256"])
def test_both_paths_agree_on_ordinary_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden_cases()[name]
    runner = ModelRunner(ModelConfig(**case.config))
    weights, data = safetensors_bytes(make_weights(case.config, case.weights)), make_data(case.data)
    fast = runner.eval(data, weights, case.seed)
    monkeypatch.setattr("workers.v1.batch_scorer.MAX_SAFE_SCORE", -1.0)
    reference = runner.eval(data, weights, case.seed)
    assert reference.loss == pytest.approx(fast.loss, rel=2e-6)
    assert reference.attends_to_future is False
    np.testing.assert_allclose(reference.embedding, fast.embedding, rtol=0, atol=1e-5)


def test_reference_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden_cases()["leak-mixed"]
    runner = ModelRunner(ModelConfig(**case.config))
    weights, data = safetensors_bytes(make_weights(case.config, case.weights)), make_data(case.data)
    whole = runner.eval(data, weights, case.seed)
    monkeypatch.setattr(attention, "FILLED_SCORES_PER_BLOCK", 1 << 17)
    assert runner.eval(data, weights, case.seed).loss == pytest.approx(whole.loss, rel=1e-6)


def with_score_offset(offset: float) -> bytes:
    return small_weights_bytes({"scheme": "leak", "seed": 7, "offset": offset})


@pytest.mark.parametrize("offset", [0.0, 100.0, 135.0, 138.0, 140.0, 142.0, 146.0, 160.0])
def test_the_guard_lets_no_leak_through(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the border where masked keys begin to win, the guarded result is that of the reference path."""
    runner, weights = ModelRunner(ModelConfig.small(), max_seq_len=128), with_score_offset(offset)
    guarded = runner.eval(SHORT, weights, 3)
    monkeypatch.setattr("workers.v1.batch_scorer.MAX_SAFE_SCORE", -1.0)
    reference = runner.eval(SHORT, weights, 3)
    assert guarded.attends_to_future == reference.attends_to_future
    assert guarded.loss == pytest.approx(reference.loss, rel=1e-5)


def test_max_safe_score_leaves_masked_keys_no_weight() -> None:
    leaking = torch.tensor([-9_900.0, -1e4])
    assert torch.softmax(leaking, dim=0)[1] > 0
    at_bound = torch.tensor([-v1_forward.MAX_SAFE_SCORE, -1e4])
    assert torch.softmax(at_bound, dim=0)[1] == 0


def bound_of(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Of queries and keys [B, T, H, K]."""
    longest = torch.stack([v1_forward.longest_of_heads(part.flatten(0, 1)) for part in (q, k)])
    return v1_forward.largest_score(longest, q.shape[-1])


def test_the_bound_holds_for_every_score() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 50, 3, 8, generator=generator) for _ in range(2))
    scores = torch.einsum("bihk,bjhk->bhij", q, k) / 8**0.5
    assert scores.abs().max() <= bound_of(q, k)
    q[0, 0, 0, 0] = math.nan
    assert bound_of(q, k).isnan()


def test_nan_weights_have_no_result(runner: ModelRunner) -> None:
    tensors = make_weights(SMALL_CONFIG, {"scheme": "scaled", "seed": 7})
    tensors["encoder.layers.0.attention.query.weight"][0, 0] = np.nan
    with pytest.raises(NonFiniteResult):
        runner.eval(SHORT, safetensors_bytes(tensors), 0)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_have_64_bits(runner: ModelRunner, seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        runner.eval(SHORT, WEIGHTS, seed)


@pytest.mark.parametrize("batches", [range(3, 4), range(-1, 1)])
def test_batches_the_data_does_not_have(runner: ModelRunner, batches: range) -> None:
    with pytest.raises(ValueError, match="3 batches"):
        list(runner.eval_batches(runner.load(WEIGHTS), DATA, 0, batches))


def test_no_data_is_refused_before_the_weights_are_looked_at(runner: ModelRunner) -> None:
    with pytest.raises(EmptyData):
        runner.eval(b"", b"", 0)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "float32-split"])
def test_lower_precision_needs_cuda(precision: Any) -> None:
    with pytest.raises(ValueError, match="needs a CUDA device"):
        ModelRunner(ModelConfig.small(), precision=precision)


def test_bf16_is_near_float32(runner: ModelRunner) -> None:
    """On a CPU, for want of a GPU: the same code runs there."""
    model = runner.load(WEIGHTS)
    expected = running_mean(runner.eval_batches(model, SHORT, 0, range(1)))
    hold_linear_weights(model.model, hold_in_bf16)
    found = running_mean(runner.eval_batches(model, SHORT, 0, range(1)))
    assert 0 < abs(found.loss - expected.loss) < 0.01 * expected.loss


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision is one of float32, tf32, bf16"):
        ModelRunner(ModelConfig.small(), precision="float16")  # type: ignore[arg-type]


def test_float32_is_ieee() -> None:
    torch.set_float32_matmul_precision("high")
    ModelRunner(ModelConfig.small())
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("reference", [False, True])
@torch.inference_mode()
def test_nothing_of_a_pass_lies_beside_the_device(reference: bool) -> None:
    """The meta device takes no tensors of another one, and has no numbers to bring back."""
    runner = ModelRunner(ModelConfig.small(), "meta", micro_batch_size=1)
    with torch.device("meta"):
        model = Model(runner.config)
        directions = torch.empty(runner.config.embedding_dim, SIGRegConfig().slices)
    with pytest.raises(NotImplementedError, match="no data") as refusal:
        runner._scorer._begin_path(
            model,
            [tokenizer.tokenize_range(DATA, range(2))],
            lambda: directions,
            lambda: None,
            False,
            lambda _: None,
            reference=reference,
        )
    frames = [frame.name for frame in refusal.traceback]
    assert frames[-2:] == ["_begin_path", "begin_copy"]  # of the numbers of all micro-batches, at once


@pytest.mark.parametrize(("device", "order"), [("meta", ["forward", "noise"]), ("cpu", ["noise", "forward"])])
def test_noise_is_drawn_behind_the_queued_forward_pass(
    device: str, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is no CPU returns at once; this one, meta, then has no numbers to give."""
    done: list[str] = []

    def noting(name: str, call: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            result = call(*arguments)
            done.append(name)
            return result

        return noted

    monkeypatch.setattr(batch_scorer, "batch_noise", noting("noise", batch_noise))
    representations = noting("forward", v1_forward.ForwardPass.representations)
    monkeypatch.setattr(v1_forward.ForwardPass, "representations", representations)
    runner = ModelRunner(ModelConfig.small(), device)
    with torch.device(device):
        model = LoadedModel(Model(runner.config))
    with contextlib.suppress(NotImplementedError):
        next(runner.eval_batches(model, SHORT, 0, range(1)))
    assert done == order


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["tiny-three-batches", "small-70000", "medium-3000", "leak-mixed"])
@pytest.mark.parametrize("precision", ["float32", "float32-split"])
def test_cuda_equals_the_rust_runner(name: str, precision: Any) -> None:
    case = golden_cases()[name]
    runner = ModelRunner(
        ModelConfig(**case.config),
        "cuda",
        precision,
        max_seq_len=case.max_seq_len,
        batch_size=case.batch_size,
    )
    weights = safetensors_bytes(make_weights(case.config, case.weights))
    output = runner.eval(make_data(case.data), weights, case.seed)
    assert output.loss == pytest.approx(case.loss, rel=1e-5)
    assert output.attends_to_future is case.attends_to_future


def test_detail_adds_the_cross_entropy_of_every_token_and_changes_no_bit(runner: ModelRunner) -> None:
    model = runner.load(WEIGHTS)
    for score, plain in zip(
        runner.eval_batches(model, DATA, 0, range(3), detail=True),
        runner.eval_batches(model, DATA, 0, range(3)),
        strict=True,
    ):
        assert bits(score) == bits(plain)
        assert plain.token_cross_entropy is None
        assert score.token_cross_entropy is not None
        assert score.token_cross_entropy.shape[1] == runner.max_seq_len
        assert not score.token_cross_entropy[:, -1].any()  # the last target is padding
        assert score.token_cross_entropy.mean(dtype=np.float64) == pytest.approx(
            plain.cross_entropy, rel=1e-6
        )
