/* drop.c: one decision. For each pool: the counts of all its parts, where its budgets end, the keys
 * at that end, who stays. Then the routing that is sent. */
#include "capacity/drop.h"

#include <string.h>

#include "base/status.h"
#include "capacity/internal.h"
#include "router/weights.h"

/* --- one pool --- */

/* Collective. Gathers from all ranks the keys of the pairs in the cells in which the budgets of the
 * global pool end; pairs: this rank's in the pool. key [parts] points into *memory, which the
 * caller gives back. */
static void gather_keys(moe_dropping *w,
                        const moe_shape *s,
                        const moe_cut *cut,
                        moe_parts *parts,
                        int64_t pairs,
                        const uint64_t *own,
                        const uint64_t **key,
                        uint64_t **memory) {
    int64_t *bytes = moe_scratch_take(w->scratch, parts->num, sizeof *bytes, "capacity"), sum = 0;
    for (int q = 0; q < parts->num; q++) {
        bytes[q] = moe_cut_listed(s, cut, parts->count[q]) * (int64_t)sizeof(uint64_t);
        sum += bytes[q];
    }
    int64_t usual = pairs * (int64_t)sizeof(uint64_t); /* more than most steps list */
    *memory = moe_scratch_take_varying(w->scratch, sum > usual ? sum : usual, 1, "capacity");
    for (int64_t q = 0, at = 0; q < parts->num; at += bytes[q++] / (int64_t)sizeof(uint64_t)) {
        key[q] = *memory + at;
    }
    if (sum > 0) {
        MOE_ASSERT(parts->num == w->job->comm->size);
        moe_comm_allgatherv(w->job->comm, own, *memory, bytes);
        w->drop->collectives++;
        w->drop->collective_bytes += bytes[parts->self];
    }
    moe_scratch_give(w->scratch, bytes);
}

static void settle(moe_dropping *w,
                   const moe_shape *s,
                   moe_parts *parts,
                   const moe_cut *cut,
                   const moe_pairs *p,
                   int64_t begin) {
    const uint64_t **key = moe_scratch_take(w->scratch, parts->num, sizeof *key, "capacity");
    /* room for all pairs, as how many keys are listed changes from step to step */
    uint64_t *own = moe_scratch_take(w->scratch, p->count + 1, sizeof *own, "capacity");
    uint64_t *memory = NULL;
    if (s->has_keys) {
        moe_cut_list(s, cut, parts->count[parts->self], p, own);
    }
    key[0] = own;
    if (s->has_keys && parts->num > 1) {
        gather_keys(w, s, cut, parts, p->count, own, key, &memory);
    }
    parts->keys = key;
    moe_cut_settle(s, parts, cut, p, w->drop->kept + begin, w->drop->slot + begin);
    moe_scratch_give(w->scratch, key);
    moe_scratch_give(w->scratch, own);
    moe_scratch_give(w->scratch, memory);
}

/* total [words] = counts of all parts. Returns the number of pairs; *most = those of the busiest
 * target. */
static int64_t add_parts(const moe_shape *s,
                         const moe_parts *parts,
                         int64_t *total,
                         int64_t *most) {
    int64_t sum = 0, cells = moe_shape_cells(s);
    memset(total, 0, (size_t)moe_shape_words(s) * sizeof *total);
    *most = 0;
    for (int32_t target = 0; target < s->targets; target++) {
        int64_t pairs = 0;
        for (int64_t i = target * cells; i < (target + 1) * cells; i++) {
            for (int q = 0; q < parts->num; q++) {
                total[i] += parts->count[q][i];
            }
            pairs += total[i];
        }
        *most = pairs > *most ? pairs : *most;
        sum += pairs;
    }
    return sum;
}

