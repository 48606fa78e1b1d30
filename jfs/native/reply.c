/* Answer READs beside the interpreter: a thread of ours reads the requests of the kernel, as long as
 * there is a handle whose READs it may answer.
 *
 * It answers a READ itself if its handle is published and pieces of memory have all of it, or will
 * have: then whoever fills the last of them answers, as the bytes come. Everything else is queued for
 * libfuse, in order, which takes it by jfs_replies_receive instead of fuse_session_receive_buf.
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
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

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
struct interrupt_request {
    struct in_header header;
    uint64_t unique;
};
struct out_header {
    uint32_t length;
    int32_t error;
    uint64_t unique;
};
enum { OP_READ = 15, OP_INTERRUPT = 36 };

/* The beginning of struct fuse_buf (fuse_common.h). */
struct fuse_buffer {
    size_t size;
    int flags;
    void *memory;
};

enum {
    BUCKETS = 256,
    PARKED = 64, /* the kernel has no more READs ahead under way: jfs.fusectl */
    NOTES = 2048,
    PARKED_MS = 80,
    SPANNED = 3, /* pieces that one READ is answered from */
    MERGED = 4,  /* notes that a new one may go on with */
    LOOKED_MS = 500, /* a descriptor that is another's by now is noticed after this */
    HEADER = 4096,
    LARGE = 64 << 10,
};
static const size_t SMALLEST = (1 << 20) + HEADER; /* a WRITE of 256 pages, as libfuse has */
static const size_t LARGEST = (64 << 20) + HEADER;

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
    size_t handle_count; /* 0: libfuse reads the device */
    uint8_t *spare;      /* what it reads into */
    size_t room;         /* of that */
    struct handle *handles[BUCKETS];
    struct message *first, **last;
    struct parked parked[PARKED];
    size_t parked_count;
    struct jfs_note notes[NOTES];
    size_t note_count;
    void (*exit)(void *session);
};

