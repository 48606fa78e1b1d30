/* What reply.c, which answers READs, and requests.c, which reads what the kernel asks, share. */
#ifndef JFS_REPLY_H
#define JFS_REPLY_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <unistd.h>

#include "native.h"

/* include/uapi/linux/fuse.h */
struct in_header {
    uint32_t length, opcode;
    uint64_t unique, node;
    uint32_t uid, gid, pid, padding;
};
struct read_in {
    uint64_t handle, offset;
    uint32_t size, read_flags;
    uint64_t lock_owner;
    uint32_t flags, padding;
};
struct read_request {
    struct in_header header;
    struct read_in read;
};

enum {
    BUCKETS = 256,
    PARKED = 64, /* the kernel has no more READs ahead under way: jfs.fusectl */
    NOTES = 2048,
    SPANNED = 3, /* pieces that one READ is answered from */
};

struct message {
    struct message *next;
    size_t size;
    void *data;
};

struct jfs_piece {
    struct jfs_piece *next;
    struct jfs_reader *reader;
    const uint8_t *data;
    uint64_t start, stop, filled; /* places in the file */
    unsigned held;                /* by replies that copy from it */
};

struct jfs_reader {
    unsigned references; /* whoever made it, and its pieces */
    struct jfs_replies *replies;
    struct jfs_piece *pieces;
    uint64_t size;                    /* of the file */
    uint64_t quiet_start, quiet_stop; /* a READ within wakes nobody */
};

struct handle {
    struct handle *next;
    uint64_t number;
    struct jfs_reader *reader;
    unsigned held; /* by its READs under way here */
};

/* A READ, and where its bytes are. Who has it holds the handle, and the pieces while he copies. */
struct span {
    uint64_t unique, start, stop;
    struct handle *handle;
    struct jfs_piece *pieces[SPANNED];
    size_t count;
};

struct parked {
    struct span span;
    struct message *message; /* the request, for libfuse */
    int64_t since_ms;
};

struct jfs_replies {
    pthread_mutex_t lock;
    pthread_cond_t released;
    pthread_t thread;
    unsigned references; /* whoever made it, and its readers */
    bool is_started, has_ended, is_noted;
    int device;
    int wake, queued, noted; /* eventfds */
    int ready;               /* epoll: of `queued`, and of the device while that is libfuse's */
    bool is_stopping;
    size_t handle_count;
    bool is_ours;   /* the thread reads the device, not libfuse */
    uint8_t *spare; /* what it reads into */
    size_t room;    /* of that */
    struct handle *handles[BUCKETS];
    struct message *first, **last;
    struct parked parked[PARKED];
    size_t parked_count;
    struct jfs_note notes[NOTES];
    size_t note_count;
    void (*exit)(void *session);
};

static inline void jfs_signal(int descriptor) {
    uint64_t one = 1;
    while (write(descriptor, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static inline void jfs_clear(int descriptor) {
    uint64_t count;
    while (read(descriptor, &count, sizeof count) < 0 && errno == EINTR)
        ;
}

/* requests.c. Returns a message of its own for a request; NULL: there is no memory. */
struct message *jfs_message_of(const void *request, size_t size);
void jfs_message_drop(struct message *message);
/* With the lock: queue a request for libfuse. */
void jfs_queue(struct jfs_replies *replies, struct message *message);
/* With the lock: one handle more or less. Who reads the device is told when that changes; a request
 * that both see is read by one of them. */
void jfs_count_handle(struct jfs_replies *replies, bool is_more);
/* Let go of what one has a reference to. */
void jfs_release(struct jfs_replies *replies);

/* reply.c. Answer a READ, or let it wait. False: that is libfuse's. */
bool jfs_take(struct jfs_replies *replies, const struct read_request *request);
/* Give those to libfuse who have waited for long, or whom `unique` names. Returns how long the
 * others may wait yet, in ms, at most `most_ms`. */
int jfs_pass_on_late(struct jfs_replies *replies, uint64_t unique, int most_ms);
/* With the lock: give all of them to libfuse. */
void jfs_pass_on_all(struct jfs_replies *replies);

#endif
