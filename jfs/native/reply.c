/* Answer READs beside the interpreter; requests.c is who reads them.
 *
 * A READ is answered if its handle is published and pieces of memory have all of it, or will have:
 * then whoever fills the last of them answers, as the bytes come. Everything else is libfuse's.
 *
 * What is answered must be right at that moment:
 * - a piece is memory of Python's. It is given back when jfs_piece_end returns, and no sooner: a
 *   reply that copies from it holds it meanwhile.
 * - a handle is answered for until jfs_replies_revoke returns; what was answered is among the notes
 *   by then. So whoever changes what a handle shows revokes first, then takes the notes.
 *
 * A READ that waits for its bytes is given to libfuse after a while, or when it is interrupted:
 * whoever waits may be told to end, and that is Python's to know (jfs.mount.withdrawals).
 *
 * One lock for all; nobody waits for anything while he holds it, and it is never held for a copy.
 */
#include "reply.h"

#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

/* include/uapi/linux/fuse.h */
struct out_header {
    uint32_t length;
    int32_t error;
    uint64_t unique;
};

enum {
    PARKED_MS = 80,
    MERGED = 4, /* notes that a new one may go on with */
};

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* With the lock: find where the bytes of a READ are, or will be. False: not here. */
static bool locate(struct span *span) {
    uint64_t at = span->start;
    for (span->count = 0; at < span->stop && span->count < SPANNED;) {
        struct jfs_piece *piece = span->handle->reader->pieces;
        while (piece && !(piece->start <= at && at < piece->stop)) piece = piece->next;
        if (!piece) return false;
        span->pieces[span->count++] = piece;
        at = piece->stop;
    }
    return span->count && at >= span->stop;
}

/* With the lock. */
static bool is_filled(const struct span *span) {
    for (size_t number = 0; number < span->count; number++) {
        const struct jfs_piece *piece = span->pieces[number];
        if (piece->filled < (span->stop < piece->stop ? span->stop : piece->stop)) return false;
    }
    return true;
}

/* With the lock. */
static bool is_of(const struct span *span, const struct jfs_piece *piece) {
    for (size_t number = 0; number < span->count; number++)
        if (span->pieces[number] == piece) return true;
    return false;
}

/* Send a reply, with the lock, which is let go meanwhile. An error is that of a request that has
 * gone, or of the mount. */
static void reply(struct jfs_replies *replies, const struct span *span) {
    size_t size = span->stop - span->start;
    struct out_header header = {(uint32_t)(sizeof header + size), 0, span->unique};
    struct iovec parts[1 + SPANNED] = {{&header, sizeof header}};
    uint64_t at = span->start;
    for (size_t number = 0; number < span->count; number++) {
        struct jfs_piece *piece = span->pieces[number];
        uint64_t stop = span->stop < piece->stop ? span->stop : piece->stop;
        const uint8_t *data = piece->data + (at - piece->start);
        parts[1 + number] = (struct iovec){(void *)(uintptr_t)data, stop - at};
        piece->held++;
        at = stop;
    }
    pthread_mutex_unlock(&replies->lock);
    ssize_t sent;
    do
        sent = writev(replies->device, parts, 1 + (int)span->count);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno != ENOENT && errno != ENODEV) {
        header.length = sizeof header;
        header.error = -EIO;
        while (write(replies->device, &header, sizeof header) < 0 && errno == EINTR)
            ;
    }
    pthread_mutex_lock(&replies->lock);
    for (size_t number = 0; number < span->count; number++) span->pieces[number]->held--;
    span->handle->held--;
    pthread_cond_broadcast(&replies->released);
}

/* With the lock. Those of one reader in order become one, if they need not be known at once. */
static void note(struct jfs_replies *replies, const struct span *span, uint64_t kind) {
    const struct jfs_reader *reader = span->handle->reader;
    bool is_quiet = kind == JFS_ANSWERED_LATE ||
                    (kind != JFS_PASSED_ON && reader->quiet_start <= span->start &&
                     span->stop <= reader->quiet_stop && replies->note_count <= NOTES / 2);
    size_t oldest = replies->note_count > MERGED ? replies->note_count - MERGED : 0;
    for (size_t number = replies->note_count; is_quiet && number-- > oldest;) {
        struct jfs_note *other = &replies->notes[number];
        if (other->is_quiet && other->handle == span->handle->number && other->kind == kind &&
            other->stop == span->start) {
            other->stop = span->stop;
            other->count++;
            return;
        }
    }
    replies->notes[replies->note_count++] = (struct jfs_note){
        span->handle->number, span->start, span->stop, kind, 1, is_quiet};
    if (!is_quiet && !replies->is_noted) {
        replies->is_noted = true;
        jfs_signal(replies->noted);
    }
}

