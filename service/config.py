"""The settings: the only reader of the environment. Flag over environment over `.env` over default."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

MIB = 1 << 20
GIB = 1 << 30

Device = str


def default_data_dir() -> Path:
    """Where blobs are kept unless told otherwise."""
    return Path.home() / ".cache" / "soma-eval"


class Settings(BaseSettings):
    """Every setting of the service. The environment twin of `max_data_bytes` is SOMA_EVAL_MAX_DATA_BYTES."""

    model_config = SettingsConfigDict(
        env_prefix="SOMA_EVAL_",
        env_file=".env",
        env_ignore_empty=True,  # compose files pass what is not set as an empty text
        extra="ignore",
        frozen=True,
        validate_default=True,
        populate_by_name=True,
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """0 picks a free one."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = 9124
    """The port of the network's own scoring service; "off" for none, 0 for a free one."""
    grpc_host: str | None = Field(default=None, min_length=1)
    """Where gRPC listens, which knows no API keys; None: 127.0.0.1 when there are any, else `host`."""

    device: Annotated[tuple[Device, ...], NoDecode] = ("auto",)
    """auto | cpu | cuda | cuda:N, or a comma list of them: one worker process each."""
    small_model: bool = False
    """The network's own small architecture in place of full V1."""
    precision: Literal["float32", "tf32", "bf16", "float32-split"] = "float32"
    device_memory_bytes: int | None = Field(default=None, ge=1)
    """What resident weights may take per device; None: all but what an evaluation needs."""

    data_dir: Path = Field(default_factory=default_data_dir)
    """Holds the blobs, as published. Nothing decrypted ever lies here."""
    cache_max_bytes: int = Field(default=100 * GIB, ge=1)
    """What lies in the cache unused is evicted, oldest use first, above this."""

    queue_size: int = Field(default=64, ge=1)
    """Requests that may wait or run at once; one more is told queue-full."""
    max_weights_at_once: int = Field(default=16, ge=1)
    """Weights files that are downloaded at once."""
    request_timeout_seconds: float = Field(default=3600.0, gt=0)
    drain_timeout_seconds: float = Field(default=60.0, ge=0)
    """How long running work may go on after SIGTERM."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), validation_alias=AliasChoices("SOMA_EVAL_API_KEYS", "SOMA_EVAL_API_KEY")
    )
    """With any, HTTP needs `Authorization: Bearer`; gRPC asks for none. In the environment a comma list."""
    max_data_bytes: int = Field(default=1 * MIB, ge=1)
    """Data of one evaluation; 1 MiB on the network."""
    max_model_bytes: int = Field(default=16 * GIB, ge=1)
    """One weights file: full V1 is 4.84 GB in float32, twice that in float64."""
    max_models: int = Field(default=64, ge=1)
    """Models of one competition."""

    allow_http: bool = False
    """Plain http URLs, for tests and closed networks."""
    allow_private_addresses: bool = False
    """Addresses that are not public, for tests and closed networks."""
    download_floor_seconds: float = Field(default=30.0, gt=0)
    """A download may take this long, and size / min_download_rate on top."""
    min_download_rate: float = Field(default=1 * MIB, gt=0)
    """Bytes per second below which a download is given up."""
    max_download_attempts: int = Field(default=5, ge=1)

    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def grpc_listen_host(self) -> str:
        """The address that gRPC listens on."""
        return self.grpc_host or ("127.0.0.1" if self.api_keys else self.host)

    @property
    def max_body_bytes(self) -> int:
        """The largest request body: the data in Base64, and room for targets and manifests."""
        return 4 * MIB + self.max_data_bytes * 4 // 3

    @field_validator("device", mode="before")
    @classmethod
    def _split_devices(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("device")
    @classmethod
    def _check_devices(cls, devices: tuple[Device, ...]) -> tuple[Device, ...]:
        for device in devices:
            kind, _, index = device.partition(":")
            if kind not in ("auto", "cpu", "cuda") or (
                ":" in device and not (kind == "cuda" and index.isdecimal())
            ):
                raise ValueError(f"{device!r} is not a device: auto, cpu, cuda or cuda:N")
        if not devices or ("auto" in devices and len(devices) > 1):
            raise ValueError("auto stands alone")
        return devices

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_api_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(","))

    @field_validator("api_keys")
    @classmethod
    def _check_api_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(key.get_secret_value().strip() for key in keys):
            raise ValueError("one of them is empty")
        return keys

    @model_validator(mode="after")
    def _check_contradictions(self) -> Self:
        if self.precision != "float32" and set(self.device) == {"cpu"}:
            raise ValueError(f"precision {self.precision} needs a cuda device, and device is cpu")
        if self.max_data_bytes > self.cache_max_bytes:
            raise ValueError("cache_max_bytes is smaller than max_data_bytes")
        return self


class ExplicitSettings(Settings):
    """Settings from the arguments and defaults alone: what the environment says does not count."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given."""
        return (init_settings,)
