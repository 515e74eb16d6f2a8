"""All that an evaluation is defined by beside weights, data and seed, and the JSON file in which others are given."""

import difflib
import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from . import tokenizer
from .config import V1_BATCH_SIZE, V1_MAX_SEQ_LEN, V1_SIG_REG_SLICES, ModelConfig, SIGRegConfig

if TYPE_CHECKING:
    from .model_runner import ModelRunner
    from .precisions import Precision

LIMITS: dict[str, tuple[int, int] | tuple[float, float]] = {
    "embedding_dim": (1, 1 << 14),
    "pwff_hidden_dim": (1, 1 << 16),
    "num_layers": (1, 256),
    "num_heads": (1, 1 << 10),
    "vocab_size": (258, 1 << 10),
    "max_wavelength": (1.0, 1e12),
    "scale_factor": (1.0, 1e6),
    "dropout_rate": (0.0, 1.0),
    "max_seq_len": (1, 1 << 15),
    "batch_size": (1, 1 << 10),
    "sig_reg_slices": (1, 1 << 12),
}
"""Of what a file may ask for, both included: what a machine can hold."""
MAX_BATCH_BYTES = 1 << 18
"""Of one batch: the detail of its tokens travels in one message, and so do the pieces of one."""
LARGE_PRODUCT = 1 << 16
"""Elements of a weight from which on its products are large."""


@dataclass(frozen=True, slots=True)
class ArchitectureConfig:
    """The shape of the model, and how data is cut and scored; the defaults are the network's.

    Raises ValueError for sizes out of `LIMITS`, or a batch above MAX_BATCH_BYTES.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    max_seq_len: int = V1_MAX_SEQ_LEN
    """Tokens, so bytes, of a sequence."""
    batch_size: int = V1_BATCH_SIZE
    """Sequences of a batch."""
    sig_reg_slices: int = V1_SIG_REG_SLICES
    """Random directions of SIGReg."""

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            least, most = LIMITS[name]
            if not least <= value <= most:
                raise ValueError(f"{name} must be from {least:,} to {most:,}, not {value:,}")
        if self.batch_bytes > MAX_BATCH_BYTES:
            raise ValueError(
                f"a batch, max_seq_len x batch_size, must have at most {MAX_BATCH_BYTES:,} tokens, "
                f"not {self.batch_bytes:,}"
            )

    @classmethod
    def small(cls) -> "ArchitectureConfig":
        """The network's own `--small-model`."""
        return cls(ModelConfig.small())

    @classmethod
    def read(cls, text: str) -> "ArchitectureConfig":
        """From JSON: an object of the fields of ModelConfig, max_seq_len, batch_size and sig_reg_slices.

        A field that is left out has the network's value. Raises ValueError, which says what is wrong.
        """
        try:
            found = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
        except RecursionError:
            raise ValueError("it is not JSON of an architecture") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error.msg} in line {error.lineno}") from None
        if not isinstance(found, dict):
            raise ValueError('it is not a JSON object, such as {"num_layers": 32}')
        given = {name: _value(name, value) for name, value in found.items()}
        own = {each.name for each in fields(cls)}
        model = ModelConfig(**{name: value for name, value in given.items() if name not in own})
        return cls(model, **{name: value for name, value in given.items() if name in own})

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name in the file."""
        rest = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "model"}
        return asdict(self.model) | rest

    def to_json(self) -> str:
        """What `read` gives this for."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @property
    def name(self) -> str:
        """network, small, or for any other the first 12 hex digits of Blake2b-256 of `to_json()`."""
        known = {ArchitectureConfig(): "network", ArchitectureConfig.small(): "small"}
        return known.get(self) or hashlib.blake2b(self.to_json().encode(), digest_size=32).hexdigest()[:12]

    @property
    def is_small(self) -> bool:
        """Whether no product of an evaluation is large."""
        return self.model.embedding_dim * self.model.pwff_hidden_dim < LARGE_PRODUCT

    @property
    def batch_bytes(self) -> int:
        """Bytes of data that one batch has at most."""
        return self.max_seq_len * self.batch_size

    def num_sequences(self, data_size: int) -> int:
        """Sequences that so many bytes make."""
        return tokenizer.num_sequences(data_size, self.max_seq_len)

    def num_batches(self, data_size: int) -> int:
        """Batches that so many bytes make."""
        return tokenizer.num_batches(data_size, self.max_seq_len, self.batch_size)

    def count_targets(self, data_size: int) -> tuple[int, int]:
        """Targets that so many bytes make, and how many of them are not padding."""
        return tokenizer.count_targets(data_size, self.max_seq_len)

    def runner(
        self, device: str, precision: "Precision", micro_batch_size: int | None = None
    ) -> "ModelRunner":
        """A ModelRunner that evaluates so. Imports torch."""
        from .model_runner import ModelRunner

        return ModelRunner(
            self.model,
            device,
            precision,
            self.max_seq_len,
            self.batch_size,
            micro_batch_size,
            SIGRegConfig(slices=self.sig_reg_slices),
        )


def _value(name: str, value: object) -> Any:
    """The value of a field, of the field's type. Raises ValueError."""
    if name not in LIMITS:
        near = difflib.get_close_matches(name, LIMITS, 1)
        hint = f"; {near[0]} is one" if near else f"; there are {', '.join(LIMITS)}"
        raise ValueError(f"{name[:40]!r} is no field{hint}")
    is_whole = isinstance(LIMITS[name][0], int)
    if type(value) is int and (is_whole or abs(value) < 1 << 53):
        return value if is_whole else float(value)
    if type(value) is float and not is_whole:
        return value
    raise ValueError(f"{name} must be a {'whole ' if is_whole else ''}number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field stands twice in it")
    return found


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no number of an architecture")
