"""Why weights and data have no result: the same on every machine, so no retry helps.

EvaluationRefused
├── WeightsInvalid      not what the network accepts as weights of this architecture
├── DecryptionFailed    a key was given and what it yields is not a safetensors file
├── EmptyData           no bytes to evaluate on
└── NonFiniteResult     loss or embedding is NaN or infinite

The messages say which tensor, what was expected and what was found. They hold no path and no key, and
names out of a file are shortened and escaped.
"""


class EvaluationRefused(Exception):
    """Base: these weights or this data have no result."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class WeightsInvalid(EvaluationRefused):
    """The file is not what the network accepts as weights of this architecture."""


class DecryptionFailed(EvaluationRefused):
    """The key does not fit: what it yields is not a safetensors file."""


class EmptyData(EvaluationRefused):
    """There are no bytes to evaluate on."""


class NonFiniteResult(EvaluationRefused):
    """The loss or the embedding is NaN or infinite."""
