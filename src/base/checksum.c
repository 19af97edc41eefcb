/* checksum.c: the checksum of bytes, from the library xxHash. */
#include "base/checksum.h"

#include <stddef.h>
#include <xxhash.h>

uint64_t moe_checksum(const void *bytes, int64_t length) {
    return XXH64(bytes, (size_t)length, 0);
}
