"""A config as a file: YAML or JSON in, checked key by key; YAML or plain dicts out."""

from __future__ import annotations

from typing import Any

import cattrs
import yaml

from diffusion.files import Folder

from .config import Config

CONVERTER = cattrs.Converter(forbid_extra_keys=True)


def to_yaml(config: Config) -> str:
    """The whole tree, ready to be edited and given back by `--config`."""
    text: str = yaml.safe_dump(CONVERTER.unstructure(config), sort_keys=False)
    return text


def to_plain(config: object) -> dict[str, Any]:
    """A (part of a) config as dicts and lists."""
    plain: dict[str, Any] = CONVERTER.unstructure(config)
    return plain


def from_plain(value: object) -> Config:
    """The config of a parsed YAML text. Raises ValueError, naming the key, for what is unknown or impossible."""
    if not isinstance(value, dict):
        raise ValueError(f"a config must be a mapping of keys to values, got {value!r}")
    try:
        return CONVERTER.structure(value, Config)
    except cattrs.BaseValidationError as err:
        raise ValueError("; ".join(_flat_messages(err))) from None


def read_config(uri: str) -> Config:
    """Read a YAML or JSON file, local or by URI. Raises ValueError if it is not there or not a config."""
    file = Folder(uri)
    try:
        return from_plain(yaml.safe_load(file.parent.read(file.name)))
    except OSError:
        raise ValueError(f"config must be a YAML file; there is none at {uri}") from None
    except yaml.YAMLError as err:
        raise ValueError(f"config {uri} is not YAML: {' '.join(str(err).split())}") from None


def _exactly(value: Any, kind: type[Any]) -> Any:
    """cattrs would make 1 of 1.7 and True of "no"; only a whole number may stand for a float, or YAML's "2e-4"."""
    if kind is float and not isinstance(value, bool) and isinstance(value, int | str):
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"must be {NOUNS[kind]}, got {value!r}")
    return value


def _texts(value: Any, _kind: object) -> tuple[str, ...]:
    """A list of texts, or one that stands alone."""
    if not isinstance(value, str | list | tuple):
        raise ValueError(f"must be text or a list of texts, got {value!r}")
    return tuple(_exactly(text, str) for text in ([value] if isinstance(value, str) else value))


CONVERTER.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _texts)
NOUNS: dict[type[Any], str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
for _kind in NOUNS:
    CONVERTER.register_structure_hook(_kind, _exactly)


def _flat_messages(err: BaseException, path: str = "") -> list[str]:
    """Each message of a tree of cattrs errors, with the key that it is about."""
    if isinstance(err, cattrs.ForbiddenExtraKeysError):
        return [f"unknown key {path}{key}" for key in sorted(err.extra_fields)]
    if isinstance(err, KeyError):
        return [f"missing key {path.rstrip('.')}"]
    if isinstance(err, AttributeError | TypeError):  # a plain value where a mapping belongs
        return [f"{path.rstrip('.')} must be a mapping of keys to values"]
    if not isinstance(err, BaseExceptionGroup):
        return [f"{path.rstrip('.')}: {err}" if path else str(err)]
    messages = []
    for inner in err.exceptions:
        notes = [note for note in getattr(inner, "__notes__", []) if hasattr(note, "name")]
        messages += _flat_messages(inner, f"{path}{notes[0].name}." if notes else path)
    return messages
