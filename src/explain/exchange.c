/* exchange.c: what only other ranks know of the token: its places in a pool that spans ranks, and
 * what experts elsewhere computed for it. */
#include <string.h>

#include "capacity/cut.h"
#include "explain/internal.h"

/* --- places in the order of a capacity --- */

typedef struct pool_range { /* global token ids */
    int64_t begin, end;
} pool_range;

static pool_range pool_of(const moe_watched *w) {
    const moe_batch *b = w->context->batch;
    const moe_capacity *c = &w->context->capacity;
    if (c->policy == MOE_CAPACITY_SEQUENCE) {
        int64_t sequence = moe_batch_sequence_of(b, w->token);
        return (pool_range){moe_batch_sequence_begin(b, sequence),
                            moe_batch_sequence_begin(b, sequence + 1)};
    }
    if (c->scope == MOE_CAPACITY_GLOBAL) {
        return (pool_range){0, b->num_tokens_global};
    }
    return (pool_range){moe_batch_token_begin(b->num_tokens_global, b->devices, w->device),
                        moe_batch_token_begin(b->num_tokens_global, b->devices, w->device + 1)};
}

typedef struct pair_order { /* the order of all pairs of this rank, see capacity.h */
    int32_t *group, classes;
    uint64_t *key; /* NULL: position decides */
} pair_order;

static pair_order order_pairs(const moe_watched *w, bool *exempt_token) {
    const moe_capacity *c = &w->context->capacity;
    const moe_routing *r = &w->a->routing;
    bool exempts = c->exempt_sequences > 0;
    uint8_t *exempt = moe_alloc_zero(w->context->batch->num_tokens, 1, "explanation");
    if (exempts) {
        exempts = moe_capacity_exempt(c, w->context->batch, w->context->step, exempt) > 0;
    }
    moe_shape shape = moe_cut_shape(c, exempts, 1);
    pair_order o = {.classes = shape.classes,
                    .group = moe_alloc(r->num_selections, sizeof *o.group, "explanation")};
    if (shape.has_keys) {
        o.key = moe_alloc(r->num_selections, sizeof *o.key, "explanation");
    }
    moe_capacity_order(c, w->context->batch, r, w->layer->placement, exempts ? exempt : NULL,
                       shape.classes, o.group, o.key);
    *exempt_token = exempts && w->here && exempt[w->local];
    moe_free(exempt);
    return o;
}

typedef struct asked { /* a choice of the token whose place all ranks look for */
    int64_t group, expert;
    uint64_t key;
} asked;

/* Whether pair i of the local token t takes its place before the choice, by class, key, token and
 * expert. */
static bool is_before(const moe_watched *w,
                      const pair_order *o,
                      int64_t t,
                      int64_t i,
                      const asked *k) {
    int64_t token = w->context->batch->first_token + t;
    if (o->group[i] != k->group) {
        return o->group[i] < k->group;
    }
    if (o->key && o->key[i] != k->key) {
        return o->key[i] < k->key;
    }
    if (token != w->token) {
        return token < w->token;
    }
    return w->a->routing.expert[i] < k->expert;
}

enum { BEFORE, WANTED, IN_POOL, NUM_COUNTS };

static void count_pairs(const moe_watched *w,
                        const pair_order *o,
                        const asked *k,
                        int64_t count[NUM_COUNTS]) {
    const moe_routing *r = &w->a->routing;
    const moe_batch *b = w->context->batch;
    pool_range pool = pool_of(w);
    for (int64_t t = 0; t < r->num_tokens; t++) {
        if (b->first_token + t < pool.begin || b->first_token + t >= pool.end) {
            continue;
        }
        for (int64_t i = r->row_offset[t]; i < r->row_offset[t + 1]; i++) {
            bool same = o->group[i] / o->classes == k->group / o->classes;
            count[IN_POOL]++;
            count[WANTED] += same;
            count[BEFORE] += same && is_before(w, o, t, i, k);
        }
    }
}

