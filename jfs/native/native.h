/* What the files of the native part share. Every function that Python calls is declared here.
 *
 * The rules. Called through ctypes, without the interpreter's lock: nothing here may touch a Python
 * object. Memory, descriptors and counters belong to the caller, which holds them for as long as the
 * call lasts. Nothing is kept between calls. A failure is returned as -errno.
 */
#ifndef JFS_NATIVE_H
#define JFS_NATIVE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Raised with every change of what Python sees: see jfs/native/__init__.py. */
#ifndef JFS_NATIVE_ABI
#define JFS_NATIVE_ABI 3
#endif

#define JFS_EXPORTED __attribute__((visibility("default")))

JFS_EXPORTED int jfs_native_abi(void);

/* XXH3_64bits_withSeed of libxxhash. */
typedef uint64_t (*jfs_hash)(const void *data, size_t size, uint64_t seed);

/* Write the sums of the blocks of `data` to `words`, which has room for `count`; `first` is the
 * number of the first block. Returns how many. */
JFS_EXPORTED int64_t jfs_sums(jfs_hash hash, const uint8_t *data, uint64_t size, uint64_t block,
                              uint64_t first, uint64_t *words, uint64_t count);

/* How far something has come that is received by one thread and looked at by others, as places in
 * its file. */
struct jfs_arrival;
JFS_EXPORTED uint64_t jfs_arrival_filled(struct jfs_arrival *arrival);
JFS_EXPORTED uint64_t jfs_arrival_want(struct jfs_arrival *arrival, uint64_t until);
JFS_EXPORTED void jfs_arrival_set(struct jfs_arrival *arrival, uint64_t filled);

/* A run of bytes and where it goes; as in jfs/native/receiving.py. */
struct jfs_run {
    uint8_t *data;
    uint64_t size;     /* of data */
    uint64_t position; /* of its first byte in the file */
    jfs_hash hash;     /* NULL: no sums */
    uint64_t block;    /* bytes that one sum is of */
    uint64_t first;    /* number of the first block */
    uint64_t *words;   /* one for each block */
    uint64_t count;    /* of words */
    uint64_t summed;   /* bytes of data that are summed */
};

/* Receive bytes `at` to `stop` of a run from a blocking socket, `piece` at a time.
 *
 * Returns how many came: fewer when a byte that is wanted has come, when the deadline of the socket
 * has passed, or the body ends. 0: it ended before the first; -errno: it failed before that. */
JFS_EXPORTED int64_t jfs_receive(int socket, struct jfs_run *run, uint64_t at, uint64_t stop,
                                 uint64_t piece, struct jfs_arrival *arrival);

#endif
