/* radix.c: keys, selection, sorting. */
#include "capacity/radix.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

/* The bits of a double sort as the number does once the sign bit of positive numbers, or all bits
 * of negative ones, are turned; here they are turned once more, since keys fall. */
uint64_t moe_radix_key(double v) {
    uint64_t bits;
    if (isnan(v)) {
        return UINT64_MAX;
    }
    v += 0.0; /* -0 becomes 0 */
    memcpy(&bits, &v, sizeof bits);
    return bits >> 63 ? bits : ~(bits | (uint64_t)1 << 63);
}

/* From the highest byte down: counts the keys that agree so far, and steps over the smaller ones.
 */
uint64_t moe_radix_nth(const uint64_t *key, int64_t n, int64_t nth, int64_t *smaller) {
    uint64_t prefix = 0, mask = 0;
    int64_t left = nth;
    MOE_ASSERT(nth >= 1 && nth <= n);
    for (int shift = 56; shift >= 0; shift -= 8) {
        int64_t count[256] = {0}, byte = 0;
        for (int64_t i = 0; i < n; i++) {
            if ((key[i] & mask) == prefix) {
                count[key[i] >> shift & 255]++;
            }
        }
        for (; left > count[byte]; byte++) {
            left -= count[byte];
        }
        prefix |= (uint64_t)byte << shift;
        mask |= (uint64_t)255 << shift;
    }
    *smaller = nth - left;
    return prefix;
}

/* From the lowest byte up; a byte that all keys share is left out. */
moe_radix_entry *moe_radix_sort(moe_radix_entry *e, moe_radix_entry *other, int64_t n) {
    for (int shift = 0; shift < 64; shift += 8) {
        int64_t place[257] = {0};
        for (int64_t i = 0; i < n; i++) {
            place[(e[i].key >> shift & 255) + 1]++;
        }
        if (place[(e[0].key >> shift & 255) + 1] == n) {
            continue;
        }
        for (int byte = 0; byte < 256; byte++) {
            place[byte + 1] += place[byte];
        }
        for (int64_t i = 0; i < n; i++) {
            other[place[e[i].key >> shift & 255]++] = e[i];
        }
        moe_radix_entry *sorted = other;
        other = e;
        e = sorted;
    }
    return e;
}
