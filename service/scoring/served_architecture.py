"""Which architecture the settings name: the network's own, its small one, or that of a file."""

from service.config import Settings
from workers.architectures import CURRENT_VERSION, ArchitectureConfig, config_of, load_architecture


def architecture_of(settings: Settings) -> ArchitectureConfig:
    """Raises ValueError, which says what is wrong with the file."""
    text = "" if settings.architecture is None else settings.architecture.text
    try:
        return config_of(load_architecture(CURRENT_VERSION), text, small_model=settings.small_model)
    except ValueError as error:
        raise ValueError(f"{settings.architecture}: {error}") from None
