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
#define JFS_NATIVE_ABI 1
#endif

#define JFS_EXPORTED __attribute__((visibility("default")))

JFS_EXPORTED int jfs_native_abi(void);

#endif
