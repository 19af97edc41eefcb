/* plan.c: builds the plan by counting. Pass 1 sorts each token's experts by (device, expert) and
 * counts rows per device pair; prefix sums give every pair its place; pass 2 writes the rows in
 * the order of tokens. This takes O(T K) steps. The advantage over sorting all T K rows is two
 * linear passes without a large sort, and the order within a block comes for free. */
#include "exchange/plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

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

/* Whose pairs are sent. Those of token t are offset[t] .. offset[t + 1] - 1 of expert and weight;
 * the tokens of local device j are order[device_offset[j]] .., or device_offset[j] .. themselves.
 */
typedef struct senders {
    const int64_t *device_offset, *order;
    const int64_t *offset;
    const int32_t *expert;
    const real *weight;
    int64_t first_token;   /* in the line of all tokens: of token 0, where number is NULL */
    const int64_t *number; /* the place of a token in the line, and its device */
    const int32_t *source;
} senders;

static int64_t token_at(const senders *s, int64_t i) {
    return s->order ? s->order[i] : i;
}

static int32_t source_of(const moe_plan *plan, const senders *s, int64_t t, int32_t j) {
    return s->source ? s->source[t] : plan->first_device + j;
}

static bool has_parts(const moe_plan *plan) {
    return plan->format->several_devices;
}

static int64_t reached_words(const moe_plan *plan) {
    return ((int64_t)plan->devices + 63) / 64;
}

/* Arrays whose sizes depend on the batch and the devices only; in a second hop the tokens are the
 * rows that arrived. */
static void reserve_fixed(moe_plan *plan) {
    int64_t ends = plan->ranks + 1;
    const moe_block_array table[] = {
        MOE_ARRAY(plan->device_cell, plan->num_local + 1),
        MOE_ARRAY(plan->rank_row, ends),
        MOE_ARRAY(plan->rank_pair, ends),
        MOE_ARRAY(plan->token_row_offset, plan->num_tokens + 1),
        MOE_ARRAY(plan->token_part_offset, has_parts(plan) ? plan->num_tokens + 1 : 0),
        MOE_ARRAY(plan->count, 2 * (int64_t)plan->devices),
        MOE_ARRAY(plan->reached, reached_words(plan)),
        MOE_ARRAY(plan->next_cell, plan->num_local),
    };
    (plan->hop > 0 ? moe_block_reserve_varying : moe_block_reserve)(&plan->fixed, table,
                                                                    MOE_ARRAYS(table), "plan");
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
        MOE_ARRAY(plan->row_part, has_parts(plan) ? plan->num_rows + 1 : 0),
    };
    moe_block_reserve_varying(&plan->rows, table, MOE_ARRAYS(table), "plan");
}

static void reserve_parts(moe_plan *plan) {
    const moe_block_array table[] = {
        MOE_ARRAY(plan->part_device, plan->num_parts),
        MOE_ARRAY(plan->token_part, plan->num_parts),
    };
    moe_block_reserve_varying(&plan->parts, table, MOE_ARRAYS(table), "plan");
}