/* Adds what is reported of a pool; of a shared pool its first part does it. */
static void note_pool(moe_dropping *w, const moe_cut *cut, int64_t capacity, bool first_part) {
    for (int32_t target = 0; target < w->targets && first_part; target++) {
        if (cut[target].exempt > capacity) {
            w->drop->exempt_overflow += cut[target].exempt - capacity;
        }
        if (w->job->capacity->pad && cut[target].kept < capacity) {
            w->drop->padding_rows += capacity - cut[target].kept;
        }
    }
}

static void decide_pool(moe_dropping *w,
                        int64_t pool,
                        const moe_shape *s,
                        moe_parts *parts,
                        const moe_pairs *p,
                        int64_t begin) {
    int64_t *total = moe_scratch_take(w->scratch, moe_shape_words(s), sizeof *total, "capacity"),
            most;
    moe_cut *cut = moe_scratch_take(w->scratch, s->targets, sizeof *cut, "capacity");
    int64_t selections = add_parts(s, parts, total, &most);
    int64_t capacity = moe_capacity_pairs(w->job->capacity, w->pool[pool].tokens, selections);
    if (capacity == INT64_MAX) {
        capacity = most;
    }
    if (w->job->capacity->policy != MOE_CAPACITY_SEQUENCE &&
        w->job->capacity->scope == MOE_CAPACITY_GLOBAL) {
        w->drop->capacity = capacity;
    }
    moe_cut_targets(s, total, capacity, cut);
    settle(w, s, parts, cut, p, begin);
    note_pool(w, cut, capacity, parts->self == 0);
    for (int32_t target = 0; target < s->targets && w->room; target++) {
        w->filled[pool * s->targets + target] = cut[target].kept;
        w->room[pool * s->targets + target] =
            capacity > cut[target].kept ? capacity - cut[target].kept : 0;
    }
    moe_scratch_give(w->scratch, total);
    moe_scratch_give(w->scratch, cut);
}

/* --- all pools --- */

static moe_pairs pairs_of(const moe_dropping *w,
                          int64_t pool,
                          const int32_t *group,
                          const uint64_t *key) {
    const moe_routing *r = w->job->routing;
    int64_t begin = r->row_offset[w->pool[pool].begin], end = r->row_offset[w->pool[pool].end];
    return (moe_pairs){end - begin, group + begin, key ? key + begin : NULL};
}

static moe_shape shape_of(const moe_dropping *w, bool exempt) {
    const moe_capacity *c = w->job->capacity;
    bool global = c->policy != MOE_CAPACITY_SEQUENCE && c->scope == MOE_CAPACITY_GLOBAL;
    int64_t share =
        w->job->batch->num_tokens_global / (global ? w->job->comm->size : w->job->batch->devices);
    moe_shape s = moe_cut_shape(c, exempt, share * c->top_k);
    s.scratch = w->scratch;
    return s;
}

static void decide_pools(moe_dropping *w,
                         const moe_shape *s,
                         const int32_t *group,
                         const uint64_t *key) {
    int64_t words = moe_shape_words(s), ends[2] = {0, w->num_pools - 1};
    int64_t *count = moe_scratch_take(w->scratch, 2 * words, sizeof *count, "capacity"),
            *own = moe_scratch_take(w->scratch, words, sizeof *own, "capacity");
    const int64_t **vector =
        moe_scratch_take_zero(w->scratch, w->num_pools, sizeof *vector, "capacity");
    const int64_t **part =
        moe_scratch_take(w->scratch, w->job->comm->size, sizeof *part, "capacity");
    if (w->num_shared > 0) {
        for (int i = 0; i < 2; i++) { /* only the first and the last pool can be shared */
            moe_pairs p = pairs_of(w, ends[i], group, key);
            moe_cut_count(s, &p, count + i * words);
            vector[ends[i]] = count + i * words;
        }
    }
    moe_shared shared = moe_shared_gather(w, words, vector);
    for (int64_t i = 0; i < w->num_pools; i++) {
        moe_pairs p = pairs_of(w, i, group, key);
        moe_parts parts = {.count = part};
        parts.num = moe_shared_parts(w, &shared, w->pool[i].id, part, &parts.self);
        if (parts.num == 0) {
            moe_cut_count(s, &p, own);
            part[0] = own;
            parts.num = 1;
        }
        decide_pool(w, i, s, &parts, &p, w->job->routing->row_offset[w->pool[i].begin]);
    }
    moe_shared_free(&shared);
    moe_scratch_give(w->scratch, count);
    moe_scratch_give(w->scratch, own);
    moe_scratch_give(w->scratch, vector);
    moe_scratch_give(w->scratch, part);
}

