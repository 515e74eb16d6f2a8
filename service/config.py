"""The settings: the only reader of the environment. Flag over environment over `.env` over default.

The text below a field is also the help of its flag, which the command line makes from the field.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    InstanceOf,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from service.environment import API_KEY_NAMES, ENV_FILE, PREFIX, variables_of

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

Device = str
Number = TypeVar("Number", int, float)


def _within(least: Number, most: Number) -> AfterValidator:
    """Refuse what is out of range; infinities and NaN always are."""

    def check(value: Number) -> Number:
        if not least <= value <= most:
            raise ValueError(f"must be from {least:,} to {most:,}")
        return value

    return AfterValidator(check)


def _check_host(host: str) -> str:
    if not host or host != host.strip():
        raise ValueError("give an address or a name: 127.0.0.1, or 0.0.0.0 for all of this machine's")
    return host


Host = Annotated[str, AfterValidator(_check_host)]
Port = Annotated[int, _within(0, 65535)]
Seconds = Annotated[float, _within(0.1, 604_800.0)]
_MAX_ARCHITECTURE_CHARACTERS = 1 << 16


def _in_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("there is no home directory, so say where files are kept") from None


@dataclass(frozen=True, slots=True)
class ArchitectureFile:
    """A file that describes an architecture, as it was when it was read."""

    path: Path
    text: str
    """Not checked yet, but not empty: see `service.scoring.served_architecture`."""

    def __str__(self) -> str:
        return str(self.path)


def _read_architecture(given: object) -> object:
    if not isinstance(given, str | Path):
        return given
    path = _in_home(Path(given))
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_ARCHITECTURE_CHARACTERS + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'it cannot be read'}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: it is not text") from None
    if not text.strip() or len(text) > _MAX_ARCHITECTURE_CHARACTERS:
        raise ValueError(f"{path}: it is {'too large' if text.strip() else 'empty'}")
    return ArchitectureFile(path, text)


class Settings(BaseSettings):
    """Every setting of the service. The environment variable of `max_data_bytes` is SOMA_EVAL_MAX_DATA_BYTES."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_ignore_empty=True,  # a template of a .env file may leave its values open
        extra="ignore",
        frozen=True,
        validate_default=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    host: Host = "127.0.0.1"
    """Address that HTTP listens on; 0.0.0.0 for all addresses of this machine."""
    port: Port = 8000
    """HTTP port; 0 picks a free one."""
    grpc_port: Port | Literal["off"] = 9124
    """Port of the network's own gRPC service, scoring.Scoring; "off" for none, 0 for a free one."""
    grpc_host: Host | None = None
    """Address that gRPC listens on, which asks for no API key; by default 127.0.0.1 if API keys are set, else
    the address of HTTP."""

    device: Annotated[tuple[Device, ...], NoDecode] = ("auto",)
    """auto, cpu, cuda, cuda:N, or a comma list of them: one worker process each."""
    small_model: bool = False
    """Use the network's small architecture."""
    architecture: Annotated[
        InstanceOf[ArchitectureFile] | None, BeforeValidator(_read_architecture), NoDecode
    ] = None
    """JSON file of another architecture than the network's: num_layers, max_seq_len, batch_size, sig_reg_slices ..."""
    precision: Literal["float32", "tf32", "bf16", "float32-split"] = "float32"
    """float32, as the network computes; on a GPU also tf32, bf16 and float32-split: see docs/gpu.md."""
    device_memory_bytes: Annotated[int, _within(MIB, 16 * TIB)] | None = None
    """Bytes on each device for weights that stay loaded, shared by its workers; by default 60 % of a GPU's memory that
    is free at the start, or half of the machine's for the CPU."""

    pool: Literal["local", "ray"] = "local"
    """local, the devices of this machine; or ray, those of the nodes of a Ray cluster (pip extra `cluster`)."""
    ray_address: str = "local"
    """HOST:PORT of the Ray cluster's head; local starts a private one on this machine."""
    allow_open_cluster: bool = False
    """Use a Ray cluster that asks for no token, in which whoever reaches it may run code."""
    node_data_dir: str = "~/.cache/soma-eval-node"
    """Folder on each node of a cluster for the files that it is sent."""
    node_cache_max_bytes: Annotated[int, _within(MIB, 1024 * TIB)] = 100 * GIB
    """Size limit of that folder in bytes; least recently used files go first."""

    data_dir: Annotated[Path, AfterValidator(_in_home)] = Path("~/.cache/soma-eval")
    """Folder of the download cache; files lie there as published, never decrypted."""
    cache_max_bytes: Annotated[int, _within(MIB, 1024 * TIB)] = 100 * GIB
    """Size limit of the download cache in bytes; least recently used files go first."""

    state_url: SecretStr | None = None
    """Where jobs and results are kept: postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, or off to keep nothing; by
    default a SQLite file in the data folder. Prefer SOMA_EVAL_STATE_URL where it holds a password."""
    state_key_file: Annotated[Path, AfterValidator(_in_home)] | None = None
    """File of the key that seals the requests of stored jobs, made if there is none; by default state.key in the data
    folder. Services that share a database share this too."""
    max_finished_jobs: Annotated[int, _within(1, 1_000_000)] = 1_000
    """Jobs that are kept after they have ended, the last to end longest."""
    finished_job_seconds: Annotated[float, _within(1.0, 31_536_000.0)] = 86_400.0
    """Seconds that a job is kept after it has ended."""
    max_kept_results: Annotated[int, _within(0, 100_000_000)] = 100_000
    """Results that are kept, so that the same is not computed twice; 0 for none. One of full V1 takes 12 KB."""
    max_result_age_seconds: Annotated[float, _within(1.0, 315_360_000.0)] = 2_592_000.0
    """Seconds after which a kept result that was not used is dropped."""

    queue_size: Annotated[int, _within(1, 10_000)] = 64
    """Requests that may run or wait at once; one more is refused as queue-full (HTTP 429)."""
    max_weights_at_once: Annotated[int, _within(1, 1_000)] = 16
    """Weights files that are downloaded at once."""
    request_timeout_seconds: Seconds = 3600.0
    """Time limit of one request in seconds, its waiting and its downloads included."""
    drain_timeout_seconds: Annotated[float, _within(0.0, 86_400.0)] = 60.0
    """Seconds that running requests may go on after SIGTERM."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), validation_alias=AliasChoices(*API_KEY_NAMES)
    )
    """API key that HTTP clients must send, as `Authorization: Bearer KEY` (repeatable); gRPC asks for none. It
    lands in the shell's history: prefer SOMA_EVAL_API_KEYS, a comma list."""
    max_data_bytes: Annotated[int, _within(KIB, GIB)] = 1 * MIB
    """Largest data of one evaluation in bytes; the network takes up to 1 MiB."""
    max_model_bytes: Annotated[int, _within(KIB, TIB)] = 16 * GIB
    """Largest weights file in bytes; full V1 has 4.84 GB in float32, twice that in float64."""
    max_models: Annotated[int, _within(1, 4096)] = 64
    """Most models of one competition or screen."""
    max_pieces: Annotated[int, _within(1, 1_000_000)] = 10_000
    """Most pieces of data of one screen."""
    max_targets: Annotated[int, _within(1, 100_000)] = 1_000
    """Most targets of one screen."""
    max_screen_body_bytes: Annotated[int, _within(KIB, GIB)] = 32 * MIB
    """Largest body of POST /screen in bytes: all its pieces in Base64, and its targets."""

    allow_http: bool = False
    """Fetch plain http URLs too, for tests and closed networks."""
    allow_private_addresses: bool = False
    """Fetch from private addresses too, for tests and closed networks."""
    download_base_timeout_seconds: Seconds = Field(
        default=30.0, validation_alias=AliasChoices(*variables_of("download_base_timeout_seconds"))
    )
    """Seconds that every download may take, on top of its size / the minimum rate."""
    min_download_rate: Annotated[float, _within(1.0, float(TIB))] = float(MIB)
    """Minimum rate of a download in bytes per second; a slower one is given up."""
    max_download_attempts: Annotated[int, _within(1, 100)] = 5
    """Attempts per file."""

    traces: bool = False
    """Send traces as OTLP over HTTP, to where OTEL_EXPORTER_OTLP_ENDPOINT says; needs the extra `otel`."""
    log_format: Literal["console", "json"] = "console"
    """console for people, json for a log collector."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged: debug, info, warning or error."""

    @property
    def grpc_listen_host(self) -> str:
        """The address that gRPC listens on."""
        return self.grpc_host or ("127.0.0.1" if self.api_keys else self.host)

    @property
    def max_body_bytes(self) -> int:
        """The largest request body: the data in Base64, and room for targets and manifests."""
        return 4 * MIB + self.max_data_bytes * 4 // 3

    @property
    def state_database(self) -> str | None:
        """The URL of the database of jobs and results, or `off`; None for SQLite in the data folder."""
        return self.state_url.get_secret_value() if self.state_url else None

    @property
    def is_open_to_all(self) -> bool:
        """Whether HTTP listens beyond this machine and asks for no API key."""
        return not self.api_keys and not is_loopback(self.host)

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

    @field_validator("state_url")
    @classmethod
    def _check_state_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or url.get_secret_value() == "off":
            return url
        if not _is_postgres_url(url.get_secret_value()):
            raise ValueError("give off, or a URL like postgresql+psycopg://USER:PASSWORD@HOST/DATABASE")
        if find_spec("psycopg") is None:
            raise ValueError("PostgreSQL's driver is not installed: pip install 'soma-eval[postgres]'")
        return url

    @model_validator(mode="after")
    def _check_contradictions(self) -> Self:
        if self.precision != "float32" and set(self.device) == {"cpu"}:
            raise ValueError(f"precision {self.precision} needs a cuda device, and device is cpu")
        if self.small_model and self.architecture is not None:
            raise ValueError("small_model and architecture name two architectures: give one of them")
        if self.pool == "ray" and any(":" in device for device in self.device):
            raise ValueError("with pool ray a device is auto, cpu or cuda: Ray says which GPU is whose")
        if self.max_data_bytes > self.cache_max_bytes:
            raise ValueError("cache_max_bytes is smaller than max_data_bytes")
        if self.traces and not _has_module("opentelemetry.exporter.otlp.proto.http"):
            raise ValueError("traces need the extra: pip install 'soma-eval[otel]'")
        return self


def _has_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it
        return False


def _is_postgres_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "postgresql+psycopg" and bool(parts.path.strip("/")) and parts.port != 0
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ExplicitSettings(Settings):
    """Settings from the arguments and defaults alone, without the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the arguments."""
        return (init_settings,)
