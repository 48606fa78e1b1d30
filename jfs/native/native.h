/* What the files of the native part share. Every function that Python calls is declared here.
 *
 * The rules. Called through ctypes, without the interpreter's lock: nothing here may touch a Python
 * object. Memory, descriptors and counters belong to the caller, which holds them for as long as the
 * call lasts. Nothing is kept between calls, except by reply.c and requests.c. A failure is returned
 * as -errno.
 */
#ifndef JFS_NATIVE_H
#define JFS_NATIVE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Raised with every change of what Python sees: see jfs/native/__init__.py. */
#ifndef JFS_NATIVE_ABI
#define JFS_NATIVE_ABI 6
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
/* Have the READs of a struct jfs_piece answered by who fills, who holds it; 0: of none. */
JFS_EXPORTED void jfs_arrival_tell(struct jfs_arrival *arrival, uint64_t piece);

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

/* What every way to receive does with a run: before its first byte (-EINVAL: it cannot be), and with
 * each piece: tell of it and sum its blocks. Returns whether a byte that is wanted has come. */
int jfs_run_begin(struct jfs_run *run, uint64_t at, uint64_t stop);
int jfs_run_filled(struct jfs_run *run, uint64_t before, uint64_t filled,
                   struct jfs_arrival *arrival);

/* tls.c: the functions of OpenSSL that it calls, as Python's own ssl found them. */
struct jfs_tls {
    int (*read_ex)(void *ssl, void *place, size_t size, size_t *count);
    int (*peek_ex)(void *ssl, void *place, size_t size, size_t *count);
    int (*write_ex)(void *ssl, const void *data, size_t size, size_t *count);
    int (*get_error)(const void *ssl, int result);
    int (*get_fd)(const void *ssl);
    int (*up_ref)(void *ssl);
    void (*free)(void *ssl);
    void *(*get_rbio)(const void *ssl);
    void (*set0_rbio)(void *ssl, void *bio);
    const void *(*bio_f_buffer)(void);
    void *(*bio_new)(const void *method);
    int (*bio_free)(void *bio);
    int (*bio_up_ref)(void *bio);
    void *(*bio_push)(void *bio, void *next);
    long (*bio_int_ctrl)(void *bio, int command, long number, int argument);
    void (*clear_error)(void);
    unsigned long (*peek_last_error)(void);
    int (*get_ex_new_index)(int of, long argl, void *argp,
                            void (*made)(void *, void *, void *, int, long, void *), void *copied,
                            void *freed);
};

/* Called once, before any connection is made. */
JFS_EXPORTED int jfs_tls_begin(const struct jfs_tls *tls);
/* Take a reference to the SSL of the connection that this thread made last, if that is *fd*, and
 * buffer what it receives. NULL: it cannot be had. */
JFS_EXPORTED void *jfs_tls_held(const struct jfs_tls *tls, int fd);
/* Receive until the place is full, time is up or the connection fails, for at most *patience_ms*.
 * Return how much came, 0: it ended; if nothing came: -ETIMEDOUT, -EPROTO (*said* is OpenSSL's code),
 * another -errno. The descriptor does not block. */
JFS_EXPORTED ssize_t jfs_tls_receive(const struct jfs_tls *tls, void *ssl, int fd, void *place,
                                     size_t size, int64_t patience_ms, unsigned long *said);
/* The same for a run, `piece` at a time, as jfs_receive. */
JFS_EXPORTED ssize_t jfs_tls_receive_run(const struct jfs_tls *tls, void *ssl, int fd,
                                         struct jfs_run *run, uint64_t at, uint64_t stop,
                                         uint64_t piece, struct jfs_arrival *arrival,
                                         int64_t patience_ms, unsigned long *said);
/* The same for sending. Who goes on after a part of *data* goes on with the rest of it. */
JFS_EXPORTED ssize_t jfs_tls_send(const struct jfs_tls *tls, void *ssl, int fd, const void *data,
                                  size_t size, int64_t patience_ms, unsigned long *said);
/* Whether nothing came and it has not ended; tickets and the like are taken in. */
JFS_EXPORTED int jfs_tls_is_quiet(const struct jfs_tls *tls, void *ssl);

/* Replies to READs; see reply.c and requests.c, and jfs/native/replies.py for who calls what. Any
 * thread, unless it says otherwise. What is made is freed by its own function, in any order. */
struct jfs_replies; /* those of one mount */
struct jfs_reader;  /* of one content */
struct jfs_piece;   /* bytes of one content in memory */
enum {
    JFS_ANSWERED,
    JFS_WAITS,         /* it will be answered, or passed on */
    JFS_ANSWERED_LATE, /* after that */
    JFS_PASSED_ON,     /* libfuse has it now */
};
struct jfs_note { /* READs of one handle, one after another: bytes `start` to `stop` */
    uint64_t handle, start, stop, kind, count, is_quiet;
};

JFS_EXPORTED int jfs_replies_new(void (*exit_session)(void *session), struct jfs_replies **made);
JFS_EXPORTED void jfs_replies_free(struct jfs_replies *replies);
/* Descriptors that are readable while there is a request for libfuse, or a note. */
JFS_EXPORTED int jfs_replies_ready(struct jfs_replies *replies);
JFS_EXPORTED int jfs_replies_noted(struct jfs_replies *replies);
/* Read the requests of `device` from now on; one at a time of a process. */
JFS_EXPORTED int jfs_replies_start(struct jfs_replies *replies, int device);
JFS_EXPORTED void jfs_replies_stop(struct jfs_replies *replies);
/* As fuse_session_receive_buf, but -EINTR if there is no request. */
JFS_EXPORTED int jfs_replies_receive(void *session, void *buffer);
/* Take notes; returns how many. */
JFS_EXPORTED size_t jfs_replies_notes(struct jfs_replies *replies, struct jfs_note *notes,
                                      size_t room);
/* Answer no more READs of a handle, or of any; returns when none is being answered. */
JFS_EXPORTED void jfs_replies_revoke(struct jfs_replies *replies, uint64_t handle);
JFS_EXPORTED void jfs_replies_revoke_all(struct jfs_replies *replies);

JFS_EXPORTED struct jfs_reader *jfs_reader_new(struct jfs_replies *replies, uint64_t size);
JFS_EXPORTED void jfs_reader_free(struct jfs_reader *reader);
JFS_EXPORTED int jfs_reader_publish(struct jfs_reader *reader, uint64_t handle);
JFS_EXPORTED void jfs_reader_revoke(struct jfs_reader *reader);
/* READs within need not be known at once. */
JFS_EXPORTED void jfs_reader_quiet(struct jfs_reader *reader, uint64_t start, uint64_t stop);

/* Bytes `start` to `stop` of the file come to `data`; up to `filled` they are there. */
JFS_EXPORTED struct jfs_piece *jfs_piece_new(struct jfs_reader *reader, const uint8_t *data,
                                             uint64_t start, uint64_t stop, uint64_t filled);
JFS_EXPORTED void jfs_piece_filled(struct jfs_piece *piece, uint64_t filled);
JFS_EXPORTED void jfs_piece_failed(struct jfs_piece *piece);
/* When it returns nobody reads `data` any more. */
JFS_EXPORTED void jfs_piece_end(struct jfs_piece *piece);
JFS_EXPORTED void jfs_piece_free(struct jfs_piece *piece);

#endif
