"""Command-line flags made from the settings: names, types, defaults and help are those of `service.config`."""

import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from service.cli.standard_streams import complain
from service.cli.usage import BadUsage
from service.config import ArchitectureFile, Settings
from service.environment import PREFIX, RENAMED_SETTINGS, check_environment

_FLAGS = {"api_keys": "--api-key"}
"""Where the flag does not have the setting's name."""
_OPPOSITES = {
    "small_model": "--full-model",
    "allow_http": "--https-only",
    "allow_private_addresses": "--public-addresses-only",
    "allow_open_cluster": "--closed-clusters-only",
}
"""The flag that switches a setting off."""
_DEVICES = ["auto", "cpu", "cuda", "cuda:0", "cuda:1"]
"""The first of what --device takes."""
_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}

Command = Callable[..., int]


def setting_flags(
    *names: str, ignored: Sequence[str] = (), defaults: Mapping[str, str] | None = None
) -> Callable[[Command], Command]:
    """Give a command a flag for each of these settings, in place of its parameter `flags`.

    `flags` is then a dict of those that were given, by the setting's name. `ignored` are accepted and not shown in
    the help, so that a script may give all commands the same flags. `defaults` are shown in place of the settings'.
    """
    parameters = {name: _parameter(name, (defaults or {}).get(name)) for name in names}
    parameters |= {name: _hidden_parameter(name, Settings.model_fields[name]) for name in ignored}
    old_names = {old: new for old, new in RENAMED_SETTINGS.items() if new in names}
    parameters |= {old: _hidden_parameter(old, Settings.model_fields[new]) for old, new in old_names.items()}

    def with_flags(command: Command) -> Command:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]

        def run(**values: Any) -> int:
            given = {name: values.pop(name) for name in parameters}
            flags = {name: value for name, value in given.items() if value is not None}
            return command(**values, flags=_renamed(flags))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in (*own, *parameters.values())]
        )
        return run

    return with_flags


def settings_from(flags: Mapping[str, Any]) -> Settings:
    """The settings: flags over the environment over `.env`. Raises BadUsage or BadEnvironment."""
    for warning in check_environment(Settings.model_fields):
        complain(f"{warning}.")
    with bad_settings_are_usage():
        settings = Settings(**flags)
    if settings.architecture is not None:
        _check_architecture(settings)
    return settings


def _check_architecture(settings: Settings) -> None:
    """Raises BadUsage."""
    from service.scoring.served_architecture import architecture_of

    try:
        architecture_of(settings)
    except ValueError as error:
        raise BadUsage(f"--architecture ({PREFIX}ARCHITECTURE): {error}") from None


@contextmanager
def bad_settings_are_usage(*, has_variables: bool = True) -> Iterator[None]:
    """Turn a setting that is refused into BadUsage that names its flag, and its variable if that counts here."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise BadUsage(reason) from None
        name = str(first["loc"][0]).removeprefix(PREFIX).lower()
        variable = f" ({PREFIX}{name.upper()})" if has_variables else ""
        raise BadUsage(f"{_flag(name)}{variable}: {reason}") from None


def _renamed(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags under an old name, with a warning, as the setting's own; that one counts where both are given."""
    for old in RENAMED_SETTINGS.keys() & flags.keys():
        new = RENAMED_SETTINGS[old]
        complain(f"{_flag(old)} is deprecated: use {_flag(new)}.")
        flags = {new: flags[old]} | {name: value for name, value in flags.items() if name != old}
    return flags


def _parameter(name: str, default: str | None) -> inspect.Parameter:
    field = Settings.model_fields[name]
    default = default if default is not None else _shown(name, field.default)
    help_text = f"{field.description}  [default: {default}]" if default else field.description
    complete = _completion(name, field)
    return _optional(name, field, typer.Option(_declaration(name), help=help_text, autocompletion=complete))


def _hidden_parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    return _optional(name, field, typer.Option(_declaration(name), hidden=True))


def _completion(name: str, field: FieldInfo) -> Callable[[str], list[str]] | None:
    """What a shell offers for a flag: the values that a setting can have, where they are few."""
    values = _DEVICES if name == "device" else _literals(field.annotation)

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete if values else None


def _literals(annotation: Any) -> list[str]:
    """The words that an annotation allows."""
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    return [value for member in get_args(annotation) for value in _literals(member)]


def _optional(name: str, field: FieldInfo, option: Any) -> inspect.Parameter:
    annotation = Annotated[_flag_type(field.annotation) | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag(name: str) -> str:
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def _declaration(name: str) -> str:
    return f"{_flag(name)}/{_OPPOSITES[name]}" if name in _OPPOSITES else _flag(name)


def _flag_type(annotation: Any) -> Any:
    """What the shell's word is parsed as: everything but numbers, paths and switches is left to the settings."""
    if get_origin(annotation) is Annotated:
        return _flag_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return _flag_type(members[0]) if len(members) == 1 else str
    if annotation in (bool, int, float, Path):
        return annotation
    if annotation is ArchitectureFile:
        return Path
    return list[str] if annotation == Settings.model_fields["api_keys"].annotation else str


def _shown(name: str, default: Any) -> str:
    """A default as the help shows it; empty where the description says what happens without the flag."""
    if default is None or default is False or default == ():
        return ""
    if isinstance(default, tuple):
        return ",".join(default)
    if name.endswith(("_bytes", "_rate")):
        unit, size = next((unit, size) for unit, size in _UNITS.items() if default % size == 0)
        return f"{default / size:g} {unit}{'/s' if name.endswith('_rate') else ''}"
    return f"{default:g}" if isinstance(default, float) else str(default)
