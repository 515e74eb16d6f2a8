"""What a request may ask for."""

from dataclasses import dataclass

from service.errors import BlobTooLarge, EmptyData, InvalidRequest
from workers.architectures import ArchitectureConfig


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of every request, whichever API it comes by."""

    architecture: ArchitectureConfig
    """What is served."""
    max_data_bytes: int
    max_model_bytes: int
    max_models: int
    architecture_version: str

    @property
    def embedding_dim(self) -> int:
        """Length of a target embedding."""
        return int(self.architecture.model.embedding_dim)

    def check_num_models(self, num_models: int, what: str) -> None:
        """Raises InvalidRequest; `what` has the models."""
        if not 1 <= num_models <= self.max_models:
            raise InvalidRequest(f"a {what} must have 1 to {self.max_models} models")

    def check_inline_data(self, size: int) -> None:
        """Of data that came with the request, in bytes. Raises EmptyData or BlobTooLarge."""
        if size == 0:
            raise EmptyData("the data is empty", fault="client", blob="data")
        if size > self.max_data_bytes:
            detail = f"the data has more than {self.max_data_bytes} bytes"
            raise BlobTooLarge(detail, blob="data", fault="client")
