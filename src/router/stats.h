/* stats.h: counts and exact score sums of a set of tokens: all that the balance losses need. Layer
 * 2 (decide): pure.
 *
 * A cell is a flat vector of int64 words, so that adding cells (threads, segments, devices, ranks
 * by MPI_Allreduce) is adding words: [0]            tokens counted (padding left out) [1..3] exact
 * sum of (logsumexp z)^2, see exact.h counts         [N] selections of expert i              (c_i)
 *   device_tokens  [D] distinct tokens sent to device d    (numerator of f'')
 *   [4..6]         exact sum of the entropies -sum_i s' log s'
 *   score_hi/lo    [N] exact sums of the normalised score s' of expert i (numerator of P_i)
 *   first          [N] tokens whose first choice is expert i
 *   weight_hi/lo   [N] exact sums of the combine weights g of expert i, before the scaling factor
 * (importance) load_hi/lo     [N] exact sums of the smooth load of expert i; 0 unless
 * balance.load_form asks for it */
#ifndef MOESIM_ROUTER_STATS_H
#define MOESIM_ROUTER_STATS_H

#include <stdint.h>

typedef struct moe_stats {
    int32_t num_experts, devices;
    int64_t words; /* per cell */
    int64_t num_cells;
    int64_t *cell;    /* [num_cells][words] */
    int64_t capacity; /* words allocated */
} moe_stats;

enum {
    MOE_STAT_TOKENS = 0,
    MOE_STAT_Z = 1,
    MOE_STAT_ENTROPY = 4,
    MOE_STAT_HEAD = 7,
    MOE_STAT_PER_EXPERT = 8
};

/* Local. Room for num_cells cleared cells. Free with moe_stats_free. */
void moe_stats_reserve(moe_stats *s, int32_t num_experts, int32_t devices, int64_t num_cells);
void moe_stats_free(moe_stats *s);
/* Local. Parts of cell i. */
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
/* Local. to[w] += from[w] for all words of one cell. */
void moe_stats_add(const moe_stats *s, int64_t *to, const int64_t *from);

#endif
