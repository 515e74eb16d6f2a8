"""soma-eval for Python: evaluate weights in this process with `ModelRunner`, or let a service do it with `Client`.

    from soma_eval import ModelConfig, ModelRunner
    out = ModelRunner(ModelConfig()).eval(data, "weights.safetensors", seed=0)

    from soma_eval import Client
    with Client("http://127.0.0.1:8000") as client:
        response = client.eval(data=data, weights_url="https://publisher.example/weights.enc", decryption_key=key)

`soma_eval.errors` has the exceptions of the clients. Names are imported when they are first used, so that neither this
package nor the clients import torch.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.v1 import (
        EvalOutput,
        Model,
        ModelConfig,
        ModelRunner,
        SIGReg,
        SIGRegConfig,
        compute_loss,
        tokenize,
    )

    from .calls import ModelManifest, ScreenModel, ScreenPiece, ScreenTarget
    from .client import AsyncClient, Client
    from .errors import SomaEvalError
    from .retries import RetryPolicy

__version__ = version("soma-eval")

__all__ = [
    "AsyncClient",
    "Client",
    "EvalOutput",
    "Model",
    "ModelConfig",
    "ModelManifest",
    "ModelRunner",
    "RetryPolicy",
    "SIGReg",
    "SIGRegConfig",
    "ScreenModel",
    "ScreenPiece",
    "ScreenTarget",
    "SomaEvalError",
    "compute_loss",
    "tokenize",
]

_MODULES_OF_THIS_PACKAGE = {
    "AsyncClient": ".client",
    "Client": ".client",
    "ModelManifest": ".calls",
    "RetryPolicy": ".retries",
    "ScreenModel": ".calls",
    "ScreenPiece": ".calls",
    "ScreenTarget": ".calls",
    "SomaEvalError": ".errors",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_MODULES_OF_THIS_PACKAGE.get(name, "workers.v1"), __name__)
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
