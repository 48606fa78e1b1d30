"""What reads of parts of a file cost, in bytes that the server sends; a part of ``reads``."""

from typing import TYPE_CHECKING

from tests.bench.machine import race

if TYPE_CHECKING:
    from tests.bench.reads import Bench

KiB, MiB = 1024, 1024**2
SMALL_FILES = 1000
SHARDS = 4


def pieces(bench: "Bench", mib: int, rounds: int) -> None:
    reads = 100
    first = ("-o", "/dev/null", "-r", f"0-{64 * KiB + 7}")
    race(
        "safetensors header of 10 GiB (64 KiB)",
        64 * KiB,
        rounds,
        {
            "curl": lambda: bench.curl("huge.safetensors", *first, quiet=False),
            "jfs, by dd": lambda: bench.cold("huge.safetensors", "dd", str(64 * KiB + 8)),
            "jfs, by Python and safe_open": lambda: bench.cold("huge.safetensors", "header"),
        },
    )
    race(
        f"{SHARDS} shards of 128 MiB, whose reader does something else for 0.5 s after each",
        SHARDS * 128 * MiB,
        rounds,
        {
            "jfs": lambda: bench.cold("shards", "shards"),
            "jfs --no-prefetch-shards": lambda: bench.cold(
                "shards", "shards", options=["--no-prefetch-shards"]
            ),
        },
    )
    for where, place in (("head", 0), ("tail", mib * MiB - 1)):
        span = ("-o", "/dev/null", "-r", f"{place}-{place}")
        race(
            f"first byte at the {where} (both with the start of their process)",
            1,
            rounds,
            {
                "curl": lambda span=span: bench.curl("big.bin", *span, quiet=False),
                "jfs": lambda place=place: bench.cold("big.bin", "at", str(place)),
            },
        )
    for size in (4 * KiB, MiB):
        race(
            f"{reads} random reads of {size // KiB} KiB ({reads * size / 1e6:.1f} MB)",
            reads * size,
            rounds,
            {"jfs": lambda size=size: bench.cold("big.bin", "random", str(size), str(reads))},
        )
    for size in (4_200_000, 4 * MiB, 16 * MiB, 64 * MiB):
        for where, place in (("the start", 0), ("the middle", mib * MiB // 3)):
            if size < mib * MiB // 2:
                race(
                    f"one piece of {size / 1e6:.2f} MB, from {where}",
                    size,
                    rounds,
                    {
                        "jfs": lambda size=size, place=place: bench.cold(
                            "big.bin", "piece", str(place), str(size)
                        )
                    },
                )
    tensors = max(1, mib // 32) * 32 * MiB
    for what, load, amount in (
        ("the first quarter of every tensor", "quarters", tensors // 4),
        ("every second tensor", "others", tensors // 2),
    ):
        race(
            f"{what} ({amount / 1e6:.1f} MB)",
            amount,
            rounds,
            {"jfs": lambda load=load: bench.cold("model.safetensors", load)},
        )
    race(
        "1000 page faults at random places (4.1 MB)",
        1000 * 4 * KiB,
        rounds,
        {"jfs": lambda: bench.cold("big.bin", "faults", "1000")},
    )
    for size in (16 * KiB, 100_000, 300_000, MiB):
        rows = max(1, mib * MiB // 100 // size)
        race(
            f"1 % of the rows of a np.memmap, {rows} of {size / 1e3:.0f} kB",
            rows * size,
            rounds,
            {
                "jfs": lambda size=size, rows=rows: bench.cold(
                    "big.bin", "rows", str(size), str(rows)
                )
            },
        )
    small = 300_000
    count = min(1000, mib * MiB // small)
    race(
        f"{count} mapped tensors of 300 kB, one beside the other, in any order",
        count * small,
        rounds,
        {"jfs": lambda: bench.cold("big.bin", "shuffled", str(small), str(count))},
    )
    race(f"ls -l of {SMALL_FILES} files", SMALL_FILES, rounds, {"jfs": bench.listing})
