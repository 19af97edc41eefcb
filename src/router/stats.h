/* stats.h: counts and exact score sums of a set of tokens: all that the balance losses need.
 *
 * A cell is a flat vector of int64 words, so that adding cells (of threads, segments, devices, and
 * ranks by MPI_Allreduce) is adding words. In this order it holds
 *   tokens         [1]  tokens counted; padding is left out
 *   z              [3]  exact sum of (logsumexp z)^2, see base/exact.h
 *   entropy        [3]  exact sum of the entropies -sum_i s' log s'
 *   counts         [N]  c_i: selections of expert i
 *   device_tokens  [D]  distinct tokens sent to device d: the numerator of f''
 *   score_hi, _lo  [N]  exact sums of the normalised score s' of expert i: the numerator of P_i
 *   first          [N]  tokens whose first choice is expert i
 *   weight_hi, _lo [N]  the importance: exact sums of the combine weights g of expert i before the
 *                       scaling factor, or (importance_of = scores) of s' without noise
 *   load_hi, _lo   [N]  exact sums of the smooth load of expert i; 0 unless balance.load_form asks
 *                       for it
 *   served         [slots]  selections that the replica in a slot serves; where every expert lives
 *                       in one slot there is no such array, for then it is counts */
#ifndef MOESIM_ROUTER_STATS_H
#define MOESIM_ROUTER_STATS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct moe_stats {
    int32_t num_experts, devices;
    int32_t slots; /* of all devices, where experts have replicas; else 0 */
    int64_t words; /* per cell */
    int64_t num_cells;
    int64_t *cell;    /* [num_cells][words] */
    int64_t capacity; /* words allocated */
    bool borrowed;    /* the cells belong to another moe_stats */
} moe_stats;

enum { /* places of the words before the first array; their number; words for each expert */
       MOE_STAT_TOKENS = 0,
       MOE_STAT_Z = 1,
       MOE_STAT_ENTROPY = 4,
       MOE_STAT_HEAD = 7,
       MOE_STAT_PER_EXPERT = 8
};

/* Local. Room for num_cells cleared cells. Free with moe_stats_free. */
void moe_stats_reserve(moe_stats *s, int32_t num_experts, int32_t devices, int64_t num_cells);
/* Local. The same where experts have replicas in `slots` slots; slots = 0: they have not. */
void moe_stats_reserve_slots(moe_stats *s,
                             int32_t num_experts,
                             int32_t devices,
                             int32_t slots,
                             int64_t num_cells);
/* Local. The cells of `owner` under another name, without a copy, until either of the two is
 * reserved anew or freed. What s held of its own is freed. */
void moe_stats_borrow(moe_stats *s, const moe_stats *owner);
void moe_stats_free(moe_stats *s);
/* Local. Cell i, and the parts of a cell. */
static inline int64_t *moe_stats_cell(const moe_stats *s, int64_t i) {
    return s->cell + i * s->words;
}
static inline int64_t *moe_stats_counts(const moe_stats *s, int64_t *cell) {
    (void)s;
    return cell + MOE_STAT_HEAD;
}
static inline int64_t *moe_stats_device_tokens(const moe_stats *s, int64_t *cell) {
    return cell + MOE_STAT_HEAD + s->num_experts;
}
static inline int64_t *moe_stats_score_hi(const moe_stats *s, int64_t *cell) {
    return cell + MOE_STAT_HEAD + s->num_experts + s->devices;
}
static inline int64_t *moe_stats_score_lo(const moe_stats *s, int64_t *cell) {
    return moe_stats_score_hi(s, cell) + s->num_experts;
}
static inline int64_t *moe_stats_first(const moe_stats *s, int64_t *cell) {
    return moe_stats_score_lo(s, cell) + s->num_experts;
}
static inline int64_t *moe_stats_weight_hi(const moe_stats *s, int64_t *cell) {
    return moe_stats_first(s, cell) + s->num_experts;
}
static inline int64_t *moe_stats_weight_lo(const moe_stats *s, int64_t *cell) {
    return moe_stats_weight_hi(s, cell) + s->num_experts;
}
static inline int64_t *moe_stats_load_hi(const moe_stats *s, int64_t *cell) {
    return moe_stats_weight_lo(s, cell) + s->num_experts;
}
static inline int64_t *moe_stats_load_lo(const moe_stats *s, int64_t *cell) {
    return moe_stats_load_hi(s, cell) + s->num_experts;
}
static inline int64_t *moe_stats_served(const moe_stats *s, int64_t *cell) {
    return moe_stats_load_lo(s, cell) + s->num_experts;
}
/* Local. to[w] += from[w] for all words of one cell. */
void moe_stats_add(const moe_stats *s, int64_t *to, const int64_t *from);

#endif
