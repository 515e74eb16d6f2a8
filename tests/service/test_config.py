"""Settings: the order of their sources, and contradictions."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from service.config import ExplicitSettings, Settings
from service.scoring.competition import MAX_MANIFESTS


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_flag_over_environment_over_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("SOMA_EVAL_QUEUE_SIZE=3\nSOMA_EVAL_PORT=1003\nSOMA_EVAL_MAX_MODELS=3\n")
    monkeypatch.setenv("SOMA_EVAL_QUEUE_SIZE", "2")
    monkeypatch.setenv("SOMA_EVAL_PORT", "1002")
    settings = Settings(queue_size=1)
    assert (settings.queue_size, settings.port, settings.max_models) == (1, 1002, 3)


def test_lists_come_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMA_EVAL_DEVICE", "cuda:0, cuda:1")
    monkeypatch.setenv("SOMA_EVAL_API_KEYS", "canary-1,canary-2")
    settings = Settings()
    assert settings.device == ("cuda:0", "cuda:1")
    assert [key.get_secret_value() for key in settings.api_keys] == ["canary-1", "canary-2"]
    assert "canary" not in repr(settings)


def test_one_api_key_has_its_own_name_and_no_name_goes_without_the_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_KEYS", "not ours")
    assert Settings().api_keys == ()
    monkeypatch.setenv("SOMA_EVAL_API_KEY", "canary-1")
    assert [key.get_secret_value() for key in Settings().api_keys] == ["canary-1"]


def test_a_comma_alone_is_no_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMA_EVAL_API_KEYS", ",")
    with pytest.raises(ValidationError):
        Settings()


@pytest.mark.parametrize("port", [0, "0", 65535, "9124", "off"])
def test_grpc_ports(port: object) -> None:
    assert str(Settings(grpc_port=port).grpc_port) == str(port)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "contradiction",
    [
        {"device": "cpu", "precision": "tf32"},
        {"device": "auto,cpu"},
        {"device": "tpu"},
        {"device": "cpu:1"},
        {"queue_size": 0},
        {"port": 70000},
        {"grpc_port": 70000},
        {"grpc_port": "-1"},
        {"grpc_port": "on"},
        {"api_keys": ("",)},
        {"api_keys": ("canary", " ")},
        {"api_keys": ","},
        {"cache_max_bytes": 10},
        {"host": ""},
        {"host": " "},
        {"device_memory_bytes": 1},
        {"queue_size": 10**9},
        {"max_weights_at_once": 10**9},
        {"max_data_bytes": 1},
        {"max_model_bytes": 1},
        {"max_models": 4097},
        {"max_download_attempts": 10**9},
        {"request_timeout_seconds": 0.0001},
        {"request_timeout_seconds": float("inf")},
        {"request_timeout_seconds": float("nan")},
        {"drain_timeout_seconds": float("inf")},
        {"drain_timeout_seconds": -1.0},
        {"download_base_timeout_seconds": 0.0001},
        {"download_base_timeout_seconds": float("nan")},
        {"min_download_rate": 1e-9},
        {"min_download_rate": float("nan")},
    ],
    ids=str,
)
def test_contradictions_are_refused(contradiction: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**contradiction)  # type: ignore[arg-type]


def test_grpc_listens_on_loopback_when_there_are_keys_that_it_does_not_ask_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings(host="0.0.0.0").grpc_listen_host == "0.0.0.0"
    keys: dict[str, Any] = {"api_keys": ("key",), "host": "0.0.0.0"}
    assert Settings(**keys).grpc_listen_host == "127.0.0.1"
    monkeypatch.setenv("SOMA_EVAL_GRPC_HOST", "10.0.0.1")
    assert Settings(**keys).grpc_listen_host == "10.0.0.1"
    with pytest.raises(ValidationError):
        Settings(grpc_host="")


def test_every_number_has_a_range() -> None:
    numbers = {
        name for name, value in Settings() if isinstance(value, int | float) and value not in (True, False)
    }
    assert len(numbers) > 10
    for name in numbers - {"grpc_port"}:
        with pytest.raises(ValidationError, match="must be from"):
            Settings(**{name: 10**30})  # type: ignore[arg-type]


def test_the_most_models_are_as_many_as_a_request_may_have() -> None:
    assert Settings(max_models=MAX_MANIFESTS).max_models == MAX_MANIFESTS


@pytest.mark.parametrize(
    ("host", "keys", "is_open"),
    [("127.0.0.1", (), False), ("::1", (), False), ("0.0.0.0", (), True), ("0.0.0.0", ("canary",), False)],
)
def test_what_is_open_to_all(host: str, keys: tuple[str, ...], is_open: bool) -> None:
    assert Settings(host=host, api_keys=tuple(map(SecretStr, keys))).is_open_to_all is is_open


def test_the_body_limit_leaves_room_for_the_data() -> None:
    assert Settings(max_data_bytes=300 << 20).max_body_bytes > 400 << 20


def test_explicit_settings_do_not_look_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("SOMA_EVAL_MAX_MODELS=3\n")
    monkeypatch.setenv("SOMA_EVAL_QUEUE_SIZE", "2")
    assert ExplicitSettings(port=0) == ExplicitSettings(port=0, queue_size=64, max_models=64)


OLD_NAME, NEW_NAME = "SOMA_EVAL_DOWNLOAD_FLOOR_SECONDS", "SOMA_EVAL_DOWNLOAD_BASE_TIMEOUT_SECONDS"


def test_the_old_variable_of_a_renamed_setting_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(f"{OLD_NAME}=3\n")
    assert Settings().download_base_timeout_seconds == 3
    monkeypatch.setenv(OLD_NAME, "4")
    assert Settings().download_base_timeout_seconds == 4
    monkeypatch.setenv(NEW_NAME, "5")
    assert Settings().download_base_timeout_seconds == 5
    assert Settings(download_base_timeout_seconds=6).download_base_timeout_seconds == 6


def test_a_flag_counts_more_than_the_variable_of_the_api_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMA_EVAL_API_KEYS", "of-the-environment")
    settings = Settings(api_keys=(SecretStr("of-the-flag"),))
    assert [key.get_secret_value() for key in settings.api_keys] == ["of-the-flag"]


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
