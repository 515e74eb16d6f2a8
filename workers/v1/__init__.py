"""Architecture version 1 of the SOMA network: a pure package that knows nothing of the service around it.

`ModelRunner` is the mirror of the network's Rust runner: start reading at `model_runner.py`, then `batch_scorer.py`,
`forward.py` and `weights.py`. The rest of the exports are the training surface of the published reference.

Names are imported when they are first used, so that importing this package is cheap and takes no torch:
`config`, `errors`, `tokenizer`, `running_mean` and `weights_header` never need it.
"""

import importlib
from typing import TYPE_CHECKING

from . import weights_header
from .architecture_config import ArchitectureConfig
from .config import (
    ARCHITECTURE_VERSION,
    NUMERICS_VERSION,
    V1_BATCH_SIZE,
    V1_EMBEDDING_DIM,
    V1_EOS_TOKEN_ID,
    V1_MAX_SEQ_LEN,
    V1_MAX_WAVELENGTH,
    V1_NUM_HEADS,
    V1_NUM_LAYERS,
    V1_PAD_TOKEN_ID,
    V1_PWFF_HIDDEN_DIM,
    V1_SCALE_FACTOR,
    V1_SIG_REG_COEFFICIENT,
    V1_SIG_REG_POINTS,
    V1_SIG_REG_SLICES,
    V1_SIG_REG_T_MAX,
    V1_VOCAB_SIZE,
    ModelConfig,
    SIGRegConfig,
)
from .environment import changes_numbers
from .errors import DecryptionFailed, EmptyData, EvaluationRefused, NonFiniteResult, WeightsInvalid
from .non_finite import NonFiniteTensor, find_non_finite
from .running_mean import BatchScore, MeanScore, running_mean
from .tokenizer import (
    ByteSequenceBatch,
    TokenizedSequence,
    count_targets,
    num_batches,
    num_sequences,
    tokenize,
)

if TYPE_CHECKING:
    from .loss import compute_loss
    from .model import Model
    from .model_runner import EvalOutput, LoadedModel, ModelRunner
    from .self_test import SelfTest
    from .sig_reg import SIGReg

_NEED_TORCH = {
    "EvalOutput": "model_runner",
    "LoadedModel": "model_runner",
    "Model": "model",
    "ModelRunner": "model_runner",
    "SIGReg": "sig_reg",
    "SelfTest": "self_test",
    "compute_loss": "loss",
}

__all__ = [
    "ARCHITECTURE_VERSION",
    "NUMERICS_VERSION",
    "V1_BATCH_SIZE",
    "V1_EMBEDDING_DIM",
    "V1_EOS_TOKEN_ID",
    "V1_MAX_SEQ_LEN",
    "V1_MAX_WAVELENGTH",
    "V1_NUM_HEADS",
    "V1_NUM_LAYERS",
    "V1_PAD_TOKEN_ID",
    "V1_PWFF_HIDDEN_DIM",
    "V1_SCALE_FACTOR",
    "V1_SIG_REG_COEFFICIENT",
    "V1_SIG_REG_POINTS",
    "V1_SIG_REG_SLICES",
    "V1_SIG_REG_T_MAX",
    "V1_VOCAB_SIZE",
    "ArchitectureConfig",
    "BatchScore",
    "ByteSequenceBatch",
    "DecryptionFailed",
    "EmptyData",
    "EvalOutput",
    "EvaluationRefused",
    "LoadedModel",
    "MeanScore",
    "Model",
    "ModelConfig",
    "ModelRunner",
    "NonFiniteResult",
    "NonFiniteTensor",
    "SIGReg",
    "SIGRegConfig",
    "SelfTest",
    "TokenizedSequence",
    "WeightsInvalid",
    "changes_numbers",
    "compute_loss",
    "count_targets",
    "find_non_finite",
    "num_batches",
    "num_sequences",
    "running_mean",
    "tokenize",
    "weights_header",
]


def __getattr__(name: str) -> object:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{_NEED_TORCH[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
