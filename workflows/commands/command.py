"""What a command is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import Config
    from .arguments import Common


@dataclass(frozen=True)
class Command:
    """A command: its flags (given the config that they start from), and what it does."""

    args: type[Common]
    start: Callable[[Config], Common] | None
    """from a preset or --config; None: the command takes neither"""
    act: Callable[[Any], dict[str, Any]]
