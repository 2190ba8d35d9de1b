"""Several sources as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Item, sorted_classes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..images import Rejected
    from .base import Source


class SeveralSources:
    """The inputs of one source after those of the other. Each name begins with the number of its source: 0/cat/1.png.

    Classes of the same name are one class; inputs of a source without classes have no label.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.channels = max(source.channels for source in sources)
        named = [source.classes for source in sources]
        self.classes = None if None in named else sorted_classes(name for names in named for name in names or ())

    def blocks(self) -> Iterator[list[Item]]:
        """A block is of one source."""
        for number, source in enumerate(self.sources):
            for block in source.blocks():
                yield [item._replace(source=f"{number}/{item.source}") for item in block]

    def read(self, items: Sequence[Item]) -> Iterator[bytes | Rejected]:
        """By the source that the block is of."""
        number = items[0].source.partition("/")[0]
        own = [item._replace(source=item.source.removeprefix(f"{number}/")) for item in items]
        return self.sources[int(number)].read(own)
