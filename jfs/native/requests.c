/* Read the requests of the kernel: a thread of ours does, as long as there is a handle whose READs
 * reply.c may answer; else the thread of libfuse.
 *
 * What is not answered is queued for libfuse, in order, which takes it by jfs_replies_receive
 * instead of fuse_session_receive_buf.
 */
#include "reply.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

/* include/uapi/linux/fuse.h */
struct interrupt_request {
    struct in_header header;
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
    LOOKED_MS = 500, /* a descriptor that is another's by now is noticed after this */
    HEADER = 4096,
    LARGE = 64 << 10,
};
static const size_t SMALLEST = (1 << 20) + HEADER; /* a WRITE of 256 pages, as libfuse has */
static const size_t LARGEST = (64 << 20) + HEADER;

/* The mount of this process, for jfs_replies_receive. */
static struct jfs_replies *of_this_process;

struct message *jfs_message_of(const void *request, size_t size) {
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

void jfs_message_drop(struct message *message) {
    free(message->data);
    free(message);
}

void jfs_queue(struct jfs_replies *replies, struct message *message) {
    if (!replies->first) jfs_signal(replies->queued);
    *replies->last = message;
    replies->last = &message->next;
}

/* Read a request of the kernel into a message of its own. NULL: -EAGAIN, -ENOMEM, or what ends the
 * mount. */
static struct message *receive(int device, uint8_t **buffer, size_t *room, int *error) {
    /* No request may be lost once it is read: so all memory is here before. */
    struct message *message = malloc(sizeof *message);
    if (!*buffer) *buffer = malloc(*room);
    if (!message || !*buffer) {
        free(message);
        *error = -ENOMEM;
        return NULL;
    }
    ssize_t size;
    do
        size = read(device, *buffer, *room);
    while (size < 0 && (errno == EINTR || errno == ENOENT)); /* ENOENT: withdrawn meanwhile */
    if (size < (ssize_t)sizeof(struct in_header)) {
        *error = size < 0 ? -errno : -ENODEV; /* 0: closed, by whoever */
        free(message);
        if (*error == -EINVAL && *room < LARGEST) { /* a libfuse with larger WRITEs */
            free(*buffer);
            *buffer = NULL;
            *room = *room * 2 - HEADER;
            *error = -EAGAIN;
        }
        return NULL;
    }
    /* A large one goes as it is; a small one does not keep a MiB, if that can be helped. */
    void *data = size <= LARGE ? malloc((size_t)size) : NULL;
    if (data) {
        memcpy(data, *buffer, (size_t)size);
    } else {
        data = *buffer;
        *buffer = NULL;
    }
    *message = (struct message){NULL, (size_t)size, data};
    return message;
}

/* Returns whether the request is answered, or will be. */
static bool is_taken(struct jfs_replies *replies, const struct message *message) {
    struct in_header header;
    memcpy(&header, message->data, sizeof header);
    if (header.opcode == OP_READ && message->size >= sizeof(struct read_request)) {
        struct read_request request;
        memcpy(&request, message->data, sizeof request);
        return jfs_take(replies, &request);
    }
    if (header.opcode == OP_INTERRUPT && message->size >= sizeof(struct interrupt_request)) {
        struct interrupt_request request;
        memcpy(&request, message->data, sizeof request);
        jfs_pass_on_late(replies, request.unique, LOOKED_MS);
    }
    return false;
}

static void *run(void *argument) {
    struct jfs_replies *replies = argument;
    size_t room = SMALLEST;
    uint8_t *buffer = NULL;
    for (;;) {
        int wait_ms = jfs_pass_on_late(replies, 0, LOOKED_MS);
        pthread_mutex_lock(&replies->lock);
        bool is_stopping = replies->is_stopping, is_ours = replies->is_ours;
        pthread_mutex_unlock(&replies->lock);
        if (is_stopping) break;
        struct pollfd polled[2] = {{replies->wake, POLLIN, 0}, {replies->device, POLLIN, 0}};
        if (poll(polled, is_ours ? 2 : 1, is_ours ? wait_ms : -1) < 0) {
            if (errno == EINTR) continue;
            break;
        }
        if (polled[0].revents) jfs_clear(replies->wake);
        if (!is_ours || !polled[1].revents) continue;
        int error;
        struct message *message = receive(replies->device, &buffer, &room, &error);
        if (!message && error == -ENOMEM) usleep(1000);
        if (!message && (error == -EAGAIN || error == -ENOMEM)) continue;
        if (!message) break;
        if (is_taken(replies, message)) {
            jfs_message_drop(message);
            continue;
        }
        pthread_mutex_lock(&replies->lock);
        jfs_queue(replies, message);
        pthread_mutex_unlock(&replies->lock);
    }
    free(buffer);
    pthread_mutex_lock(&replies->lock);
    jfs_pass_on_all(replies);
    replies->has_ended = true;
    jfs_signal(replies->queued);
    pthread_mutex_unlock(&replies->lock);
    return NULL;
}

void jfs_count_handle(struct jfs_replies *replies, bool is_more) {
    replies->handle_count += is_more ? 1 : (size_t)-1;
    bool is_ours = replies->handle_count > 0;
    if (is_ours == replies->is_ours || !replies->is_started) return;
    struct epoll_event event = {.events = EPOLLIN};
    int operation = is_ours ? EPOLL_CTL_DEL : EPOLL_CTL_ADD;
    /* Where there is no memory for it the thread goes on, and queues everything. */
    if (epoll_ctl(replies->ready, operation, replies->device, &event) < 0 && !is_ours) return;
    replies->is_ours = is_ours;
    jfs_signal(replies->wake);
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
    replies->is_ours = replies->handle_count > 0;
    if (!replies->is_ours && epoll_ctl(replies->ready, EPOLL_CTL_ADD, device, &event) < 0)
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
    jfs_signal(replies->wake);
    pthread_mutex_unlock(&replies->lock);
    pthread_join(replies->thread, NULL);
    replies->is_started = false;
}

void jfs_release(struct jfs_replies *replies) {
    pthread_mutex_lock(&replies->lock);
    bool is_last = !--replies->references;
    pthread_mutex_unlock(&replies->lock);
    if (!is_last) return;
    while (replies->first) {
        struct message *message = replies->first;
        replies->first = message->next;
        jfs_message_drop(message);
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
    jfs_release(replies);
}

int jfs_replies_receive(void *session, void *place) {
    struct fuse_buffer *buffer = place;
    struct jfs_replies *replies = of_this_process;
    if (!replies) return -EINTR;
    pthread_mutex_lock(&replies->lock);
    struct message *message = replies->first;
    if (message && !(replies->first = message->next)) replies->last = &replies->first;
    bool has_ended = !message && replies->has_ended;
    bool is_ours = replies->is_ours;
    if (!replies->first && !replies->has_ended) jfs_clear(replies->queued);
    pthread_mutex_unlock(&replies->lock);
    int error = -EAGAIN;
    if (!message && !has_ended && !is_ours)
        message = receive(replies->device, &replies->spare, &replies->room, &error);
    if (has_ended || (!message && error != -EAGAIN && error != -ENOMEM)) {
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
