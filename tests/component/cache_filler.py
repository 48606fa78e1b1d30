"""A process of its own that fills a cache until it is killed: ``python -m …cache_filler DIR``."""

import hashlib
import random
import sys
from pathlib import Path

from jfs.cache import DiskBlockStore
from jfs.config import CacheSettings
from jfs.extents import KiB, MiB
from jfs.metrics import Metrics
from jfs.model import ContentKey

SIZE = 8 * MiB + 12_345


def content() -> bytes:
    """What the filler writes."""
    return random.Random(11).randbytes(SIZE)


# Its own digest: where the filler comes to its end, the store of the test verifies the whole.
KEY = ContentKey(f"sha256:{hashlib.sha256(content()).hexdigest()}", SIZE)


def main(directory: Path) -> None:
    store = DiskBlockStore(CacheSettings(directory, free_floor_bytes=0), Metrics())
    cached = store.open(KEY)
    view = memoryview(content())
    starts = list(range(0, SIZE, 256 * KiB))
    random.Random().shuffle(starts)
    print("filling", flush=True)
    for start in starts:
        cached.publish(start, view[start : start + 256 * KiB])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
