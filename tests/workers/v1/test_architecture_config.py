"""The file of an architecture: what is taken, what is refused and why."""

import json

import pytest

from workers.v1 import ArchitectureConfig, ModelConfig, num_batches, num_sequences
from workers.v1.architecture_config import LIMITS, MAX_BATCH_BYTES

OLDER = '{"num_layers": 32, "max_seq_len": 8192, "batch_size": 32, "sig_reg_slices": 1024}'


def test_what_is_left_out_is_the_networks() -> None:
    older = ArchitectureConfig.read(OLDER)
    assert older.model == ModelConfig(num_layers=32)
    assert (older.max_seq_len, older.batch_size, older.sig_reg_slices) == (8192, 32, 1024)
    assert ArchitectureConfig.read("{}") == ArchitectureConfig()


def test_it_is_written_as_it_is_read() -> None:
    for config in ArchitectureConfig(), ArchitectureConfig.small(), ArchitectureConfig.read(OLDER):
        assert ArchitectureConfig.read(config.to_json()) == config


def test_every_field_makes_another_name() -> None:
    names = {ArchitectureConfig().name, ArchitectureConfig.small().name}
    assert names == {"network", "small"}
    changes = {
        "embedding_dim": 1024,
        "pwff_hidden_dim": 16,
        "num_layers": 23,
        "num_heads": 4,
        "vocab_size": 265,
        "max_wavelength": 9999.0,
        "scale_factor": 2,
        "dropout_rate": 0.5,
        "max_seq_len": 1023,
        "batch_size": 15,
        "sig_reg_slices": 255,
    }
    assert changes.keys() == LIMITS.keys()
    names |= {ArchitectureConfig.read(json.dumps({name: value})).name for name, value in changes.items()}
    assert len(names) == 2 + len(changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('{"num_layers": 1, "num_layers": 2}', "twice"),
        ('{"num_layer": 1}', "'num_layer' is no field; num_layers is one"),
        ('{"sig_reg": {"slices": 1024}}', "'sig_reg' is no field; sig_reg_slices is one"),
        ('{"x": 1}', "there are embedding_dim, "),
        ('{"num_layers": "24"}', "num_layers must be a whole number"),
        ('{"num_layers": true}', "num_layers must be a whole number"),
        ('{"num_layers": 24.0}', "num_layers must be a whole number"),
        ('{"num_layers": null}', "num_layers must be a whole number"),
        ('{"max_wavelength": "1e4"}', "max_wavelength must be a number"),
        ('{"max_wavelength": NaN}', "NaN"),
        ('{"max_wavelength": 1e999}', "max_wavelength must be from 1.0 to"),
        (f'{{"max_wavelength": {10**400}}}', "max_wavelength must be a number"),
        ('{"num_layers": 0}', "num_layers must be at least 1"),
        ('{"num_layers": -1}', "num_layers must be at least 1"),
        ('{"num_heads": 7}', "2048 is not a multiple of num_heads 7"),
        ('{"embedding_dim": 12, "num_heads": 4}', "even head width"),
        ('{"vocab_size": 257}', "vocab_size"),
        ('{"dropout_rate": 1.0}', "dropout_rate"),
        ('{"max_seq_len": 0}', "max_seq_len must be from 1"),
        ('{"batch_size": 1025, "max_seq_len": 1}', "batch_size must be from 1 to 1,024"),
        ('{"sig_reg_slices": 0}', "sig_reg_slices must be from 1"),
        ('{"num_layers": 257}', "num_layers must be from 1 to 256"),
        ('{"embedding_dim": 16385, "num_heads": 1}', "even head width"),
        ('{"embedding_dim": 32768}', "embedding_dim must be from 1 to 16,384"),
        ('{"max_seq_len": 8192, "batch_size": 33}', "a batch, max_seq_len x batch_size"),
    ],
)
def test_a_file_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        ArchitectureConfig.read(text)
    assert len(str(raised.value)) < 300


def test_the_older_parameters_fit_within_the_limits() -> None:
    assert ArchitectureConfig.read(OLDER).batch_bytes == MAX_BATCH_BYTES


def test_it_counts_as_its_runner_does() -> None:
    config = ArchitectureConfig.read(
        '{"embedding_dim": 16, "num_heads": 4, "num_layers": 1, "max_seq_len": 64, "batch_size": 3}'
    )
    runner = config.runner("cpu", "float32")
    for size in 1, 64, 65, 192, 193, 1000:
        assert config.num_batches(size) == runner.num_batches(size) == num_batches(size, 64, 3)
        assert config.num_sequences(size) == num_sequences(size, 64)


def test_large_is_what_has_large_products() -> None:
    assert not ArchitectureConfig().is_small
    assert not ArchitectureConfig.read(OLDER).is_small
    assert ArchitectureConfig.small().is_small
