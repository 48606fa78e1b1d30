"""What the runs of a planner that have ended tell of the next one. Pure."""

from collections import deque
from dataclasses import dataclass, field

from jfs.extents import Extent, MiB
from jfs.formats import Part

# Requests of one reader reach us in any order, a READ apart; a page fault reads as much before
# itself as behind (half of the kernel's read-ahead: jfs.fusectl).
DISORDER = MiB


@dataclass(slots=True)
class Known:
    """What the last two tell, each once, whatever they told before they went on."""

    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=2))
    shares: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=2))
    _latest: object = None
    _has_share: bool = False

    def note_length(self, run: object, length: int) -> None:
        """Note how long a run is, as far as anybody can tell."""
        if run is self._latest:
            self.lengths.pop()
            if self._has_share:
                self.shares.pop()
        self._latest, self._has_share = run, False
        self.lengths.append(length)

    def note_share(self, first: float, last: float) -> None:
        """Note which share of a part it has read, too."""
        self._has_share = True
        self.shares.append((first, last))

    def length(self) -> int:
        """Return how long a run is, if the last two agree; 0: nobody knows."""
        if len(self.lengths) < 2:
            return 0
        least, most = min(self.lengths), max(self.lengths)
        if most <= least * 9 // 8:
            return most
        # A run of page faults ends anywhere within its last READ.
        return least if most - least <= min(MiB, least // 2) else 0

    def share(self, part: Part) -> Extent | None:
        """Return what will be read of a part, if the last two agree."""
        if len(self.shares) < 2:
            return None
        size = part.extent.size
        (first, last), (other_first, other_last) = self.shares
        blur = DISORDER / size + 0.02
        if abs(first - other_first) > blur or abs(last - other_last) > blur:
            return None
        if last - first < blur:
            return None  # any two places would agree
        start = part.extent.start
        return Extent(start + int(min(first, other_first) * size), start + int(last * size))
