/* radix.h: numbers as 64-bit keys, and selection and sorting by them, byte by byte. */
#ifndef MOESIM_CAPACITY_RADIX_H
#define MOESIM_CAPACITY_RADIX_H

#include <stdint.h>

/* Local. 64 bits that rise as v falls; NaN comes last. */
uint64_t moe_radix_key(double v);

/* Local. The nth smallest (1 = first) of key [n]; *smaller = how many are smaller. O(n). */
uint64_t moe_radix_nth(const uint64_t *key, int64_t n, int64_t nth, int64_t *smaller);

typedef struct moe_radix_entry {
    uint64_t key;
    int64_t place;
} moe_radix_entry;

/* Local. Sorts e [n], n >= 1, by key, equal keys in the order in which they come. other [n] is
 * working memory; the sorted entries are in the one of the two that is returned. O(n). */
moe_radix_entry *moe_radix_sort(moe_radix_entry *e, moe_radix_entry *other, int64_t n);

#endif
