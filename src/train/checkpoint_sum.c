/* checkpoint_sum.c: the checksum of blocks: XXH64 by Yann Collet, seed 0, after its public
 * specification; `xxhsum -H64` gives the same digits. Every step is one to one in the word that
 * comes in, so that a change of one word always shows in its lane, at several bytes a cycle. */
#include <string.h>

#include "train/checkpoint.h"

#define PRIME_1 0x9E3779B185EBCA87u
#define PRIME_2 0xC2B2AE3D27D4EB4Fu
#define PRIME_3 0x165667B19E3779F9u
#define PRIME_4 0x85EBCA77C2B2AE63u
#define PRIME_5 0x27D4EB2F165667C5u

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "checkpoints are little-endian");

static uint64_t rotate(uint64_t x, int bits) {
    return x << bits | x >> (64 - bits);
}

static uint64_t word(const unsigned char *p) {
    uint64_t w;
    memcpy(&w, p, sizeof w);
    return w;
}

static uint64_t round_of(uint64_t lane, uint64_t in) {
    return rotate(lane + in * PRIME_2, 31) * PRIME_1;
}

/* Four lanes over whole stripes of 32 bytes. */
static uint64_t stripes(const unsigned char *p, int64_t num) {
    uint64_t lane[4] = {PRIME_1 + PRIME_2, PRIME_2, 0, 0 - PRIME_1};
    for (int64_t i = 0; i < num; i++, p += 32) {
        for (int l = 0; l < 4; l++) {
            lane[l] = round_of(lane[l], word(p + 8 * l));
        }
    }
    uint64_t sum =
        rotate(lane[0], 1) + rotate(lane[1], 7) + rotate(lane[2], 12) + rotate(lane[3], 18);
    for (int l = 0; l < 4; l++) {
        sum = (sum ^ round_of(0, lane[l])) * PRIME_1 + PRIME_4;
    }
    return sum;
}

static uint64_t tail(uint64_t sum, const unsigned char *p, int64_t length) {
    for (; length >= 8; length -= 8, p += 8) {
        sum = rotate(sum ^ round_of(0, word(p)), 27) * PRIME_1 + PRIME_4;
    }
    if (length >= 4) {
        uint32_t half;
        memcpy(&half, p, sizeof half);
        sum = rotate(sum ^ half * PRIME_1, 23) * PRIME_2 + PRIME_3;
        length -= 4;
        p += 4;
    }
    for (; length > 0; length--, p++) {
        sum = rotate(sum ^ *p * PRIME_5, 11) * PRIME_1;
    }
    return sum;
}

uint64_t moe_checksum(const void *bytes, int64_t length) {
    const unsigned char *p = bytes;
    uint64_t sum = (length >= 32 ? stripes(p, length / 32) : PRIME_5) + (uint64_t)length;
    if (length > 0) {
        sum = tail(sum, p + length / 32 * 32, length % 32);
    }
    sum = (sum ^ sum >> 33) * PRIME_2;
    sum = (sum ^ sum >> 29) * PRIME_3;
    return sum ^ sum >> 32;
}