void moe_explain_capacity(const moe_watched *w) {
    const moe_comm *comm = w->context->comm;
    moe_explained_layer *e = w->e;
    if (!w->a->drop.on) {
        return;
    }
    bool exempt;
    pair_order o = order_pairs(w, &exempt);
    int64_t choices = w->here ? e->num_choices : 0;
    moe_comm_bcast(comm, &choices, sizeof choices, w->rank);
    asked *ask = moe_alloc(choices, sizeof *ask, "explanation");
    int64_t *count = moe_alloc_zero(choices * NUM_COUNTS, sizeof *count, "explanation");
    for (int64_t k = 0; w->here && k < choices; k++) {
        int64_t i = w->a->routing.row_offset[w->local] + k;
        ask[k] = (asked){o.group[i], w->a->routing.expert[i], o.key ? o.key[i] : 0};
    }
    moe_comm_bcast(comm, ask, choices * (int64_t)sizeof *ask, w->rank);
    for (int64_t k = 0; k < choices; k++) {
        count_pairs(w, &o, &ask[k], count + k * NUM_COUNTS);
    }
    moe_comm_sum_i64(comm, count, choices * NUM_COUNTS);
    pool_range pool = pool_of(w);
    for (int64_t k = 0; w->here && k < choices; k++) {
        const int64_t *n = count + k * NUM_COUNTS;
        e->choice[k].wanted = n[WANTED];
        e->choice[k].place = n[BEFORE] + 1;
        e->choice[k].budget =
            moe_capacity_pairs(&w->context->capacity, pool.end - pool.begin, n[IN_POOL]);
        e->exempt = exempt;
    }
    moe_free(ask);
    moe_free(count);
    moe_free(o.group);
    moe_free(o.key);
}

/* --- what experts returned --- */

/* Whether row r of the inbox is of the token. A row of a second hop names its token; another one
 * comes from the token's rank. */
static bool is_of_token(const moe_watched *w, const moe_inbox *in, int64_t r, int64_t local) {
    if (in->row_number) {
        return in->row_number[r] == w->token;
    }
    return r >= in->rank_row[w->rank] && r < in->rank_row[w->rank + 1] && in->row_token[r] == local;
}

/* The output of a local expert for the token, in the array where it was computed. */
static const real *computed_output(const moe_watched *w, int64_t local_of_token, int32_t expert) {
    const moe_inbox *in = &w->a->exchange.inbox;
    for (int64_t r = 0; r < in->num_rows; r++) {
        for (int64_t p = in->row_pair[r];
             is_of_token(w, in, r, local_of_token) && p < in->row_pair[r + 1]; p++) {
            if (in->pair_expert[p] == expert) {
                return w->a->buffers.out + in->pair_position[p] * in->hidden;
            }
        }
    }
    MOE_ASSERT(!"a row that was sent is in the inbox");
    return NULL;
}

/* The devices that serve the token's experts [n]; the caller frees them. */
static int32_t *serving_devices(const moe_watched *w, const int32_t *expert, int64_t n) {
    int32_t *device = moe_alloc(n, sizeof *device, "explanation");
    for (int64_t j = 0; j < n; j++) {
        device[j] = moe_explain_device(w, expert[j]);
    }
    return device;
}

real *moe_explain_outputs(const moe_watched *w) {
    const moe_comm *comm = w->context->comm;
    const moe_routing *sent = moe_activations_sent(w->a);
    int64_t h = w->context->config->model.hidden_size;
    int64_t head[2] = {0, w->local};
    int64_t per_rank = w->context->batch->num_local_devices;
    int64_t at = 0;
    if (w->here) {
        head[0] = sent->row_offset[w->local + 1] - sent->row_offset[w->local];
    }
    moe_comm_bcast(comm, head, sizeof head, w->rank);
    int32_t *expert = moe_alloc(head[0], sizeof *expert, "explanation");
    if (w->here && head[0]) {
        memcpy(expert, sent->expert + sent->row_offset[w->local], (size_t)head[0] * sizeof *expert);
    }
    moe_comm_bcast(comm, expert, head[0] * (int64_t)sizeof *expert, w->rank);
    int32_t *device = serving_devices(w, expert, head[0]);

    int64_t *bytes = moe_alloc_zero(comm->size, sizeof *bytes, "explanation");
    real *own = moe_alloc(head[0] * h, sizeof *own, "explanation");
    real *all = moe_alloc(head[0] * h, sizeof *all, "explanation");
    real *output = moe_alloc(head[0] * h, sizeof *output, "explanation");
    for (int64_t j = 0; j < head[0]; j++) {
        int64_t rank = device[j] / per_rank;
        if (rank == comm->rank) {
            memcpy((char *)own + bytes[rank], computed_output(w, head[1], expert[j]),
                   (size_t)h * sizeof(real));
        }
        bytes[rank] += h * (int64_t)sizeof(real);
    }
    moe_comm_allgatherv(comm, own, all, bytes);
    for (int q = 0; q < comm->size; q++) { /* `all` is in the order of the ranks */
        for (int64_t j = 0; j < head[0]; j++) {
            if (device[j] / per_rank == q) {
                memcpy(output + j * h, all + at++ * h, (size_t)h * sizeof(real));
            }
        }
    }
    moe_free(own);
    moe_free(all);
    moe_free(bytes);
    moe_free(expert);
    moe_free(device);
    return output;
}
