/* checksum.h: the checksum of bytes by which a damaged file is noticed. */
#ifndef MOESIM_BASE_CHECKSUM_H
#define MOESIM_BASE_CHECKSUM_H

#include <stdint.h>

/* Local. XXH64 with seed 0 (Yann Collet's xxHash): `xxhsum -H64` prints the same number as 16
 * digits. `bytes` may be NULL where `length` is 0. */
uint64_t moe_checksum(const void *bytes, int64_t length);

#endif
