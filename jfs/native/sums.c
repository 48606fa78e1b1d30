/* Checksums of the blocks of the cache. The hash itself is libxxhash's: Python finds it, and holds
 * it against the one it uses itself, before it is called from here. */
#include "native.h"

#include <errno.h>

int64_t jfs_sums(jfs_hash hash, const uint8_t *data, uint64_t size, uint64_t block, uint64_t first,
                 uint64_t *words, uint64_t count) {
    if (!hash || !block || count != size / block + (size % block != 0)) return -EINVAL;
    for (uint64_t at = 0, number = 0; at < size; at += block, number++) {
        uint64_t length = size - at < block ? size - at : block;
        uint64_t word = hash(data + at, length, first + number);
        words[number] = word ? word : 1; /* 0 says that a block is absent */
    }
    return (int64_t)count;
}
