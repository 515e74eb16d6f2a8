"""The flags of a command that name the architecture of its settings, for a command line that is shown."""

from service.config import Settings


def architecture_flags(settings: Settings) -> list[str]:
    """The words, not quoted."""
    if settings.architecture is not None:
        return ["--architecture", str(settings.architecture.path)]
    return ["--small-model" if settings.small_model else "--full-model"]
