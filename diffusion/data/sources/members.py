"""What members of archives are called."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..tar import Member

MACOS = "__MACOSX"
"""a folder that macOS adds to zip archives, with a file of its own for each file"""


class UniqueNames:
    """A name for each member of one archive, of which there is only one: an archive may hold several of a name."""

    def __init__(self) -> None:
        self._seen: set[int] = set()  # 64 bits of a hash: an archive may have millions. Equal ones cost a needless "#"

    def of(self, member: Member) -> str:
        """The member's own, with #offset behind it if an earlier one has that."""
        name = member.name
        while (
            key := int.from_bytes(blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest())
        ) in self._seen:
            name = f"{name}#{member.offset}"
        self._seen.add(key)
        return name


def is_called(name: str, member: str, offset: int) -> bool:
    """Whether UniqueNames may have given this name to this member."""
    return name.startswith(member) and not name.removeprefix(member).replace(f"#{offset}", "")


def is_hidden(name: str) -> bool:
    """Whether a member, or a folder that it is in, begins with a dot or is macOS's own."""
    return any(part == MACOS or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def top_folder(name: str) -> str | None:
    """The first folder of a member's name, if it is in one."""
    folders = [part for part in name.split("/")[:-1] if part not in ("", ".", "..")]
    return folders[0] if folders else None