/* --- the routing that is sent --- */

/* Moves selection i of `sent` to its place among those of its token, which begin at `begin`:
 * falling score, then index, as routing.h says. */
static void put_in_order(moe_drop *d, int64_t begin, int64_t i) {
    moe_routing *r = &d->sent;
    int32_t expert = r->expert[i];
    double score = r->score[i];
    int64_t selection = d->selection[i];
    real weight = r->weight[i];
    for (; i > begin &&
           (r->score[i - 1] < score || (r->score[i - 1] == score && r->expert[i - 1] > expert));
         i--) {
        r->expert[i] = r->expert[i - 1];
        r->score[i] = r->score[i - 1];
        r->weight[i] = r->weight[i - 1];
        d->selection[i] = d->selection[i - 1];
    }
    r->expert[i] = expert;
    r->score[i] = score;
    r->weight[i] = weight;
    d->selection[i] = selection;
}

/* Gives the experts that serve a token the weights that the router gives to a choice of these. */
static void reweight(const moe_router *router, moe_routing *r, double *weight) {
    for (int64_t t = 0; t < r->num_tokens; t++) {
        int64_t begin = r->row_offset[t], count = r->row_offset[t + 1] - begin;
        moe_weights_fill(router, r->score + begin, (int32_t)count, weight);
        for (int64_t k = 0; k < count; k++) {
            r->weight[begin + k] = (real)weight[k];
        }
    }
}

static int32_t most_choices(const moe_routing *r) {
    int64_t most = 0;
    for (int64_t t = 0; t < r->num_tokens; t++) {
        most = r->row_offset[t + 1] - r->row_offset[t] > most
                   ? r->row_offset[t + 1] - r->row_offset[t]
                   : most;
    }
    return (int32_t)most;
}

/* score, weight [num_selections] of the experts that serve; weight only of those that serve a pair
 * of another. */
static void make_sent(moe_drop *d,
                      const moe_drop_job *job,
                      const double *score,
                      const double *weight) {
    const moe_routing *full = job->routing;
    int32_t most = most_choices(full);
    int64_t n = 0;
    moe_routing_reserve(&d->sent, full->num_tokens, most);
    for (int64_t t = 0; t < full->num_tokens; t++) {
        int64_t begin = d->sent.row_offset[t] = n;
        for (int64_t i = full->row_offset[t]; i < full->row_offset[t + 1]; i++) {
            if (!d->kept[i]) {
                continue;
            }
            d->sent.expert[n] = d->server[i];
            d->sent.score[n] = score[i];
            d->sent.weight[n] = d->server[i] == full->expert[i] ? full->weight[i] : (real)weight[i];
            d->selection[n] = i;
            put_in_order(d, begin, n++);
        }
    }
    d->sent.row_offset[full->num_tokens] = d->sent.num_selections = n;
    if (!d->reweighted) {
        return;
    }
    double *anew = moe_scratch_take(job->batch->scratch, most, sizeof *anew, "capacity");
    reweight(job->router, &d->sent, anew);
    moe_scratch_give(job->batch->scratch, anew);
}

/* --- a decision --- */

static void reserve(moe_drop *d, int64_t pairs) {
    moe_block_array table[] = {
        MOE_ARRAY(d->selection, pairs),
        MOE_ARRAY(d->slot, pairs),
        MOE_ARRAY(d->server, pairs),
        MOE_ARRAY(d->kept, pairs),
    };
    moe_block_reserve_varying(&d->block, table, MOE_ARRAYS(table), "capacity");
    d->exempt_overflow = d->padding_rows = d->collectives = d->collective_bytes = 0;
}

