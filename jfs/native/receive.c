/* Receive a body into memory, and sum its blocks while they are in the cache of the CPU. */
#include "native.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/socket.h>

/* The kernel wakes us when so much is there, not for every packet: 200 switches of threads for each
 * GiB, not 5,000. Never at the end, where so much will not come any more. */
enum { LOW = 256 * 1024 };

struct jfs_arrival {
    _Atomic uint64_t filled; /* everything before it is there */
    _Atomic uint64_t wanted; /* who fills returns when it gets there; 0: nobody waits */
    _Atomic uint64_t piece;  /* a struct jfs_piece, whose READs are answered as they can be; 0 */
};

uint64_t jfs_arrival_filled(struct jfs_arrival *arrival) { return atomic_load(&arrival->filled); }

/* Who waits stores what is wanted and then looks at what is there; who fills, the other way round:
 * one of the two sees the other. */
uint64_t jfs_arrival_want(struct jfs_arrival *arrival, uint64_t until) {
    atomic_store(&arrival->wanted, until);
    return atomic_load(&arrival->filled);
}

void jfs_arrival_set(struct jfs_arrival *arrival, uint64_t filled) {
    atomic_store(&arrival->filled, filled);
}

void jfs_arrival_tell(struct jfs_arrival *arrival, uint64_t piece) {
    atomic_store(&arrival->piece, piece);
}

static void arrive(struct jfs_arrival *arrival, uint64_t filled) {
    atomic_store(&arrival->filled, filled);
    uint64_t piece = atomic_load(&arrival->piece);
    if (piece) jfs_piece_filled((struct jfs_piece *)(uintptr_t)piece, filled);
}

static uint64_t blocks(uint64_t size, uint64_t block) { return size / block + (size % block != 0); }

int jfs_run_begin(struct jfs_run *run, uint64_t at, uint64_t stop) {
    if (!run->data || at >= stop || stop > run->size || stop > INT64_MAX) return -EINVAL;
    if (run->hash) {
        if (!run->block || run->summed > run->size || run->count != blocks(run->size, run->block))
            return -EINVAL;
        if (run->summed > at) run->summed = at; /* they come once more */
        run->summed -= run->summed % run->block;
    }
    return 0;
}

/* Sum the blocks that are whole before byte `filled` of the run. */
static void add_sums(struct jfs_run *run, uint64_t filled) {
    if (!run->hash) return;
    uint64_t stop = filled == run->size ? run->size : filled - filled % run->block;
    if (stop <= run->summed) return;
    uint64_t done = run->summed / run->block;
    jfs_sums(run->hash, run->data + run->summed, stop - run->summed, run->block, run->first + done,
             run->words + done, blocks(stop - run->summed, run->block));
    run->summed = stop;
}

int jfs_run_filled(struct jfs_run *run, uint64_t before, uint64_t filled,
                   struct jfs_arrival *arrival) {
    if (arrival) arrive(arrival, run->position + filled);
    add_sums(run, filled);
    uint64_t wanted = arrival ? atomic_load(&arrival->wanted) : 0;
    return run->position + before < wanted && wanted <= run->position + filled;
}

static void set_low(int socket, int low) {
    setsockopt(socket, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low);
}

static ssize_t receive_piece(int socket, uint8_t *data, size_t size) {
    ssize_t count;
    do
        count = recv(socket, data, size, MSG_WAITALL);
    while (count < 0 && errno == EINTR);
    return count < 0 ? -errno : count;
}

int64_t jfs_receive(int socket, struct jfs_run *run, uint64_t at, uint64_t stop, uint64_t piece,
                    struct jfs_arrival *arrival) {
    if (!piece || jfs_run_begin(run, at, stop)) return -EINVAL;
    uint64_t filled = at;
    int64_t failure = 0;
    int low = 1;
    while (filled < stop) {
        uint64_t want = stop - filled < piece ? stop - filled : piece;
        int fits = stop - filled >= want + LOW ? LOW : 1;
        if (fits != low) set_low(socket, low = fits);
        ssize_t count = receive_piece(socket, run->data + filled, want);
        if (count <= 0) {
            failure = count;
            break;
        }
        uint64_t before = filled;
        filled += (uint64_t)count;
        int is_wanted = jfs_run_filled(run, before, filled, arrival);
        /* A short piece: its deadline has passed, or the body ends. The next call meets that. */
        if ((uint64_t)count < want) break;
        if (is_wanted) break;
    }
    if (low != 1) set_low(socket, 1);
    return filled > at ? (int64_t)(filled - at) : failure;
}
