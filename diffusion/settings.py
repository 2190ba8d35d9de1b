"""Settings that extend other settings: a job's has all that the core's has, and more."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def narrowed(kind: type[Any], settings: object) -> dict[str, Any]:
    """The values that a dataclass `kind` knows, by name, out of settings that extend it."""
    return {field.name: getattr(settings, field.name) for field in fields(kind)}
