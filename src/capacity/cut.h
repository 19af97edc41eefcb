/* cut.h: who stays in one pool, without sorting all of it.
 *
 * Pairs are counted by cells: class x bin, a bin being a range of keys. Counts are small and add up
 * over ranks; they tell in which cell the budget of a target ends, and so settle every pair but
 * those of that one cell, of which the keys are looked at. Against gathering all keys, a pool of
 * the global batch needs the keys of a few pairs in a thousand. What is given up: equal keys all
 * fall in one cell, and then all of them travel, 8 bytes each; their order of arrival follows from
 * the order of ranks. */
#ifndef MOESIM_CAPACITY_CUT_H
#define MOESIM_CAPACITY_CUT_H

#include <stdbool.h>
#include <stdint.h>

#include "capacity/capacity.h"

/* How the pairs of a pool are counted. */
typedef struct moe_shape {
    int32_t targets, classes, bins;
    int shift;            /* of keys, for bins */
    bool exempt;          /* class 0 has no limit */
    bool has_keys;        /* false: position decides */
    bool by_key;          /* places follow the keys (batch_priority), else the tokens */
    moe_scratch *scratch; /* working memory, or NULL */
} moe_shape;

/* Local. A shape with at most about max_words counts for a pool. Their number only decides how much
 * work is left after counting, never the result. The caller sets scratch. */
moe_shape moe_cut_shape(const moe_capacity *c, bool exempt, int64_t max_words);
static inline int64_t moe_shape_cells(const moe_shape *s) {
    return (int64_t)s->classes * s->bins;
}
static inline int64_t moe_shape_words(const moe_shape *s) {
    return s->targets * moe_shape_cells(s);
}

/* This rank's pairs of a pool, in order of arrival: token, then choice. */
typedef struct moe_pairs {
    int64_t count;
    const int32_t *group; /* [count] */
    const uint64_t *key;  /* [count] or NULL */
} moe_pairs;

/* Where the budget of a target ends. */
typedef struct moe_cut {
    int64_t cell;   /* earlier cells stay, later ones go; number of cells: nothing goes */
    int64_t room;   /* pairs of `cell` that stay */
    int64_t kept;   /* pairs that stay in all */
    int64_t exempt; /* of these, how many are exempt */
} moe_cut;

/* Local. count [moe_shape_words] = pairs in each cell [target][cell]. */
void moe_cut_count(const moe_shape *s, const moe_pairs *p, int64_t *count);
/* Local. cut [targets] from total, the counts of all parts together. */
void moe_cut_targets(const moe_shape *s, const int64_t *total, int64_t capacity, moe_cut *cut);
/* Local. Number of pairs of a part, with these counts, whose keys must be known: those of the cells
 * in which budgets end (by_key: all that stay). */
int64_t moe_cut_listed(const moe_shape *s, const moe_cut *cut, const int64_t *count);
/* Local. keys = the keys of these pairs, ordered by target, cell and arrival. */
void moe_cut_list(const moe_shape *s,
                  const moe_cut *cut,
                  const int64_t *count,
                  const moe_pairs *p,
                  uint64_t *keys);

/* The parts of a pool in rank order. */
typedef struct moe_parts {
    int num, self;
    const int64_t *const *count; /* [num] each [moe_shape_words] */
    const uint64_t *const *keys; /* [num] moe_cut_list of each; unused without keys */
} moe_parts;

/* Local. kept and slot [pairs] = 1 and the place in the target's buffer for a pair that stays, else
 * 0 and -1. Places follow the order in which the budget is given out for position and
 * batch_priority, else the order of the tokens. O(pairs): radix selection on keys, and a radix sort
 * for batch_priority. */
void moe_cut_settle(const moe_shape *s,
                    const moe_parts *parts,
                    const moe_cut *cut,
                    const moe_pairs *p,
                    uint8_t *kept,
                    int32_t *slot);

#endif