/* With the lock: let a READ that waits go from here; returns it. */
static struct parked unpark(struct jfs_replies *replies, size_t number) {
    struct parked parked = replies->parked[number];
    replies->parked[number] = replies->parked[--replies->parked_count];
    return parked;
}

/* With the lock: give a READ that waits to libfuse. */
static void pass_on(struct jfs_replies *replies, size_t number) {
    struct parked parked = unpark(replies, number);
    /* Before the request, so that it is known when that is answered; room was kept. */
    note(replies, &parked.span, JFS_PASSED_ON);
    jfs_queue(replies, parked.message);
    parked.span.handle->held--;
    pthread_cond_broadcast(&replies->released);
}

static struct handle **handle_at(struct jfs_replies *replies, uint64_t number) {
    struct handle **at = &replies->handles[number % BUCKETS];
    while (*at && (*at)->number != number) at = &(*at)->next;
    return at;
}

bool jfs_take(struct jfs_replies *replies, const struct read_request *request) {
    const struct read_in *in = &request->read;
    struct span span = {.unique = request->header.unique,
                        .start = in->offset,
                        .stop = in->offset + in->size};
    pthread_mutex_lock(&replies->lock);
    span.handle = *handle_at(replies, in->handle);
    /* Room is kept for the second note of those that wait. */
    bool is_ours = span.handle && in->size && in->offset < span.handle->reader->size &&
                   replies->note_count + replies->parked_count + 2 < NOTES;
    if (is_ours && span.stop > span.handle->reader->size) span.stop = span.handle->reader->size;
    is_ours = is_ours && locate(&span);
    if (is_ours && is_filled(&span)) {
        span.handle->held++;
        note(replies, &span, JFS_ANSWERED);
        reply(replies, &span);
    } else if (is_ours) {
        struct message *message =
            replies->parked_count < PARKED ? jfs_message_of(request, sizeof *request) : NULL;
        is_ours = message != NULL;
        if (is_ours) {
            span.handle->held++;
            note(replies, &span, JFS_WAITS);
            replies->parked[replies->parked_count++] = (struct parked){span, message, now_ms()};
        }
    }
    pthread_mutex_unlock(&replies->lock);
    return is_ours;
}

int jfs_pass_on_late(struct jfs_replies *replies, uint64_t unique, int most_ms) {
    int64_t now = now_ms(), left = most_ms;
    pthread_mutex_lock(&replies->lock);
    for (size_t number = replies->parked_count; number-- > 0;) {
        struct parked *parked = &replies->parked[number];
        int64_t rest = parked->since_ms + PARKED_MS - now;
        if (rest <= 0 || (unique && parked->span.unique == unique))
            pass_on(replies, number);
        else if (rest < left)
            left = rest;
    }
    pthread_mutex_unlock(&replies->lock);
    return (int)left;
}

void jfs_pass_on_all(struct jfs_replies *replies) {
    while (replies->parked_count) pass_on(replies, replies->parked_count - 1);
}

struct jfs_reader *jfs_reader_new(struct jfs_replies *replies, uint64_t size) {
    struct jfs_reader *reader = calloc(1, sizeof *reader);
    if (!reader) return NULL;
    *reader = (struct jfs_reader){1, replies, NULL, size, 0, 0};
    pthread_mutex_lock(&replies->lock);
    replies->references++;
    pthread_mutex_unlock(&replies->lock);
    return reader;
}

static void release_reader(struct jfs_reader *reader) {
    struct jfs_replies *replies = reader->replies;
    pthread_mutex_lock(&replies->lock);
    bool is_last = !--reader->references;
    pthread_mutex_unlock(&replies->lock);
    if (!is_last) return;
    free(reader);
    jfs_release(replies);
}

void jfs_reader_quiet(struct jfs_reader *reader, uint64_t start, uint64_t stop) {
    pthread_mutex_lock(&reader->replies->lock);
    reader->quiet_start = start;
    reader->quiet_stop = stop;
    pthread_mutex_unlock(&reader->replies->lock);
}

int jfs_reader_publish(struct jfs_reader *reader, uint64_t number) {
    struct jfs_replies *replies = reader->replies;
    struct handle *handle = malloc(sizeof *handle);
    if (!handle) return -ENOMEM;
    pthread_mutex_lock(&replies->lock);
    struct handle **at = handle_at(replies, number);
    bool is_there = *at != NULL;
    if (!is_there) {
        *handle = (struct handle){NULL, number, reader, 0};
        *at = handle;
        jfs_count_handle(replies, true);
    }
    pthread_mutex_unlock(&replies->lock);
    if (is_there) free(handle);
    return 0;
}

