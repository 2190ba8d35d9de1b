"""Several sources as one."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from .base import Item, sorted_classes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..images import Rejected
    from .base import Source


class SeveralSources:
    """The inputs of one source after those of the other. Names of the second on begin with a number: 1//cat/1.png.

    Those of the first do not, so that a set of one source can be added to from another. Classes of the same name are
    one class; inputs of a source without classes have no label.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.channels = max(source.channels for source in sources)

    @cached_property
    def classes(self) -> list[str] | None:
        """Those of all; None if one's are those that the listing will show."""
        named = [source.classes for source in self.sources]
        return None if None in named else sorted_classes(name for names in named for name in names or ())

    def blocks(self) -> Iterator[list[Item]]:
        """A block is of one source."""
        for number, source in enumerate(self.sources):
            for block in source.blocks():
                yield [item._replace(source=f"{number}//{item.source}") if number else item for item in block]

    def read(self, items: Sequence[Item]) -> Iterator[bytes | Rejected]:
        """By the source that the block is of."""
        number, mark, _ = items[0].source.partition("//")
        if not mark or not number.isdigit():
            return self.sources[0].read(items)
        own = [item._replace(source=item.source.removeprefix(f"{number}//")) for item in items]
        return self.sources[int(number)].read(own)
