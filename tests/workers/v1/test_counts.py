"""A guard against slow code that no clock is needed for: operations, allocations, copies and bytes read.

What is counted is what one evaluation dispatches to torch. The bounds are what it takes today: a change that
needs more of anything has to say so here.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.recipe import SMALL_CONFIG, SMALL_WEIGHTS, TEST_KEY, make_data, write_weights
from workers.v1 import ModelConfig, ModelRunner, weights_source
from workers.v1.attention import CAUSAL_ROWS, SCORES_PER_BLOCK
from workers.v1.batch_scorer import CPU_LOSS_ROWS, CPU_SIG_REG_ROWS
from workers.v1.model_runner import LoadedModel

SEQUENCES = 2
DATA = make_data({"pattern": "text", "size": SEQUENCES * 1024})
B, T, D, H, F, V, S = SEQUENCES, 1024, 16, 4, 32, 264, 256
BLOCKS = T // CAUSAL_ROWS * H * CAUSAL_ROWS * T // SCORES_PER_BLOCK
"""Of the attention of a sequence."""

COPIES = {"clone", "to", "_to_copy", "float", "contiguous", "reshape", "cat", "stack", "mul", "add"}


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched, and remembers the storages it was given and made."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[str] = Counter()
        self.largest = 0
        """Elements of the largest tensor that was made."""
        self.made: Counter[str] = Counter()
        """Storages that were made, by the operation that did."""
        self.copied_weights: list[str] = []
        self._weights = {p.untyped_storage().data_ptr() for p in model.model.parameters() if p.dim() == 2}
        self._alive: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.operations[name] += 1
        given = {t.untyped_storage().data_ptr() for t in tensors_in((args, kwargs))}
        for tensor in tensors_in(result):
            if tensor.untyped_storage().data_ptr() not in given:
                self.made[name] += 1
                self._alive.append(tensor)  # so that no storage is counted as one that went before it
                self.largest = max(self.largest, tensor.numel())
                if name in COPIES and given & self._weights:
                    self.copied_weights.append(name)
        return result


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for member in value:
            yield from tensors_in(member)


@pytest.fixture(autouse=True)
def _one_thread(set_num_threads: Callable[[int], None]) -> None:
    """What other threads dispatch is not counted."""
    set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "plain", SMALL_CONFIG, SMALL_WEIGHTS)
    write_weights(folder / "encrypted", SMALL_CONFIG, SMALL_WEIGHTS, TEST_KEY)
    return folder


def count_evaluation(files: Path, num_layers: int = 2, data: bytes = DATA) -> Count:
    config = {**SMALL_CONFIG, "num_layers": num_layers}
    path = write_weights(files / f"of-{num_layers}-layers", config, SMALL_WEIGHTS)
    runner = ModelRunner(ModelConfig(**config))
    model = runner.load(path)
    count = Count(model)
    with count:
        list(runner.eval_batches(model, data, 0, range(runner.num_batches(len(data)))))
    return count


def test_no_weight_is_copied(files: Path) -> None:
    assert count_evaluation(files).copied_weights == []


def test_nothing_larger_than_the_logits_or_a_tile_of_sig_reg_is_made(files: Path) -> None:
    """So no scores [B, H, T, T] and no tensor of slices times points."""
    angles_of_a_tile = CPU_SIG_REG_ROWS * 6 * S
    largest_expected = max(CPU_LOSS_ROWS * V, angles_of_a_tile, SCORES_PER_BLOCK)
    assert count_evaluation(files).largest <= largest_expected < min(B * H * T * T, B * T * S * 16)


def test_a_layer_takes_few_operations(files: Path) -> None:
    """For each sequence attention in blocks, six products, two norms; no more than these and views."""
    two, three = count_evaluation(files, num_layers=2), count_evaluation(files, num_layers=3)
    of_layer = three.operations - two.operations
    assert of_layer["matmul"] == B * 2 * BLOCKS
    assert of_layer["softmax"] == B * BLOCKS
    assert of_layer["addmm"] + of_layer["addmm_"] == B * 6
    assert of_layer["mean"] == B * 2  # one for each norm
    assert of_layer["gelu_"] == B
    assert of_layer.total() <= B * (105 + 12 * BLOCKS)


def test_layers_write_into_the_same_memory(files: Path) -> None:
    """A layer makes the results of its attention, its hidden rows, and small things for its norms and the guard."""
    two, three = count_evaluation(files, num_layers=2), count_evaluation(files, num_layers=3)
    assert three.made - two.made == {
        "matmul": B * 2 * BLOCKS,  # the scores of a block, and its part of the result
        "softmax": B * BLOCKS,
        "new_empty": B,  # [R, F]
        "mean": B * 2,  # [N, 1] for each norm
        "linalg_vector_norm": B * (2 + 2),  # [N, 1] for each norm, [R, H] for queries and keys
        "amax": B * (2 + 1 + 2),  # lengths of queries and keys, of all tiles; the offset at each norm
        "stack": B * 2,
    }


@pytest.mark.slow
def test_each_batch_is_evaluated_once_and_read_back_once(files: Path) -> None:
    """No guard fails on ordinary weights, and one transfer brings the numbers back."""
    data = make_data({"pattern": "text", "size": 17 * 1024})  # two batches
    operations = count_evaluation(files, data=data).operations
    assert operations["softmax"] == 2 * 17 * BLOCKS
    assert operations["item"] + operations["_local_scalar_dense"] == 0


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    sizes: list[int] = []
    read_into = weights_source.FileSource.read_into

    def counting_read_into(self: weights_source.FileSource, offset: int, buffer: memoryview) -> None:
        sizes.append(len(buffer))
        read_into(self, offset, buffer)

    with monkeypatch.context() as patch:
        patch.setattr(weights_source.FileSource, "read_into", counting_read_into)
        yield sizes


def header_bytes(plain: Path) -> int:
    return 8 + int.from_bytes(plain.read_bytes()[:8], "little")


def test_of_a_plain_file_the_header_alone_is_read(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_reads(monkeypatch) as sizes:
        model = ModelRunner(ModelConfig.small()).load(files / "plain")
    assert sum(sizes) == header_bytes(files / "plain")
    places = [parameter.data_ptr() for parameter in model.model.parameters()]
    # Every weight is a view of one mapping.
    assert max(places) - min(places) < (files / "plain").stat().st_size


def test_an_encrypted_file_is_read_once_into_one_block(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (files / "encrypted").stat().st_size
    with counted_reads(monkeypatch) as sizes:
        model = ModelRunner(ModelConfig.small()).load(files / "encrypted", TEST_KEY)
    assert sum(sizes) == size
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.model.parameters()
    }
    assert len(storages) == 1
    gaps = 64 * (len(list(model.model.parameters())) + 2)
    assert sum(storages.values()) <= model.resident_bytes + gaps  # no second copy


def test_loading_draws_no_numbers_and_copies_none(files: Path) -> None:
    runner = ModelRunner(ModelConfig.small())
    count = Count(runner.load(files / "plain"))
    with count:
        runner.load(files / "plain")
    assert not count.operations.keys() & {"uniform_", "normal_", "copy_", "clone"}
    assert not count.copied_weights
