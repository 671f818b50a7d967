"""Tables that say, key by key, how a foreign checkpoint's tensors become ours, and back again, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from i2vgen.checkpoints.errors import CheckpointError, nearest

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One tensor of ours (`target`) and where it comes from (`source`).

    The source tensor may hold `parts` equal blocks of rows, of which the target is block `part`; it may have
    `dropped` more dimensions of size 1 at its end (a 1 x 1 convolution for a linear layer); or be transposed.
    """

    target: str
    source: str
    part: int = 0
    parts: int = 1
    dropped: int = 0
    is_transposed: bool = False

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """Source tensor -> target tensor, a view where that is possible."""
        if self.parts > 1:
            rows = tensor.shape[0] // self.parts
            tensor = tensor[self.part * rows : (self.part + 1) * rows]
        if self.dropped:
            tensor = tensor.reshape(tensor.shape[: -self.dropped])
        return tensor.T if self.is_transposed else tensor

    def target_shape(self, source: Shape) -> Shape:
        """Raises ValueError for a source shape that the entry does not fit."""
        if self.parts > 1 and (not source or source[0] % self.parts):
            raise ValueError(f"shape {list(source)} cannot be split into {self.parts} blocks of rows")
        if self.dropped and (len(source) <= self.dropped or set(source[-self.dropped :]) != {1}):
            raise ValueError(f"shape {list(source)} does not end in {self.dropped} dimensions of size 1")
        shape = (source[0] // self.parts, *source[1:]) if self.parts > 1 else tuple(source)
        shape = shape[: -self.dropped] if self.dropped else shape
        return shape[::-1] if self.is_transposed else shape

    def source_shape(self, target: Shape) -> Shape:
        shape = target[::-1] if self.is_transposed else tuple(target)
        shape = shape + (1,) * self.dropped
        return (shape[0] * self.parts, *shape[1:]) if self.parts > 1 else shape


class KeyTable:
    """All entries of one component in one foreign layout.

    `unused` are source keys that belong to the layout and that we have no use for; they may be there or not.
    Raises ValueError when built from entries that are not one to one: the tables are invertible.
    """

    def __init__(self, name: str, entries: Iterable[Entry], unused: Iterable[str] = ()):
        self.name = name
        self.entries = tuple(entries)
        self.unused = frozenset(unused)
        if len({e.target for e in self.entries}) != len(self.entries):
            raise ValueError(f"table {name}: a target key occurs twice")
        for source, parts in self.by_source.items():
            if [e.part for e in parts] != list(range(parts[0].parts)) or source in self.unused:
                raise ValueError(f"table {name}: {source} is not covered exactly once")

    @cached_property
    def by_source(self) -> dict[str, list[Entry]]:
        """Source key -> its entries, in the order of their rows."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault(entry.source, []).append(entry)
        return {source: sorted(entries, key=lambda e: e.part) for source, entries in groups.items()}

    @cached_property
    def targets(self) -> frozenset[str]:
        return frozenset(e.target for e in self.entries)

    @property
    def sources(self) -> frozenset[str]:
        return frozenset(self.by_source)

    def with_prefix(self, source: str = "", target: str = "") -> KeyTable:
        """The same table with a prefix on all source or target keys."""
        entries = [replace(e, source=source + e.source, target=target + e.target) for e in self.entries]
        return KeyTable(self.name, entries, [source + key for key in self.unused])

    def check_sources(self, keys: Iterable[str]) -> None:
        """Raise CheckpointError naming the first unknown or missing source key, with the nearest known one."""
        _check(self.name, set(keys) - self.unused, self.sources)

    def check_targets(self, keys: Iterable[str]) -> None:
        """The same for our keys, on the way back."""
        _check(self.name, set(keys), self.targets)

    def target_shapes(self, sources: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of ours for the shapes of a foreign checkpoint; checks keys and shapes."""
        self.check_sources(sources)
        shapes = {}
        for entry in self.entries:
            try:
                shapes[entry.target] = entry.target_shape(tuple(sources[entry.source]))
            except ValueError as error:
                raise CheckpointError(f"{self.name}: {entry.source}: {error}") from None
        return shapes

    def source_shapes(self, targets: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of the foreign checkpoint for shapes of ours."""
        self.check_targets(targets)
        return {source: es[0].source_shape(tuple(targets[es[0].target])) for source, es in self.by_source.items()}

    def check_shapes(self, sources: Mapping[str, Shape], targets: Mapping[str, Shape]) -> None:
        """Raise CheckpointError unless `sources` has exactly the keys and shapes that give `targets`, all of ours."""
        self.check_sources(sources)
        for source, expected in self.source_shapes(targets).items():
            if tuple(sources[source]) != expected:
                raise CheckpointError(
                    f"{self.name}: {source} has shape {list(sources[source])}, expected {list(expected)}"
                )

    def convert(self, read: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Our (key, tensor) one after the other; `read` gives a source tensor and is asked once for each."""
        for source, entries in self.by_source.items():
            tensor = read(source)
            for entry in entries:
                yield entry.target, entry.convert(tensor)

    def convert_back(self, read: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Source (key, tensor) one after the other; `read` gives a tensor of ours."""
        for source, entries in self.by_source.items():
            tensors = []
            for entry in entries:
                tensor = read(entry.target)
                tensor = tensor.T if entry.is_transposed else tensor
                tensors.append(tensor.reshape(tensor.shape + (1,) * entry.dropped))
            yield source, torch.cat(tensors) if len(tensors) > 1 else tensors[0]


def same_names(name: str, keys: Iterable[str], unused: Iterable[str] = ()) -> KeyTable:
    """The table of a layout whose names are ours."""
    return KeyTable(name, [Entry(key, key) for key in keys], unused)


def leaves(
    names: Mapping[str, str], target: str, source: str, without_bias: Iterable[str] = (), **how: int | bool
) -> Iterator[Entry]:
    """Entries of a block: `names` of its layers, ours -> foreign, below the prefixes `target` and `source`.

    Every layer has a weight, taken as `how` says (see Entry), and a bias, except those `without_bias`.
    """
    for ours, foreign in names.items():
        yield Entry(f"{target}{ours}.weight", f"{source}{foreign}.weight", **how)
        if ours not in without_bias:
            yield Entry(f"{target}{ours}.bias", f"{source}{foreign}.bias")


def _check(name: str, keys: set[str], known: frozenset[str]) -> None:
    unknown, missing = sorted(keys - known), sorted(known - keys)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CheckpointError(f"{name}: unknown key {unknown[0]}{more}{nearest(unknown[0], known)}")
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{name}: missing key {missing[0]}{more}{nearest(missing[0], keys)}")
