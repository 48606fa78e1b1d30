/* TLS in bulk: receive and send as much as is wanted in one call.
 *
 * Python returns a record of 16 KiB at a time, asks the kernel twice for it (its head, its body), and
 * takes the interpreter's lock for each. Here the connection that Python made is used: its handshake,
 * its certificates, its settings are those of Python's ssl. What comes is received in pieces of 256
 * KiB by a buffer of OpenSSL's own (BIO_f_buffer). Receiving costs 0.58 CPU seconds per GiB so, for
 * 0.85 before (0.76 by ssl.MemoryBIO, which copies twice more).
 *
 * Only documented functions of OpenSSL are called, and nothing is known of how Python or OpenSSL keep
 * their objects: OpenSSL itself says which SSL it makes, to whoever registers for it
 * (CRYPTO_get_ex_new_index(3)), in the thread that makes it. SSL_get_fd tells whether it is the one
 * of the socket.
 */
#include <errno.h>
#include <poll.h>
#include <time.h>

#include "native.h"

enum { BUFFER = 256 * 1024, RECORD = 16 * 1024 };

/* Constants of OpenSSL's interface, the same since 1.1.1. */
enum {
    EX_INDEX_SSL = 0,         /* CRYPTO_EX_INDEX_SSL */
    SET_BUFFER_SIZE = 117,    /* BIO_C_SET_BUFF_SIZE; with an argument of 0: to read by */
    ERROR_WANT_READ = 2,      /* SSL_ERROR_WANT_READ and so on */
    ERROR_WANT_WRITE = 3,
    ERROR_SYSCALL = 5,
    ERROR_ZERO_RETURN = 6,
    LIBRARY_SSL = 20,         /* ERR_LIB_SSL */
    UNEXPECTED_END = 294,     /* SSL_R_UNEXPECTED_EOF_WHILE_READING, since 3.0 */
};

static _Thread_local void *made; /* the last SSL that this thread made */

static void noted(void *parent, void *ptr, void *ad, int index, long argl, void *argp)
{
    (void)ptr, (void)ad, (void)index, (void)argl, (void)argp;
    made = parent;
}

int jfs_tls_begin(const struct jfs_tls *tls)
{
    return tls->get_ex_new_index(EX_INDEX_SSL, 0, NULL, noted, NULL, NULL) < 0 ? -ENOMEM : 0;
}

void *jfs_tls_held(const struct jfs_tls *tls, int fd)
{
    void *ssl = made, *buffer, *connection;

    made = NULL;
    if (ssl == NULL || tls->get_fd(ssl) != fd || !tls->up_ref(ssl))
        return NULL;
    connection = tls->get_rbio(ssl);
    buffer = tls->bio_new(tls->bio_f_buffer());
    if (buffer == NULL || tls->bio_int_ctrl(buffer, SET_BUFFER_SIZE, BUFFER, 0) <= 0 ||
        !tls->bio_up_ref(connection)) {
        tls->bio_free(buffer);
        tls->free(ssl);
        return NULL;
    }
    tls->set0_rbio(ssl, tls->bio_push(buffer, connection));
    return ssl;
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Return 0 once the connection may go on, -ETIMEDOUT at the time *until*. */
static int waited(int fd, short events, int64_t until)
{
    for (;;) {
        struct pollfd wanted = {.fd = fd, .events = events};
        int64_t left = until - now_ms();
        int told;

        if (left <= 0)
            return -ETIMEDOUT;
        told = poll(&wanted, 1, left < 60000 ? (int)left : 60000);
        if (told > 0)
            return 0;
        if (told < 0 && errno != EINTR)
            return -errno;
    }
}

/* Return 0: try again; 1: the other end has ended it; else -errno. */
static int failed(const struct jfs_tls *tls, void *ssl, int fd, int result, int64_t until,
                  unsigned long *said)
{
    int number = errno;

    switch (tls->get_error(ssl, result)) {
    case ERROR_WANT_READ:
        return waited(fd, POLLIN, until);
    case ERROR_WANT_WRITE:
        return waited(fd, POLLOUT, until);
    case ERROR_ZERO_RETURN:
        return 1;
    case ERROR_SYSCALL:
        return number ? -number : 1;
    default:
        *said = tls->peek_last_error();
        if (((*said >> 23) & 0xff) == LIBRARY_SSL && (*said & 0x7fffff) == UNEXPECTED_END)
            return 1; /* many servers end so; whether all has come is known by its length */
        return -EPROTO;
    }
}

ssize_t jfs_tls_receive(const struct jfs_tls *tls, void *ssl, int fd, void *place, size_t size,
                        int64_t patience_ms, unsigned long *said)
{
    int64_t until = now_ms() + patience_ms;
    size_t filled = 0;

    tls->clear_error();
    while (filled < size) {
        size_t count = 0;
        int result, failure;

        errno = 0;
        result = tls->read_ex(ssl, (char *)place + filled, size - filled, &count);
        if (result == 1) {
            filled += count;
            if (now_ms() >= until)
                break;
            continue;
        }
        failure = failed(tls, ssl, fd, result, until, said);
        tls->clear_error();
        if (failure > 0 || (failure < 0 && filled))
            break;
        if (failure < 0)
            return failure;
    }
    return (ssize_t)filled;
}

ssize_t jfs_tls_receive_run(const struct jfs_tls *tls, void *ssl, int fd, struct jfs_run *run,
                            uint64_t at, uint64_t stop, uint64_t piece,
                            struct jfs_arrival *arrival, int64_t patience_ms, unsigned long *said)
{
    uint64_t filled = at;

    if (!piece || jfs_run_begin(run, at, stop))
        return -EINVAL;
    while (filled < stop) {
        uint64_t before = filled, want = stop - filled < piece ? stop - filled : piece;
        ssize_t count = jfs_tls_receive(tls, ssl, fd, run->data + filled, want, patience_ms, said);

        if (count <= 0)
            return filled > at ? (ssize_t)(filled - at) : count;
        filled += (uint64_t)count;
        if (jfs_run_filled(run, before, filled, arrival) || (uint64_t)count < want)
            break;
    }
    return (ssize_t)(filled - at);
}

ssize_t jfs_tls_send(const struct jfs_tls *tls, void *ssl, int fd, const void *data, size_t size,
                     int64_t patience_ms, unsigned long *said)
{
    int64_t until = now_ms() + patience_ms;
    size_t sent = 0;

    tls->clear_error();
    while (sent < size) {
        size_t count = 0, left = size - sent;
        int result, failure;

        errno = 0;
        result = tls->write_ex(ssl, (const char *)data + sent, left < RECORD ? left : RECORD, &count);
        if (result == 1) {
            sent += count;
            if (now_ms() >= until)
                break;
            continue;
        }
        failure = failed(tls, ssl, fd, result, until, said);
        tls->clear_error();
        if (failure && sent)
            break;
        if (failure)
            return failure > 0 ? -EPIPE : failure;
    }
    return (ssize_t)sent;
}

int jfs_tls_is_quiet(const struct jfs_tls *tls, void *ssl)
{
    size_t count = 0;
    char first;
    int result;

    tls->clear_error();
    result = tls->peek_ex(ssl, &first, 1, &count);
    result = result != 1 && tls->get_error(ssl, result) == ERROR_WANT_READ;
    tls->clear_error();
    return result;
}