/* The mount of this process, for jfs_replies_receive. */
static struct jfs_replies *of_this_process;

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void signal_by(int descriptor) {
    uint64_t one = 1;
    while (write(descriptor, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void clear(int descriptor) {
    uint64_t count;
    while (read(descriptor, &count, sizeof count) < 0 && errno == EINTR)
        ;
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

/* Returns a message of its own for a request; NULL: there is no memory. */
static struct message *message_of(const void *request, size_t size) {
    struct message *message = malloc(sizeof *message);
    void *data = malloc(size);
    if (!message || !data) {
        free(message);
        free(data);
        return NULL;
    }
    memcpy(data, request, size);
    *message = (struct message){NULL, size, data};
    return message;
}

/* As message_of, but a large one goes as it is: a small one does not keep a MiB. */
static struct message *message_with(uint8_t **buffer, size_t size) {
    if (size <= LARGE) return message_of(*buffer, size);
    struct message *message = malloc(sizeof *message);
    if (!message) return NULL;
    *message = (struct message){NULL, size, *buffer};
    *buffer = NULL;
    return message;
}

static void drop(struct message *message) {
    free(message->data);
    free(message);
}

/* With the lock: queue a request for libfuse. */
static void queue(struct jfs_replies *replies, struct message *message) {
    if (!replies->first) signal_by(replies->queued);
    *replies->last = message;
    replies->last = &message->next;
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
        signal_by(replies->noted);
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
    queue(replies, parked.message);
    parked.span.handle->held--;
    pthread_cond_broadcast(&replies->released);
}

static struct handle **handle_at(struct jfs_replies *replies, uint64_t number) {
    struct handle **at = &replies->handles[number % BUCKETS];
    while (*at && (*at)->number != number) at = &(*at)->next;
    return at;
}

/* Answer a READ, or let it wait. False: that is libfuse's. */
static bool take(struct jfs_replies *replies, const struct read_request *request) {
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
            replies->parked_count < PARKED ? message_of(request, sizeof *request) : NULL;
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

/* Give those to libfuse who have waited for long, or whom `unique` names. Returns how long the
 * others may wait yet, in ms. */
static int pass_on_late(struct jfs_replies *replies, uint64_t unique) {
    int64_t now = now_ms(), left = LOOKED_MS;
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

/* Read a request of the kernel into a message of its own. NULL: -EAGAIN, or what ends the mount. */
static struct message *receive(int device, uint8_t **buffer, size_t *room, int *error) {
    for (;;) {
        /* No request may be lost once it is read: so all memory is here before. */
        if (!*buffer && !(*buffer = malloc(*room))) {
            usleep(1000);
            continue;
        }
        ssize_t size = read(device, *buffer, *room);
        *error = size < 0 ? -errno : -ENODEV;
        /* ENOENT: it was withdrawn while it was read. */
        if (size < 0 && (errno == EINTR || errno == ENOENT)) continue;
        if (size < 0 && errno == EINVAL && *room < LARGEST) { /* a libfuse with larger WRITEs */
            free(*buffer);
            *buffer = NULL;
            *room = *room * 2 - HEADER;
            continue;
        }
        if (size < (ssize_t)sizeof(struct in_header)) return NULL; /* 0: closed, by whoever */
        struct message *message;
        while (!(message = message_with(buffer, (size_t)size))) usleep(1000);
        return message;
    }
}

/* Returns whether the request is answered, or will be. */
static bool is_taken(struct jfs_replies *replies, const struct message *message) {
    struct in_header header;
    memcpy(&header, message->data, sizeof header);
    if (header.opcode == OP_READ && message->size >= sizeof(struct read_request)) {
        struct read_request request;
        memcpy(&request, message->data, sizeof request);
        return take(replies, &request);
    }
    if (header.opcode == OP_INTERRUPT && message->size >= sizeof(struct interrupt_request)) {
        struct interrupt_request request;
        memcpy(&request, message->data, sizeof request);
        pass_on_late(replies, request.unique);
    }
    return false;
}

static void *run(void *argument) {
    struct jfs_replies *replies = argument;
    size_t room = SMALLEST;
    uint8_t *buffer = NULL;
    for (;;) {
        int wait_ms = pass_on_late(replies, 0);
        pthread_mutex_lock(&replies->lock);
        bool is_stopping = replies->is_stopping, is_ours = replies->handle_count > 0;
        pthread_mutex_unlock(&replies->lock);
        if (is_stopping) break;
        struct pollfd polled[2] = {{replies->wake, POLLIN, 0}, {replies->device, POLLIN, 0}};
        if (poll(polled, is_ours ? 2 : 1, is_ours ? wait_ms : -1) < 0) {
            if (errno == EINTR) continue;
            break;
        }
        if (polled[0].revents) clear(replies->wake);
        if (!is_ours || !polled[1].revents) continue;
        int error;
        struct message *message = receive(replies->device, &buffer, &room, &error);
        if (!message && error == -EAGAIN) continue;
        if (!message) break;
        if (is_taken(replies, message)) {
            drop(message);
            continue;
        }
        pthread_mutex_lock(&replies->lock);
        queue(replies, message);
        pthread_mutex_unlock(&replies->lock);
    }
    free(buffer);
    pthread_mutex_lock(&replies->lock);
    while (replies->parked_count) pass_on(replies, replies->parked_count - 1);
    replies->has_ended = true;
    signal_by(replies->queued);
    pthread_mutex_unlock(&replies->lock);
    return NULL;
}

/* With the lock: one handle more or less. Who reads the device is told when that changes; a request
 * that both see is read by one of them. */
static void count_handle(struct jfs_replies *replies, bool is_more) {
    bool was_ours = replies->handle_count > 0;
    replies->handle_count += is_more ? 1 : (size_t)-1;
    bool is_ours = replies->handle_count > 0;
    if (is_ours == was_ours || !replies->is_started) return;
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(replies->ready, is_ours ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, replies->device, &event);
    signal_by(replies->wake);
}

int jfs_replies_new(void (*exit_session)(void *session), struct jfs_replies **made) {
    struct jfs_replies *replies = calloc(1, sizeof *replies);
    if (!replies) return -ENOMEM;
    pthread_mutex_init(&replies->lock, NULL);
    pthread_cond_init(&replies->released, NULL);
    replies->references = 1;
    replies->last = &replies->first;
    replies->exit = exit_session;
    replies->room = SMALLEST;
    replies->device = -1;
    replies->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    replies->queued = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    replies->noted = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    replies->ready = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (replies->wake < 0 || replies->queued < 0 || replies->noted < 0 || replies->ready < 0 ||
        epoll_ctl(replies->ready, EPOLL_CTL_ADD, replies->queued, &event) < 0) {
        int error = errno;
        jfs_replies_free(replies);
        return -error;
    }
    *made = replies;
    return 0;
}

int jfs_replies_ready(struct jfs_replies *replies) { return replies->ready; }
int jfs_replies_noted(struct jfs_replies *replies) { return replies->noted; }

int jfs_replies_start(struct jfs_replies *replies, int device) {
    int flags = fcntl(device, F_GETFL);
    if (flags < 0 || fcntl(device, F_SETFL, flags | O_NONBLOCK) < 0) return -errno;
    replies->device = device;
    struct epoll_event event = {.events = EPOLLIN};
    int error = 0;
    if (!replies->handle_count && epoll_ctl(replies->ready, EPOLL_CTL_ADD, device, &event) < 0)
        error = errno;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (!error) error = pthread_create(&replies->thread, NULL, run, replies);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        fcntl(device, F_SETFL, flags);
        return -error;
    }
    replies->is_started = true;
    of_this_process = replies;
    return 0;
}

void jfs_replies_stop(struct jfs_replies *replies) {
    if (!replies->is_started) return;
    pthread_mutex_lock(&replies->lock);
    replies->is_stopping = true;
    signal_by(replies->wake);
    pthread_mutex_unlock(&replies->lock);
    pthread_join(replies->thread, NULL);
    replies->is_started = false;
}

static void release(struct jfs_replies *replies) {
    pthread_mutex_lock(&replies->lock);
    bool is_last = !--replies->references;
    pthread_mutex_unlock(&replies->lock);
    if (!is_last) return;
    while (replies->first) {
        struct message *message = replies->first;
        replies->first = message->next;
        drop(message);
    }
    free(replies->spare);
    int files[] = {replies->ready, replies->wake, replies->queued, replies->noted};
    for (size_t number = 0; number < sizeof files / sizeof *files; number++)
        if (files[number] >= 0) close(files[number]);
    pthread_cond_destroy(&replies->released);
    pthread_mutex_destroy(&replies->lock);
    free(replies);
}

void jfs_replies_free(struct jfs_replies *replies) {
    jfs_replies_stop(replies);
    if (of_this_process == replies) of_this_process = NULL;
    jfs_replies_revoke_all(replies);
    release(replies);
}

int jfs_replies_receive(void *session, void *place) {
    struct fuse_buffer *buffer = place;
    struct jfs_replies *replies = of_this_process;
    if (!replies) return -EINTR;
    pthread_mutex_lock(&replies->lock);
    struct message *message = replies->first;
    if (message && !(replies->first = message->next)) replies->last = &replies->first;
    bool has_ended = !message && replies->has_ended;
    bool is_ours = replies->handle_count > 0;
    if (!replies->first && !replies->has_ended) clear(replies->queued);
    pthread_mutex_unlock(&replies->lock);
    int error = -EAGAIN;
    if (!message && !has_ended && !is_ours)
        message = receive(replies->device, &replies->spare, &replies->room, &error);
    if (has_ended || (!message && error != -EAGAIN)) {
        replies->exit(session);
        return 0;
    }
    if (!message) return -EINTR; /* pyfuse3 asks again */
    free(buffer->memory);
    buffer->memory = message->data;
    buffer->size = message->size;
    buffer->flags = 0;
    free(message);
    return (int)buffer->size;
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
    release(replies);
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
        count_handle(replies, true);
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
            count_handle(replies, false);
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
        clear(replies->noted);
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
        drop(parked.message);
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
