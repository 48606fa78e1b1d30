#include "native.h"

int jfs_native_abi(void) { return JFS_NATIVE_ABI; }
