"""Whether the cache has content that begins as a file does."""

import hashlib
import random
from pathlib import Path

from jfs.extents import KiB
from jfs.model import ContentKey
from tests.component.composed import block_store

DATA = random.Random(9).randbytes(1024 * KiB)
_SIZE = 512 * KiB


def test_what_begins_as_cached_content_is_known(tmp_path: Path) -> None:
    store = block_store(tmp_path / "cache")
    file = tmp_path / "file"
    file.write_bytes(DATA[:_SIZE])
    assert not store.has_beginning(file, _SIZE)
    content = ContentKey(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA))
    opened = store.open(content)
    block = store.block_size
    # a header is all that is cached of a model: others have the same
    assert opened.publish(0, memoryview(DATA[: 2 * block]))
    assert not store.has_beginning(file, _SIZE)
    assert opened.publish(_SIZE // 2, memoryview(DATA[_SIZE // 2 : _SIZE]))
    assert store.has_beginning(file, _SIZE)
    for place in (0, _SIZE - 1):
        changed = bytearray(DATA[:_SIZE])
        changed[place] ^= 1
        file.write_bytes(changed)
        assert not store.has_beginning(file, _SIZE)
    opened.close()
    store.close()