/* What is reported where pools differ in size: the capacity of the largest, with K pairs a token.
 */
static int64_t nominal_capacity(const moe_drop_job *job) {
    int64_t tokens = job->capacity->policy == MOE_CAPACITY_SEQUENCE
                         ? job->batch->most_routed_of_sequence
                         : job->batch->most_routed_of_device;
    return moe_capacity_pairs(job->capacity, tokens, tokens * job->capacity->top_k);
}

/* Who stays: finds the exempt tokens and the order of the pairs, then decides pool by pool. */
static void decide(moe_dropping *w) {
    const moe_drop_job *job = w->job;
    int64_t n = job->routing->num_selections;
    bool some = job->capacity->exempt_sequences > 0;
    uint8_t *exempt =
        moe_scratch_take(w->scratch, some ? job->batch->num_tokens + 1 : 0, 1, "capacity");
    int32_t *group = moe_scratch_take(w->scratch, n, sizeof *group, "capacity");
    moe_shape s = shape_of(w, some);
    uint64_t *key =
        s.has_keys ? moe_scratch_take(w->scratch, n + 1, sizeof *key, "capacity") : NULL;
    if (some) {
        moe_capacity_exempt(job->capacity, job->batch, job->step, exempt);
    }
    moe_capacity_order(job->capacity, job->batch, job->routing, job->placement, exempt, s.classes,
                       group, key);
    decide_pools(w, &s, group, key);
    moe_scratch_give(w->scratch, exempt);
    moe_scratch_give(w->scratch, group);
    moe_scratch_give(w->scratch, key);
}

void moe_drop_decide(moe_drop *d, const moe_drop_job *job) {
    const moe_capacity *c = job->capacity;
    const moe_routing *r = job->routing;
    bool next = c->overflow == MOE_OVERFLOW_NEXT_CHOICE;
    moe_dropping w = {
        .job = job, .drop = d, .scratch = job->batch->scratch, .targets = moe_capacity_targets(c)};
    MOE_ASSERT(c->policy != MOE_CAPACITY_NONE);
    d->on = true;
    d->moves = next;
    d->reweighted = c->renormalize;
    d->capacity = nominal_capacity(job);
    reserve(d, r->num_selections);
    w.num_pools = moe_capacity_pools(c, job->batch, &w.pool);
    w.num_shared = moe_shared_pools(job, job->comm->rank, w.shared_id);
    w.score = moe_scratch_take(w.scratch, r->num_selections, sizeof *w.score, "capacity");
    w.weight =
        next ? moe_scratch_take(w.scratch, r->num_selections, sizeof *w.weight, "capacity") : NULL;
    w.room =
        next ? moe_scratch_take(w.scratch, w.num_pools * w.targets + 1, sizeof *w.room, "capacity")
             : NULL;
    w.filled = next ? moe_scratch_take(w.scratch, w.num_pools * w.targets + 1, sizeof *w.filled,
                                       "capacity")
                    : NULL;
    decide(&w);
    for (int64_t i = 0; i < r->num_selections; i++) {
        d->server[i] = d->kept[i] ? r->expert[i] : -1;
        w.score[i] = r->score[i];
    }
    if (next) {
        moe_next_choice_give(&w);
    }
    make_sent(d, job, w.score, w.weight);
    moe_scratch_give(w.scratch, w.pool);
    moe_scratch_give(w.scratch, w.score);
    moe_scratch_give(w.scratch, w.weight);
    moe_scratch_give(w.scratch, w.room);
    moe_scratch_give(w.scratch, w.filled);
}

void moe_drop_free(moe_drop *d) {
    moe_block_free(&d->block);
    moe_routing_free(&d->sent);
    *d = (moe_drop){0};
}