/* Does pair i of a token's sorted keys begin a row? Does it begin a part? */
static bool begins_row(const moe_plan *plan, const int64_t *key, int64_t i, int32_t source) {
    return i == 0 || plan->format->begins_row(moe_plan_stop(plan, key_device(key[i]), source),
                                              moe_plan_stop(plan, key_device(key[i - 1]), source));
}
static bool begins_part(const int64_t *key, int64_t i) {
    return i == 0 || key_device(key[i]) != key_device(key[i - 1]);
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

/* Writes and sorts the keys of token t. */
static void make_keys(moe_plan *plan,
                      const moe_placement *placement,
                      const senders *s,
                      int64_t t,
                      int32_t source) {
    int64_t begin = s->offset[t], n = s->offset[t + 1] - begin;
    int64_t number = s->number ? s->number[t] : s->first_token + t;
    for (int64_t i = 0; i < n; i++) {
        int32_t e = s->expert[begin + i];
        plan->key[begin + i] = key_of(moe_placement_device(placement, e, number, source), e, i);
    }
    sort_keys(plan->key + begin, n);
}

/* Pass 1 for the tokens of local device j: sorts the keys of every token, and counts rows and pairs
 * per destination, and rows and parts per token. */
static void count_device(moe_plan *plan,
                         int32_t j,
                         const moe_placement *placement,
                         const senders *s) {
    int64_t *rows = plan->count, *pairs = rows + plan->devices;
    for (int64_t at = s->device_offset[j]; at < s->device_offset[j + 1]; at++) {
        int64_t t = token_at(s, at), n = s->offset[t + 1] - s->offset[t];
        int64_t *key = plan->key + s->offset[t], of_token = 0, parts = 0;
        int32_t source = source_of(plan, s, t, j);
        make_keys(plan, placement, s, t, source);
        for (int64_t i = 0; i < n; i++) {
            int32_t d = moe_plan_stop(plan, key_device(key[i]), source);
            bool begins = begins_row(plan, key, i, source);
            pairs[d]++;
            rows[d] += begins;
            of_token += begins;
            parts += begins_part(key, i);
            plan->reached[d / 64] |= (uint64_t)1 << (d % 64);
        }
        plan->token_row_offset[t + 1] = of_token;
        if (has_parts(plan)) {
            plan->token_part_offset[t + 1] = parts;
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

/* offset[i + 1] holds a count and becomes the sum of the counts up to it. */
static void add_up(int64_t *offset, int64_t n) {
    offset[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        offset[i + 1] += offset[i];
    }
}

/* Pass 2 for the tokens of local device j: writes their rows and pairs, and counts the parts of
 * rows in row_part[row + 1]. */
static void fill_device(moe_plan *plan, int32_t j, const senders *s) {
    int64_t *row_cursor = plan->count, *pair_cursor = row_cursor + plan->devices;
    for (int64_t c = plan->device_cell[j]; c < plan->device_cell[j + 1]; c++) {
        row_cursor[plan->cell[c].to] = plan->cell[c].first_row;
        pair_cursor[plan->cell[c].to] = plan->cell[c].first_pair;
    }
    for (int64_t at = s->device_offset[j]; at < s->device_offset[j + 1]; at++) {
        int64_t t = token_at(s, at), begin = s->offset[t], n = s->offset[t + 1] - begin;
        int64_t listed = plan->token_row_offset[t], r = -1;
        int32_t source = source_of(plan, s, t, j);
        const int64_t *key = plan->key + begin;
        for (int64_t i = 0; i < n; i++) {
            int32_t d = moe_plan_stop(plan, key_device(key[i]), source);
            int64_t p = pair_cursor[d]++;
            if (begins_row(plan, key, i, source)) {
                r = row_cursor[d]++;
                plan->row_token[r] = (int32_t)t;
                plan->row_device[r] = d;
                plan->row_pair[r] = p;
                plan->token_row[listed++] = r;
            }
            if (has_parts(plan)) {
                plan->row_part[r + 1] += begins_part(key, i);
            }
            int64_t selection = begin + key_position(key[i]);
            plan->pair_expert[p] = key_expert(key[i]);
            plan->pair_weight[p] = s->weight[selection];
            plan->pair_selection[p] = selection;
        }
    }
}

/* The parts of all rows, once it is known how many each row has. A row's parts stand in ascending
 * order of devices, and so do a token's rows. */
static void list_parts(moe_plan *plan, const senders *s) {
    reserve_parts(plan);
    add_up(plan->row_part, plan->num_rows);
    for (int64_t t = 0; t < plan->num_tokens; t++) {
        const int64_t *key = plan->key + s->offset[t];
        int64_t listed = plan->token_part_offset[t], i = 0;
        for (int64_t k = plan->token_row_offset[t]; k < plan->token_row_offset[t + 1]; k++) {
            int64_t r = plan->token_row[k];
            for (int64_t part = plan->row_part[r]; part < plan->row_part[r + 1]; part++) {
                plan->part_device[part] = key_device(key[i]);
                plan->token_part[listed++] = part;
                for (i++; i < s->offset[t + 1] - s->offset[t] && !begins_part(key, i); i++) {}
            }
        }
    }
}

/* Builds a plan whose head (mode, hop, devices, ranks, tokens, pairs) is filled in. */
static void build(moe_plan *plan, const moe_placement *placement, const senders *s) {
    MOE_ASSERT(plan->num_tokens <= INT32_MAX);
    MOE_ASSERT(placement->num_experts < (1 << EXPERT_BITS) &&
               placement->devices < (1 << EXPERT_BITS));
    plan->format = moe_row_format_of(plan->mode, plan->hop);
    plan->devices_per_node = placement->devices_per_node;
    plan->num_parts = 0;
    reserve_fixed(plan);
    reserve_pairs(plan);
    reserve_cells(plan);
    plan->device_cell[0] = 0;
    for (int32_t j = 0; j < plan->num_local; j++) {
        count_device(plan, j, placement, s);
    }
    place_cells(plan);
    reserve_rows(plan);
    add_up(plan->token_row_offset, plan->num_tokens);
    if (has_parts(plan)) {
        memset(plan->row_part, 0, (size_t)(plan->num_rows + 1) * sizeof *plan->row_part);
        add_up(plan->token_part_offset, plan->num_tokens);
        plan->num_parts = plan->token_part_offset[plan->num_tokens];
    }
    for (int32_t j = 0; j < plan->num_local; j++) {
        fill_device(plan, j, s);
    }
    plan->row_pair[plan->num_rows] = plan->num_pairs;
    MOE_ASSERT(plan->token_row_offset[plan->num_tokens] == plan->num_rows);
    if (has_parts(plan)) {
        list_parts(plan, s);
    }
}

void moe_plan_build(moe_plan *plan,
                    enum moe_exchange_mode mode,
                    const moe_batch *batch,
                    const moe_placement *placement,
                    int32_t ranks,
                    const moe_routing *routing) {
    MOE_ASSERT(batch->num_local_devices * ranks == batch->devices);
    plan->mode = mode;
    plan->hop = 0;
    plan->devices = batch->devices;
    plan->first_device = batch->first_device;
    plan->num_local = batch->num_local_devices;
    plan->ranks = ranks;
    plan->num_tokens_global = batch->num_tokens_global;
    plan->num_tokens = batch->num_tokens;
    plan->num_pairs = routing->num_selections;
    build(plan, placement,
          &(senders){.device_offset = batch->device_offset,
                     .offset = routing->row_offset,
                     .expert = routing->expert,
                     .weight = routing->weight,
                     .first_token = batch->first_token});
}

void moe_plan_build_second(moe_plan *plan,
                           const moe_plan *first,
                           const moe_placement *placement,
                           const moe_plan_arrived *arrived) {
    plan->mode = first->mode;
    plan->hop = 1;
    plan->devices = first->devices;
    plan->first_device = first->first_device;
    plan->num_local = first->num_local;
    plan->ranks = first->ranks;
    plan->num_tokens_global = first->num_tokens_global;
    plan->num_tokens = arrived->num_rows;
    plan->num_pairs = arrived->num_pairs;
    build(plan, placement,
          &(senders){.device_offset = arrived->device_offset,
                     .order = arrived->order,
                     .offset = arrived->row_pair,
                     .expert = arrived->pair_expert,
                     .weight = arrived->pair_weight,
                     .number = arrived->row_number,
                     .source = arrived->row_source});
}

void moe_plan_free(moe_plan *plan) {
    moe_block_free(&plan->fixed);
    moe_block_free(&plan->cells);
    moe_block_free(&plan->rows);
    moe_block_free(&plan->parts);
    moe_block_free(&plan->pairs);
    *plan = (moe_plan){0};
}
