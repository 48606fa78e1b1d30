"""Write a file piece by piece and say how far it came: ``python -m … PATH SIZE PIECE KIND``.

A process of its own, which a test lets run into the end of its mount. Prints ``N`` after byte N
was taken, ``closing`` and ``closed``; or ``failed ERRNO``. The content is that of ``hammer``.
"""

import os
import sys

from tests.mount.hammer import PAGE, page


def whole(size: int) -> bytes:
    """Return the content that is written."""
    return b"".join(page(number) for number in range(-(-size // PAGE)))[:size]


def main(path: str, size: str, piece: str, kind: str) -> None:
    data = whole(int(size))
    flags = {"wronly": os.O_WRONLY, "rdwr": os.O_RDWR}[kind]
    try:
        file = os.open(path, flags | os.O_CREAT | os.O_TRUNC)
        for offset in range(0, len(data), int(piece)):
            os.write(file, data[offset : offset + int(piece)])
            print(min(len(data), offset + int(piece)), flush=True)
        print("closing", flush=True)
        os.close(file)
        print("closed", flush=True)
    except OSError as error:
        print("failed", error.errno, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
