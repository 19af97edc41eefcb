/* plan.c: builds the plan by counting. Pass 1 sorts each token's experts by (device, expert) and
 * counts rows per device pair; prefix sums give every pair its place; pass 2 writes the rows in
 * the order of tokens. This takes O(T K) steps. The advantage over sorting all T K rows is two
 * linear passes without a large sort, and the order within a block comes for free. */
#include "exchange/plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "exchange/row_format.h"

/* --- sorting a token's experts --- */

/* A key holds device, expert and position in the routing, so that sorting keys as integers sorts
 * the experts. */
enum { EXPERT_BITS = 21, POSITION_BITS = 21 };

static int64_t key_of(int32_t device, int32_t expert, int64_t position) {
    return ((int64_t)device << (EXPERT_BITS + POSITION_BITS)) | ((int64_t)expert << POSITION_BITS) |
           position;
}
static int32_t key_device(int64_t key) {
    return (int32_t)(key >> (EXPERT_BITS + POSITION_BITS));
}
static int32_t key_expert(int64_t key) {
    return (int32_t)((key >> POSITION_BITS) & ((1 << EXPERT_BITS) - 1));
}
static int64_t key_position(int64_t key) {
    return key & ((1 << POSITION_BITS) - 1);
}

static int compare_keys(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void sort_keys(int64_t *key, int64_t n) {
    if (n > 32) {
        qsort(key, (size_t)n, sizeof *key, compare_keys);
        return;
    }
    for (int64_t i = 1; i < n; i++) {
        int64_t k = key[i], j = i;
        for (; j > 0 && key[j - 1] > k; j--) {
            key[j] = key[j - 1];
        }
        key[j] = k;
    }
}

/* --- building --- */

static int64_t reached_words(const moe_plan *plan) {
    return ((int64_t)plan->devices + 63) / 64;
}

/* Arrays whose sizes depend on the batch and the devices only. */
static void reserve_fixed(moe_plan *plan) {
    int64_t ends = plan->ranks + 1;
    const moe_block_array table[] = {
        MOE_ARRAY(plan->device_cell, plan->num_local + 1),
        MOE_ARRAY(plan->rank_row, ends),
        MOE_ARRAY(plan->rank_pair, ends),
        MOE_ARRAY(plan->token_row_offset, plan->num_tokens + 1),
        MOE_ARRAY(plan->count, 2 * (int64_t)plan->devices),
        MOE_ARRAY(plan->reached, reached_words(plan)),
        MOE_ARRAY(plan->next_cell, plan->num_local),
    };
    moe_block_reserve(&plan->fixed, table, MOE_ARRAYS(table), "plan");
    memset(plan->count, 0, 2 * (size_t)plan->devices * sizeof *plan->count);
    memset(plan->reached, 0, (size_t)reached_words(plan) * sizeof *plan->reached);
}

/* A device pair has a pair of the plan at least. */
static void reserve_cells(moe_plan *plan) {
    int64_t all = (int64_t)plan->num_local * plan->devices;
    const moe_block_array table[] = {
        MOE_ARRAY(plan->cell, plan->num_pairs < all ? plan->num_pairs : all),
    };
    moe_block_reserve_varying(&plan->cells, table, MOE_ARRAYS(table), "plan");
}

static void reserve_pairs(moe_plan *plan) {
    const moe_block_array table[] = {
        MOE_ARRAY(plan->pair_expert, plan->num_pairs),
        MOE_ARRAY(plan->pair_weight, plan->num_pairs),
        MOE_ARRAY(plan->pair_selection, plan->num_pairs),
        MOE_ARRAY(plan->key, plan->num_pairs),
    };
    moe_block_reserve_varying(&plan->pairs, table, MOE_ARRAYS(table), "plan");
}

static void reserve_rows(moe_plan *plan) {
    const moe_block_array table[] = {
        MOE_ARRAY(plan->row_token, plan->num_rows + 1), /* never NULL: it is offset */
        MOE_ARRAY(plan->row_device, plan->num_rows),
        MOE_ARRAY(plan->row_pair, plan->num_rows + 1),
        MOE_ARRAY(plan->token_row, plan->num_rows),
    };
    moe_block_reserve_varying(&plan->rows, table, MOE_ARRAYS(table), "plan");
}

/* Does pair i of a token's sorted keys begin a row? */
static bool begins_row(const moe_row_format *format, const int64_t *key, int64_t i) {
    return i == 0 || format->begins_row(key_device(key[i]), key_device(key[i - 1]));
}

/* Lists the devices that were counted, in ascending order, as cells of local device j, and clears
 * the counts. `cells` is the number of cells before; returns the number after. */
static int64_t list_cells(moe_plan *plan, int32_t j, int64_t cells) {
    int64_t *rows = plan->count, *pairs = rows + plan->devices;
    for (int64_t word = 0; word < reached_words(plan); word++) {
        for (; plan->reached[word] != 0; plan->reached[word] &= plan->reached[word] - 1) {
            int32_t d = (int32_t)(64 * word) + __builtin_ctzll(plan->reached[word]);
            plan->cell[cells++] = (moe_plan_cell){
                .from = plan->first_device + j, .to = d, .rows = rows[d], .pairs = pairs[d]};
            rows[d] = pairs[d] = 0;
        }
    }
    return cells;
}

/* Pass 1 for the tokens of local device j: sorts the keys of every token, and counts rows and pairs
 * per destination. */
static void count_device(moe_plan *plan,
                         int32_t j,
                         const moe_batch *batch,
                         const moe_placement *placement,
                         const moe_routing *routing) {
    const moe_row_format *format = moe_row_format_of(plan->mode);
    int64_t *rows = plan->count, *pairs = rows + plan->devices;
    for (int64_t t = batch->device_offset[j]; t < batch->device_offset[j + 1]; t++) {
        int64_t begin = routing->row_offset[t];
        int64_t n = routing->row_offset[t + 1] - begin;
        int64_t *key = plan->key + begin;
        for (int64_t i = 0; i < n; i++) {
            int32_t e = routing->expert[begin + i];
            key[i] = key_of(
                moe_placement_device(placement, e, batch->first_token + t, batch->first_device + j),
                e, i);
        }
        sort_keys(key, n);
        for (int64_t i = 0; i < n; i++) {
            int32_t d = key_device(key[i]);
            pairs[d]++;
            rows[d] += begins_row(format, key, i);
            plan->reached[d / 64] |= (uint64_t)1 << (d % 64);
        }
    }
    plan->device_cell[j + 1] = list_cells(plan, j, plan->device_cell[j]);
}

/* Gives every cell its place by prefix sums in the order of the rows: destination rank, source
 * device, destination device. */
static void place_cells(moe_plan *plan) {
    int64_t row = 0;
    int64_t pair = 0;
    for (int32_t j = 0; j < plan->num_local; j++) {
        plan->next_cell[j] = plan->device_cell[j];
    }
    for (int32_t q = 0; q < plan->ranks; q++) {
        plan->rank_row[q] = row;
        plan->rank_pair[q] = pair;
        for (int32_t j = 0; j < plan->num_local; j++) {
            int64_t *next = &plan->next_cell[j];
            for (; *next < plan->device_cell[j + 1] &&
                   plan->cell[*next].to < (q + 1) * plan->num_local;
                 ++*next) {
                plan->cell[*next].first_row = row;
                plan->cell[*next].first_pair = pair;
                row += plan->cell[*next].rows;
                pair += plan->cell[*next].pairs;
            }
        }
    }
    plan->rank_row[plan->ranks] = plan->num_rows = row;
    plan->rank_pair[plan->ranks] = pair;
    MOE_ASSERT(pair == plan->num_pairs);
}

/* Pass 2 for the tokens of local device j: writes their rows and pairs. `listed` is the number of
 * entries of token_row before; returns the number after. */
static int64_t fill_device(moe_plan *plan,
                           int32_t j,
                           const moe_batch *batch,
                           const moe_routing *routing,
                           int64_t listed) {
    const moe_row_format *format = moe_row_format_of(plan->mode);
    int64_t *row_cursor = plan->count, *pair_cursor = row_cursor + plan->devices;
    for (int64_t c = plan->device_cell[j]; c < plan->device_cell[j + 1]; c++) {
        row_cursor[plan->cell[c].to] = plan->cell[c].first_row;
        pair_cursor[plan->cell[c].to] = plan->cell[c].first_pair;
    }
    for (int64_t t = batch->device_offset[j]; t < batch->device_offset[j + 1]; t++) {
        int64_t begin = routing->row_offset[t], n = routing->row_offset[t + 1] - begin;
        const int64_t *key = plan->key + begin;
        plan->token_row_offset[t] = listed;
        for (int64_t i = 0; i < n; i++) {
            int32_t d = key_device(key[i]);
            int64_t p = pair_cursor[d]++;
            if (begins_row(format, key, i)) {
                int64_t r = row_cursor[d]++;
                plan->row_token[r] = (int32_t)t;
                plan->row_device[r] = d;
                plan->row_pair[r] = p;
                plan->token_row[listed++] = r;
            }
            int64_t selection = begin + key_position(key[i]);
            plan->pair_expert[p] = key_expert(key[i]);
            plan->pair_weight[p] = routing->weight[selection];
            plan->pair_selection[p] = selection;
        }
    }
    return listed;
}

void moe_plan_build(moe_plan *plan,
                    enum moe_exchange_mode mode,
                    const moe_batch *batch,
                    const moe_placement *placement,
                    int32_t ranks,
                    const moe_routing *routing) {
    MOE_ASSERT(batch->num_local_devices * ranks == batch->devices &&
               batch->num_tokens <= INT32_MAX);
    MOE_ASSERT(placement->num_experts < (1 << EXPERT_BITS) &&
               placement->devices < (1 << EXPERT_BITS));
    plan->mode = mode;
    plan->devices = batch->devices;
    plan->first_device = batch->first_device;
    plan->num_local = batch->num_local_devices;
    plan->ranks = ranks;
    plan->num_tokens_global = batch->num_tokens_global;
    plan->num_tokens = batch->num_tokens;
    plan->num_pairs = routing->num_selections;
    reserve_fixed(plan);
    reserve_pairs(plan);
    reserve_cells(plan);
    plan->device_cell[0] = 0;
    for (int32_t j = 0; j < plan->num_local; j++) {
        count_device(plan, j, batch, placement, routing);
    }
    place_cells(plan);
    reserve_rows(plan);
    int64_t listed = 0;
    for (int32_t j = 0; j < plan->num_local; j++) {
        listed = fill_device(plan, j, batch, routing, listed);
    }
    plan->token_row_offset[plan->num_tokens] = listed;
    plan->row_pair[plan->num_rows] = plan->num_pairs;
    MOE_ASSERT(listed == plan->num_rows);
}

void moe_plan_free(moe_plan *plan) {
    moe_block_free(&plan->fixed);
    moe_block_free(&plan->cells);
    moe_block_free(&plan->rows);
    moe_block_free(&plan->pairs);
    *plan = (moe_plan){0};
}

/* --- check --- */

static const char *check_row(const moe_plan *plan,
                             const moe_placement *placement,
                             const moe_routing *routing,
                             int64_t r,
                             uint8_t *seen) {
    int64_t begin = plan->row_pair[r], end = plan->row_pair[r + 1];
    int32_t t = plan->row_token[r];
    if (end <= begin) {
        return "a row has no expert";
    }
    if (!moe_row_format_of(plan->mode)->several_pairs && end != begin + 1) {
        return "a row of mode selection has several experts";
    }
    if (t < 0 || t >= plan->num_tokens) {
        return "a row names a token that does not exist";
    }
    for (int64_t p = begin; p < end; p++) {
        int64_t s = plan->pair_selection[p];
        if (s < routing->row_offset[t] || s >= routing->row_offset[t + 1]) {
            return "a pair belongs to another token";
        }
        if (seen[s]++) {
            return "a selection is sent twice";
        }
        if (routing->expert[s] != plan->pair_expert[p]) {
            return "a pair names another expert than the routing";
        }
        if (moe_placement_slot_on(placement, plan->pair_expert[p], plan->row_device[r]) < 0) {
            return "a pair goes to a device without its expert";
        }
        if (p > begin && plan->pair_expert[p] <= plan->pair_expert[p - 1]) {
            return "experts of a row are not ascending";
        }
    }
    return NULL;
}

static const char *check_token_rows(const moe_plan *plan, int64_t t) {
    for (int64_t i = plan->token_row_offset[t]; i < plan->token_row_offset[t + 1]; i++) {
        int64_t r = plan->token_row[i],
                before = i > plan->token_row_offset[t] ? plan->token_row[i - 1] : -1;
        if (plan->row_token[r] != t) {
            return "a token lists another token's row";
        }
        if (before < 0) {
            continue;
        }
        int32_t d = plan->row_device[r], last = plan->row_device[before];
        bool repeats = !moe_row_format_of(plan->mode)->several_pairs && d == last;
        if (d < last || (d == last && !repeats)) {
            return "a token's rows are not in ascending order of devices";
        }
        if (repeats &&
            plan->pair_expert[plan->row_pair[r]] <= plan->pair_expert[plan->row_pair[before]]) {
            return "a token's rows are not in ascending order of experts";
        }
    }
    return NULL;
}

const char *moe_plan_check(const moe_plan *plan,
                           const moe_placement *placement,
                           const moe_routing *routing) {
    if (plan->num_pairs != routing->num_selections) {
        return "not every selection is planned exactly once";
    }
    if (plan->token_row_offset[plan->num_tokens] != plan->num_rows) {
        return "not every row belongs to a token";
    }
    uint8_t *seen = moe_alloc_zero(routing->num_selections + 1, 1, "plan check");
    const char *wrong = NULL;
    for (int64_t r = 0; r < plan->num_rows && !wrong; r++) {
        wrong = check_row(plan, placement, routing, r, seen);
    }
    for (int64_t t = 0; t < plan->num_tokens && !wrong; t++) {
        wrong = check_token_rows(plan, t);
    }
    for (int32_t q = 0; q < plan->ranks && !wrong; q++) {
        for (int64_t r = plan->rank_row[q]; r < plan->rank_row[q + 1] && !wrong; r++) {
            if (plan->row_device[r] / plan->num_local != q) {
                wrong = "a row stands in another rank's block";
            }
        }
    }
    moe_free(seen);
    return wrong;
}