/* Take handles back: `number`, those of `reader`, or all. Waits for their replies under way. */
static void take_back(struct jfs_replies *replies, const struct jfs_reader *reader,
                   const uint64_t *number) {
    struct handle *revoked = NULL;
    pthread_mutex_lock(&replies->lock);
    for (size_t bucket = 0; bucket < BUCKETS; bucket++) {
        struct handle **at = &replies->handles[bucket];
        while (*at) {
            struct handle *handle = *at;
            if ((reader && handle->reader != reader) || (number && handle->number != *number)) {
                at = &handle->next;
                continue;
            }
            *at = handle->next;
            handle->next = revoked;
            revoked = handle;
            jfs_count_handle(replies, false);
            for (size_t each = replies->parked_count; each-- > 0;)
                if (replies->parked[each].span.handle == handle) pass_on(replies, each);
        }
    }
    while (revoked) {
        struct handle *handle = revoked;
        while (handle->held) pthread_cond_wait(&replies->released, &replies->lock);
        revoked = handle->next;
        free(handle);
    }
    pthread_mutex_unlock(&replies->lock);
}

void jfs_replies_revoke(struct jfs_replies *replies, uint64_t number) {
    take_back(replies, NULL, &number);
}
void jfs_replies_revoke_all(struct jfs_replies *replies) { take_back(replies, NULL, NULL); }
void jfs_reader_revoke(struct jfs_reader *reader) { take_back(reader->replies, reader, NULL); }

void jfs_reader_free(struct jfs_reader *reader) {
    take_back(reader->replies, reader, NULL);
    release_reader(reader);
}

size_t jfs_replies_notes(struct jfs_replies *replies, struct jfs_note *notes, size_t room) {
    pthread_mutex_lock(&replies->lock);
    size_t count = replies->note_count < room ? replies->note_count : room;
    memcpy(notes, replies->notes, count * sizeof *notes);
    replies->note_count -= count;
    memmove(replies->notes, replies->notes + count, replies->note_count * sizeof *notes);
    if (replies->is_noted && !replies->note_count) {
        replies->is_noted = false;
        jfs_clear(replies->noted);
    }
    pthread_mutex_unlock(&replies->lock);
    return count;
}

struct jfs_piece *jfs_piece_new(struct jfs_reader *reader, const uint8_t *data, uint64_t start,
                                uint64_t stop, uint64_t filled) {
    struct jfs_piece *piece = malloc(sizeof *piece);
    if (!piece) return NULL;
    pthread_mutex_lock(&reader->replies->lock);
    *piece = (struct jfs_piece){reader->pieces, reader, data, start, stop, filled, 0};
    reader->pieces = piece;
    reader->references++;
    pthread_mutex_unlock(&reader->replies->lock);
    return piece;
}

void jfs_piece_filled(struct jfs_piece *piece, uint64_t filled) {
    struct jfs_replies *replies = piece->reader->replies;
    pthread_mutex_lock(&replies->lock);
    if (filled > piece->filled) piece->filled = filled;
    for (size_t number = 0; number < replies->parked_count;) {
        const struct span *span = &replies->parked[number].span;
        if (!is_of(span, piece) || !is_filled(span)) {
            number++;
            continue;
        }
        struct parked parked = unpark(replies, number);
        note(replies, &parked.span, JFS_ANSWERED_LATE); /* room was kept */
        reply(replies, &parked.span);
        jfs_message_drop(parked.message);
        number = 0; /* others came and went */
    }
    pthread_mutex_unlock(&replies->lock);
}

/* With the lock. */
static void pass_on_all_of(struct jfs_replies *replies, const struct jfs_piece *piece) {
    for (size_t number = replies->parked_count; number-- > 0;)
        if (is_of(&replies->parked[number].span, piece)) pass_on(replies, number);
}

void jfs_piece_failed(struct jfs_piece *piece) {
    struct jfs_replies *replies = piece->reader->replies;
    pthread_mutex_lock(&replies->lock);
    piece->stop = piece->filled; /* nobody waits for it any more */
    pass_on_all_of(replies, piece);
    pthread_mutex_unlock(&replies->lock);
}

void jfs_piece_end(struct jfs_piece *piece) {
    struct jfs_replies *replies = piece->reader->replies;
    pthread_mutex_lock(&replies->lock);
    struct jfs_piece **at = &piece->reader->pieces;
    while (*at && *at != piece) at = &(*at)->next;
    if (*at) *at = piece->next;
    pass_on_all_of(replies, piece);
    while (piece->held) pthread_cond_wait(&replies->released, &replies->lock);
    pthread_mutex_unlock(&replies->lock);
}

void jfs_piece_free(struct jfs_piece *piece) {
    jfs_piece_end(piece);
    release_reader(piece->reader);
    free(piece);
}
