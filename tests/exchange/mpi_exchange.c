/* mpi_exchange.c: dispatch and combine of ragged random routings against a naive serial reference,
 * bit for bit. Every rank computes the reference from keyed global data: what its tokens must get
 * back, and what must lie in its inbox. All exchange modes and payloads (whose conversions
 * unit_payload.c checks), devices folded onto ranks, several nodes, ranks without tokens, scattered
 * experts, and counts beyond what one MPI call takes. All of it by MPI_Alltoallv, through shared
 * memory, and with ranks that pretend to be on two hosts: through memory inside, by Alltoallv
 * between. And in chunks: who travels in which, what each of them brings, and how long it took.
 *
 * ctest: f64 timeout=120 */
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "check.h"
#include "exchange/exchange.h"
#include "exchange/plan.h"
#include "world/comm.h"
#include "world/window.h"

static const struct {
    enum moe_exchange_mode mode;
    bool node_sum;
    const char *name;
} modes[] = {{MOE_EXCHANGE_SELECTION, false, "selection"},
             {MOE_EXCHANGE_TOKEN, false, "token"},
             {MOE_EXCHANGE_TWO_LEVEL, true, "two_level"},
             {MOE_EXCHANGE_TWO_LEVEL, false, "two_level without node_sum"}};
enum { NUM_MODES = sizeof modes / sizeof modes[0], MAX_K = 6 };

static const struct {
    moe_payload_format dispatched, combined;
} payloads[] = {
    {{MOE_PAYLOAD_FP32, 0}, {MOE_PAYLOAD_FP32, 0}},
    {{MOE_PAYLOAD_BF16, 0}, {MOE_PAYLOAD_FP32, 0}},
    {{MOE_PAYLOAD_FP8, MOE_FP8_SCALE_FP32}, {MOE_PAYLOAD_BF16, 0}},
    {{MOE_PAYLOAD_FP8, MOE_FP8_SCALE_UE8M0}, {MOE_PAYLOAD_FP32, 0}},
    {{MOE_PAYLOAD_FP32, 0}, {MOE_PAYLOAD_BF16, 0}},
};
enum { NUM_PAYLOADS = sizeof payloads / sizeof payloads[0], MAX_H = 200 };

typedef struct problem { /* everything is a function of these numbers */
    uint64_t seed;
    int64_t tokens, hidden;
    int32_t devices, experts, k;
    bool scattered, crowded; /* experts dealt out at random; all tokens want the first device's
                                experts */
    enum moe_exchange_mode mode;
    int32_t per_node; /* devices of a node */
    bool node_sum;
    moe_payload_format dispatched, combined;
    int32_t chunks;
} problem;

/* The vector after its way in a format. */
static void travel(moe_payload_format f, int64_t n, real *x) {
    unsigned char row[8 * MAX_H];
    moe_payload_encode(f, x, n, row);
    moe_payload_decode(f, row, n, x);
}

static uint64_t bits(const problem *p, uint64_t a, uint64_t b) {
    return moe_rng_bits((moe_rng){p->seed, MOE_RNG_TEST}, a, b, 0);
}

/* Experts of global token g in the order of their choice: distinct, 0 .. k of them. */
static int32_t choose(const problem *p, int64_t g, int32_t *expert) {
    int32_t count = (int32_t)(bits(p, 1, (uint64_t)g) % (uint64_t)(p->k + 1)), chosen = 0;
    int32_t range = p->crowded ? p->experts / p->devices : p->experts;
    if (count > range) {
        count = range;
    }
    for (uint64_t draw = 0; chosen < count; draw++) {
        int32_t e = (int32_t)(bits(p, 1000 + (uint64_t)g, draw) % (uint64_t)range);
        bool again = false;
        for (int32_t i = 0; i < chosen; i++) {
            again = again || expert[i] == e;
        }
        if (!again) {
            expert[chosen++] = e;
        }
    }
    return chosen;
}

static real unit(uint64_t word) {
    return (real)((double)(word >> 40) / (1 << 24) * 2 - 1);
}
static real weight_of(const problem *p, int64_t g, int32_t e) {
    return unit(bits(p, 2000000 + (uint64_t)g, (uint64_t)e));
}
static real x_of(const problem *p, int64_t g, int64_t i) {
    return unit(bits(p, 4000000 + (uint64_t)g, (uint64_t)i));
}

/* What expert e makes of one number. It is not inlined, so that every caller gets the same
 * roundings. */
static __attribute__((noinline)) real contribution(real weight, int32_t e, real x) {
    return weight * ((real)(e + 1) * x);
}

static void make_placement(const problem *p, moe_placement *placement) {
    moe_placement_block(placement, p->experts, p->devices);
    placement->devices_per_node = p->per_node;
    /* exchanges the places of e and of a random expert below */
    for (int32_t e = p->experts - 1; p->scattered && e > 0; e--) {
        int32_t other = (int32_t)(bits(p, 3, (uint64_t)e) % (uint64_t)(e + 1));
        int32_t device = placement->device[e];
        int32_t slot = placement->slot[e];
        placement->device[e] = placement->device[other];
        placement->slot[e] = placement->slot[other];
        placement->device[other] = device;
        placement->slot[other] = slot;
    }
    for (int32_t e = 0; e < p->experts; e++) {
        placement
            ->expert_at[placement->device[e] * placement->slots_per_device + placement->slot[e]] =
            e;
    }
}

static void make_routing(const problem *p, const moe_batch *batch, moe_routing *routing) {
    moe_routing_reserve(routing, batch->num_tokens, MAX_K);
    int64_t n = 0;
    for (int64_t t = 0; t < batch->num_tokens; t++) {
        int32_t expert[MAX_K], count = choose(p, batch->first_token + t, expert);
        routing->row_offset[t] = n;
        for (int32_t i = 0; i < count; i++, n++) {
            routing->expert[n] = expert[i];
            routing->weight[n] = weight_of(p, batch->first_token + t, expert[i]);
        }
    }
    routing->row_offset[batch->num_tokens] = routing->num_selections = n;
}

/* x of global token g as it arrives in a format. */
static void arriving_x(const problem *p, moe_payload_format f, int64_t g, real *x) {
    for (int64_t i = 0; i < p->hidden; i++) {
        x[i] = x_of(p, g, i);
    }
    travel(f, p->hidden, x);
}

/* sum += part; the first part is the sum. */
static void accumulate(const problem *p, real *sum, const real *part, bool *any) {
    for (int64_t i = 0; i < p->hidden; i++) {
        sum[i] = *any ? sum[i] + part[i] : part[i];
    }
    *any = true;
}

/* What device d returns of global token g: the sum over its experts, ascending. The sum travels,
 * or in mode selection each of its terms. Returns whether there is anything. */
static bool device_y(const problem *p,
                     const moe_placement *placement,
                     int64_t g,
                     int32_t d,
                     const bool *wanted,
                     const real *x,
                     real *sum) {
    bool any = false;
    for (int32_t e = 0; e < p->experts; e++) {
        real part[MAX_H];
        if (!wanted[e] || placement->device[e] != d) {
            continue;
        }
        for (int64_t i = 0; i < p->hidden; i++) {
            part[i] = contribution(weight_of(p, g, e), e, x[i]);
        }
        if (p->mode == MOE_EXCHANGE_SELECTION) {
            travel(p->combined, p->hidden, part);
        }
        accumulate(p, sum, part, &any);
    }
    if (any && p->mode != MOE_EXCHANGE_SELECTION) {
        travel(p->combined, p->hidden, sum);
    }
    return any;
}

/* y of global token g: experts ascending inside a device, devices of a node ascending, nodes
 * ascending. */
static void reference_y(const problem *p,
                        const moe_placement *placement,
                        int32_t devices_per_node,
                        int64_t g,
                        real *y) {
    int32_t expert[MAX_K], count = choose(p, g, expert);
    bool wanted[256] = {false}, any = false;
    real x[MAX_H];
    arriving_x(p, p->dispatched, g, x);
    for (int32_t c = 0; c < count; c++) {
        wanted[expert[c]] = true;
    }
    memset(y, 0, (size_t)p->hidden * sizeof *y);
    for (int32_t node = 0; node * devices_per_node < p->devices; node++) {
        real node_sum[MAX_H], part[MAX_H];
        bool in_node = false;
        for (int32_t d = node * devices_per_node;
             d < (node + 1) * devices_per_node && d < p->devices; d++) {
            if (device_y(p, placement, g, d, wanted, x, part)) {
                accumulate(p, node_sum, part, &in_node);
            }
        }
        if (in_node) {
            if (p->mode == MOE_EXCHANGE_TWO_LEVEL && p->node_sum) {
                travel(p->combined, p->hidden, node_sum);
            }
            accumulate(p, y, node_sum, &any);
        }
    }
}

/* Does what the experts would do: returns results [inbox rows,H]. */
static real *stand_in(const moe_inbox *in) {
    real *results = moe_alloc_zero(in->num_rows * in->hidden + 1, sizeof *results, "test");
    for (int64_t r = 0; r < in->num_rows; r++) {
        const real *x = moe_inbox_row(in, r);
        for (int64_t i = 0; i < in->hidden; i++) {
            int64_t first = in->row_pair[r];
            real sum = contribution(in->pair_weight[first], in->pair_expert[first], x[i]);
            for (int64_t q = first + 1; q < in->row_pair[r + 1]; q++) {
                sum += contribution(in->pair_weight[q], in->pair_expert[q], x[i]);
            }
            results[moe_inbox_result(in, r) * in->hidden + i] = sum;
        }
    }
    return results;
}

/* --- the inbox --- */

/* Where the walk through an inbox stands, and what was wrong on the way. */
typedef struct walk {
    int64_t row, pair, wrong_rows, wrong_pairs, wrong_x;
    int64_t cell;  /* device pairs met so far */
    bool gradient; /* the vectors of backward are looked at */
} walk;

static void walk_row(const problem *p,
                     const moe_inbox *in,
                     walk *w,
                     int64_t g,
                     int32_t source,
                     int64_t source_token,
                     int32_t local_device,
                     const int32_t *expert,
                     int32_t count) {
    if (w->row >= in->num_rows) {
        w->wrong_rows++;
        return;
    }
    bool right = in->row_token[w->row] == source_token && in->row_device[w->row] == local_device &&
                 in->row_pair[w->row] == w->pair && in->row_pair[w->row + 1] == w->pair + count;
    right = right && (!in->row_source || in->row_source[w->row] == source);
    w->wrong_rows += !right;
    if (right) {
        for (int32_t c = 0; c < count; c++) {
            int64_t q = w->pair + c;
            real weight = weight_of(p, g, expert[c]);
            w->wrong_pairs += in->pair_expert[q] != expert[c] || in->pair_row[q] != w->row ||
                              memcmp(&in->pair_weight[q], &weight, sizeof weight) != 0;
        }
        real x[MAX_H];
        arriving_x(p, w->gradient ? p->combined : p->dispatched, g, x);
        const real *found = (w->gradient ? &in->dy : &in->x)->row[w->row];
        w->wrong_x += memcmp(found, x, (size_t)p->hidden * sizeof *x) != 0;
    }
    w->row++;
    w->pair += count;
}

/* Experts of token g on device d, ascending. */
static int32_t experts_on(const problem *p,
                          const moe_placement *placement,
                          int64_t g,
                          int32_t d,
                          int32_t *on) {
    int32_t expert[MAX_K], count = choose(p, g, expert), found = 0;
    for (int32_t e = 0; e < p->experts; e++) {
        for (int32_t c = 0; c < count; c++) {
            if (expert[c] == e && placement->device[e] == d) {
                on[found++] = e;
            }
        }
    }
    return found;
}

/* Rows that source device s has for local device j, in order. */
static void walk_source(const problem *p,
                        const moe_comm *comm,
                        const moe_placement *placement,
                        const moe_inbox *in,
                        int32_t s,
                        int32_t j,
                        walk *w) {
    int32_t per_rank = p->devices / comm->size, on[MAX_K];
    int64_t first_of_rank = moe_batch_token_begin(p->tokens, p->devices, s / per_rank * per_rank);
    for (int64_t g = moe_batch_token_begin(p->tokens, p->devices, s);
         g < moe_batch_token_begin(p->tokens, p->devices, s + 1); g++) {
        int32_t count = experts_on(p, placement, g, comm->rank * per_rank + j, on),
                step = p->mode == MOE_EXCHANGE_SELECTION ? 1 : count;
        for (int32_t c = 0; c < count; c += step) {
            walk_row(p, in, w, g, s, g - first_of_rank, j, on + c, step);
        }
    }
}

/* The device that hands a row of device s to device d: itself, or the one of d's node with its
 * place there. */
static int32_t sender_of(const problem *p, int32_t s, int32_t d) {
    return p->mode == MOE_EXCHANGE_TWO_LEVEL ? d / p->per_node * p->per_node + s % p->per_node : s;
}

/* Rows that `sender` hands to local device j, in order. */
static void walk_block(const problem *p,
                       const moe_comm *comm,
                       const moe_placement *placement,
                       const moe_inbox *in,
                       int32_t sender,
                       int32_t j,
                       walk *w) {
    int32_t to = p->devices / comm->size * comm->rank + j;
    int64_t row = w->row;
    for (int32_t s = 0; s < p->devices; s++) {
        if (sender_of(p, s, to) == sender) {
            walk_source(p, comm, placement, in, s, j, w);
        }
    }
    if (w->row > row) {
        CHECK(w->cell < in->num_cells);
        CHECK(in->cell[w->cell].row == sender && in->cell[w->cell].column == to);
        CHECK_EQ(in->cell[w->cell].count, w->row - row);
        w->cell++;
    }
}

static void check_inbox(const problem *p,
                        const moe_comm *comm,
                        const moe_placement *placement,
                        bool gradient,
                        const moe_inbox *in) {
    int32_t per_rank = p->devices / comm->size;
    walk w = {.gradient = gradient};
    for (int32_t s = 0; s < p->devices; s++) {
        if (s % per_rank == 0) {
            CHECK_EQ(in->rank_row[s / per_rank], w.row);
        }
        for (int32_t j = 0; j < per_rank; j++) {
            walk_block(p, comm, placement, in, s, j, &w);
        }
    }
    CHECK_EQ(in->rank_row[comm->size], w.row);
    CHECK_EQ(in->num_rows, w.row);
    CHECK_EQ(in->num_pairs, w.pair);
    CHECK_EQ(in->num_cells, w.cell);
    CHECK_MSG(w.wrong_rows == 0 && w.wrong_pairs == 0 && w.wrong_x == 0,
              "seed %llu: %lld rows, %lld pairs, %lld vectors are wrong",
              (unsigned long long)p->seed, (long long)w.wrong_rows, (long long)w.wrong_pairs,
              (long long)w.wrong_x);
}

/* The chunk of global token g: the i-th of the T tokens of its device is in chunk i c / T. */
static int32_t chunk_of(const problem *p, int64_t g) {
    int32_t d = 0;
    while (moe_batch_token_begin(p->tokens, p->devices, d + 1) <= g) {
        d++;
    }
    int64_t begin = moe_batch_token_begin(p->tokens, p->devices, d),
            end = moe_batch_token_begin(p->tokens, p->devices, d + 1);
    return (int32_t)((g - begin) * p->chunks / (end - begin));
}

/* Pairs by expert and chunk: all of them, once, and in the order of global tokens, which is that of
 * (source device, token). */
static void check_groups(const problem *p,
                         const moe_comm *comm,
                         const moe_placement *placement,
                         const moe_inbox *in) {
    int64_t wrong = 0, slots = (int64_t)in->num_local * in->slots;
    CHECK_EQ(in->slot_offset[0], 0);
    CHECK_EQ(in->slot_offset[slots], in->num_pairs);
    for (int64_t s = 0; s < slots; s++) {
        int32_t e = placement->expert_at[(int64_t)comm->rank * slots + s];
        int64_t at = in->slot_offset[s];
        for (int64_t i = 0; i < p->tokens * p->chunks; i++) {
            const int64_t g = i % p->tokens, chunk = i / p->tokens;
            int32_t expert[MAX_K], count = choose(p, g, expert);
            if (g == 0) {
                wrong += in->group_offset[s * p->chunks + chunk] != at;
            }
            for (int32_t c = 0; c < count; c++) {
                if (expert[c] != e || chunk_of(p, g) != chunk) {
                    continue;
                }
                int64_t pair = at < in->slot_offset[s + 1] ? in->slot_pair[at] : -1;
                real weight = weight_of(p, g, e);
                wrong += pair < 0 || pair >= in->num_pairs || in->pair_expert[pair] != e ||
                         in->pair_position[pair] != at ||
                         memcmp(&in->pair_weight[pair], &weight, sizeof weight) != 0;
                at++;
            }
        }
        wrong += at != in->slot_offset[s + 1];
    }
    CHECK_MSG(wrong == 0, "seed %llu: %lld pairs are in the wrong place of their expert",
              (unsigned long long)p->seed, (long long)wrong);
}

/* Rows of the first of two hops: one for each node of each token of this rank. */
static void check_first_hop(const problem *p,
                            const moe_placement *placement,
                            const moe_batch *batch,
                            const moe_plan *plan) {
    int64_t rows = 0, parts = 0, on_device[MAX_K];
    for (int64_t t = 0; t < batch->num_tokens; t++) {
        int32_t expert[MAX_K], count = choose(p, batch->first_token + t, expert);
        for (int32_t c = 0; c < count; c++) {
            bool new_device = true, new_node = true;
            on_device[c] = placement->device[expert[c]];
            for (int32_t before = 0; before < c; before++) {
                new_device = new_device && on_device[before] != on_device[c];
                new_node =
                    new_node && on_device[before] / p->per_node != on_device[c] / p->per_node;
            }
            rows += new_node;
            parts += new_device;
        }
    }
    CHECK_EQ(plan->num_rows, rows);
    CHECK_EQ(plan->num_parts, parts);
}

/* --- there and back --- */

/* Used again from problem to problem, as the program does from step to step. */
typedef struct machine {
    moe_plan plan;
    moe_exchange exchange;
    moe_routing routing;
} machine;

static void check_y(const problem *p,
                    const moe_placement *placement,
                    const moe_batch *batch,
                    int32_t devices_per_node,
                    const real *y,
                    const char *mode) {
    int64_t wrong = 0;
    for (int64_t t = 0; t < batch->num_tokens; t++) {
        real expected[MAX_H];
        reference_y(p, placement, devices_per_node, batch->first_token + t, expected);
        for (int64_t i = 0; i < p->hidden; i++) {
            wrong += memcmp(&y[t * p->hidden + i], &expected[i], sizeof expected[i]) != 0;
        }
    }
    CHECK_MSG(wrong == 0,
              "mode %s, payloads %d %d, seed %llu, T %lld, H %lld, D %d, N %d, %d devices per "
              "node: %lld of %lld "
              "numbers differ",
              mode, p->dispatched.type, p->combined.type, (unsigned long long)p->seed,
              (long long)p->tokens, (long long)p->hidden, p->devices, p->experts, devices_per_node,
              (long long)wrong, (long long)(batch->num_tokens * p->hidden));
}

/* The rows that cross ranks, chunk by chunk: those of the tokens of the chunk, and all of them in
 * the end. */
static void check_flights(const problem *p,
                          const moe_comm *comm,
                          const moe_batch *batch,
                          enum moe_way way,
                          const machine *here) {
    const moe_exchange *e = &here->exchange;
    const moe_plan *plan = &here->plan;
    int64_t expected[8] = {0}, sent = 0, received = 0;
    for (int64_t r = 0; r < plan->num_rows; r++) {
        if (plan->row_device[r] / plan->num_local != comm->rank) {
            expected[chunk_of(p, batch->first_token + plan->row_token[r])]++;
        }
    }
    for (int32_t j = 0; j < p->chunks; j++) {
        const moe_flight *f = moe_exchange_flight(e, way, j);
        CHECK_EQ(way == MOE_WAY_THERE ? f->sent : f->received, expected[j]);
        CHECK(f->begin <= f->end);
        sent += f->sent;
        received += f->received;
    }
    const int64_t own = plan->rank_row[comm->rank + 1] - plan->rank_row[comm->rank],
                  out = plan->num_rows - own, in = e->inbox.num_rows - own;
    CHECK_EQ(sent, way == MOE_WAY_THERE ? out : in);
    CHECK_EQ(received, way == MOE_WAY_THERE ? in : out);
}

/* Nothing is waited for that is not on its way. */
static void check_overlap(const moe_comm *comm, const moe_overlap *o) {
    CHECK(o->waited >= 0);
    CHECK(o->waited <= o->in_flight * (1 + 1e-9));
    CHECK((o->in_flight > 0) == (comm->size > 1));
}

/* All chunks of what is sent to the experts arrive. */
static void receive_all(const problem *p, machine *here) {
    for (int32_t j = 0; j < p->chunks; j++) {
        moe_exchange_receive(&here->exchange, &here->plan, j);
        moe_exchange_progress(&here->exchange);
    }
}

static void check_way(const problem *p,
                      const moe_comm *comm,
                      int m,
                      int64_t most_pairs,
                      machine *here) {
    moe_batch batch;
    moe_placement placement;
    moe_batch_layout(&batch, p->tokens, 0, p->devices, comm->rank, comm->size);
    make_placement(p, &placement);
    make_routing(p, &batch, &here->routing);
    real *x = moe_alloc(batch.num_tokens * p->hidden, sizeof *x, "test"),
         *y = moe_alloc(batch.num_tokens * p->hidden, sizeof *y, "test");
    for (int64_t i = 0; i < batch.num_tokens * p->hidden; i++) {
        x[i] = x_of(p, batch.first_token + i / p->hidden, i % p->hidden);
    }
    moe_plan_build(&here->plan, modes[m].mode, &batch, &placement, comm->size, &here->routing);
    const char *wrong = moe_plan_check(&here->plan, &placement, &here->routing);
    CHECK_MSG(wrong == NULL, "%s", wrong);
    here->exchange.dispatched = p->dispatched;
    here->exchange.combined = p->combined;
    here->exchange.node_sum = p->node_sum;
    here->exchange.chunks = p->chunks;
    if (p->mode == MOE_EXCHANGE_TWO_LEVEL) {
        check_first_hop(p, &placement, &batch, &here->plan);
    }
    moe_exchange_dispatch(&here->exchange, comm, &here->plan, &placement, x, p->hidden, most_pairs);
    receive_all(p, here);
    check_inbox(p, comm, &placement, false, &here->exchange.inbox);
    moe_exchange_dispatch_gradient(&here->exchange, &here->plan, x);
    receive_all(p, here);
    check_inbox(p, comm, &placement, true, &here->exchange.inbox);
    check_groups(p, comm, &placement, &here->exchange.inbox);
    real *results = stand_in(&here->exchange.inbox);
    bool fixed = p->mode == MOE_EXCHANGE_TWO_LEVEL;
    for (int32_t per_node = fixed ? p->per_node : 1; per_node <= (fixed ? p->per_node : p->devices);
         per_node *= 2) {
        if (y) {
            memset(y, 0x7f, (size_t)(batch.num_tokens * p->hidden) * sizeof *y);
        }
        for (int32_t j = 0; j < p->chunks; j++) {
            moe_exchange_return(&here->exchange, j, results);
            moe_exchange_progress(&here->exchange);
        }
        moe_exchange_combine(&here->exchange, &here->plan, results, per_node, y);
        check_y(p, &placement, &batch, per_node, y, modes[m].name);
    }
    if (p->chunks > 1) {
        check_flights(p, comm, &batch, MOE_WAY_THERE, here);
        check_flights(p, comm, &batch, MOE_WAY_BACK, here);
        check_overlap(comm, &here->exchange.air.seconds);
    }
    moe_free(x);
    moe_free(y);
    moe_free(results);
    moe_placement_free(&placement);
    moe_batch_free(&batch);
}

/* With two hops the way depends on the devices of a node: `turn` chooses among those that divide D.
 */
static void check_mode(problem *p,
                       const moe_comm *comm,
                       int m,
                       int turn,
                       int64_t most_pairs,
                       machine *here) {
    p->mode = modes[m].mode;
    p->node_sum = modes[m].node_sum;
    p->per_node = 0;
    for (int left = turn % p->devices; left >= 0;) {
        p->per_node = p->per_node % p->devices + 1;
        left -= p->devices % p->per_node == 0;
    }
    check_way(p, comm, m, most_pairs, here);
}

/* Sizes and metadata go in one block where it is small and one call takes it; in two calls where
 * more pairs are possible; and in rounds. */
static const struct {
    int64_t max_count, more_pairs;
} announcements[] = {{INT64_C(0x7fffffff), 0}, {INT64_C(0x7fffffff), 1 << 20}, {5, 0}};
enum { IN_BLOCK, NUM_ANNOUNCEMENTS = sizeof announcements / sizeof announcements[0] };

static void check_announcement(const problem *p, const moe_comm *comm, int how, machine *here) {
    const moe_exchange *e = &here->exchange;
    const bool hops = p->mode == MOE_EXCHANGE_TWO_LEVEL;
    const int64_t most = p->tokens * p->k * 16; /* bytes, with 4 words a pair at most, and a head */
    if (how != IN_BLOCK || hops || e->host || comm->size == 1) {
        CHECK_EQ(e->block_words, 0);
    } else if (comm->size * (most + 64) < 8192) {
        CHECK(p->tokens == 0 || e->block_words >= 6);
    }
}

/* How rows travel: the ranks that share memory. */
static void check_problem(problem *p, moe_comm comm, moe_host *host, machine *here) {
    for (int c = 0; c <= NUM_PAYLOADS; c++) { /* the first payload in two ways */
        const int payload = c == 0 ? 0 : c - 1, how = (c + (int)p->seed) % NUM_ANNOUNCEMENTS;
        comm.max_count = announcements[how].max_count;
        here->exchange.host = host;
        p->dispatched = payloads[payload].dispatched;
        p->combined = payloads[payload].combined;
        for (int m = 0; m < NUM_MODES; m++) {
            check_mode(p, &comm, m, 1 + c + (int)p->seed,
                       p->tokens * (p->k + announcements[how].more_pairs), here);
            check_announcement(p, &comm, how, here);
        }
    }
}

/* In chunks, of which some are empty, by MPI_Ialltoallv or in rounds. */
static void check_chunks(problem *p, moe_comm comm, machine *here) {
    static const int32_t chunks[] = {2, 3, 7};
    for (int c = 0; c <= NUM_PAYLOADS; c++) {
        comm.max_count = c == NUM_PAYLOADS ? 5 : INT64_C(0x7fffffff);
        p->chunks = chunks[(c + (int)p->seed) % 3];
        p->dispatched = payloads[c % NUM_PAYLOADS].dispatched;
        p->combined = payloads[c % NUM_PAYLOADS].combined;
        for (int m = 0; m < NUM_MODES; m++) {
            if (modes[m].mode != MOE_EXCHANGE_TWO_LEVEL) {
                check_mode(p, &comm, m, 1 + c + (int)p->seed, p->tokens * p->k, here);
            }
        }
    }
    p->chunks = 1;
}

/* More pairs in the global batch than an int counts: all ranks take the way of several rounds,
 * whatever one rank holds. */
static void check_beyond_int(problem *p, const moe_comm *comm, machine *here) {
    for (int m = 0; m < NUM_MODES; m++) {
        check_mode(p, comm, m, 1, INT64_C(3) << 32, here);
    }
}

/* Ranks do not wait for each other between exchanges here: rank 0 is slow where it reads what
 * landed, so that a row which comes too early would be seen. */
static void check_late_reader(const moe_comm *comm, moe_host *host, machine *here) {
    problem p = {.seed = 77,
                 .tokens = 40,
                 .hidden = 16,
                 .devices = comm->size,
                 .experts = 2 * comm->size,
                 .k = 2,
                 .mode = MOE_EXCHANGE_TOKEN,
                 .per_node = 1,
                 .chunks = 1};
    moe_batch batch;
    moe_placement placement;
    moe_batch_layout(&batch, p.tokens, 0, p.devices, comm->rank, comm->size);
    make_placement(&p, &placement);
    make_routing(&p, &batch, &here->routing);
    moe_plan_build(&here->plan, p.mode, &batch, &placement, comm->size, &here->routing);
    moe_exchange *e = &here->exchange;
    e->host = host;
    e->chunks = 1;
    e->dispatched = e->combined = (moe_payload_format){MOE_PAYLOAD_FP32, 0};
    real *x = moe_alloc(batch.num_tokens * p.hidden + 1, sizeof *x, "test");
    for (int round = 1; round <= 6; round++) {
        for (int64_t i = 0; i < batch.num_tokens * p.hidden; i++) {
            x[i] = (real)round;
        }
        moe_exchange_dispatch(e, comm, &here->plan, &placement, x, p.hidden, p.tokens * p.k);
        for (int again = 0; again < 2; again++) {
            const bool gradient = again == 1;
            if (gradient) {
                moe_exchange_dispatch_gradient(e, &here->plan, x);
            }
            usleep(comm->rank == 0 ? 2000 : 0);
            int64_t wrong = 0;
            for (int64_t r = 0; r < e->inbox.num_rows; r++) {
                const real *row = (gradient ? &e->inbox.dy : &e->inbox.x)->row[r];
                wrong += row[0] != (real)round || row[p.hidden - 1] != (real)round;
            }
            CHECK_EQ(wrong, 0);
        }
    }
    moe_free(x);
    moe_placement_free(&placement);
    moe_batch_free(&batch);
}

static void free_machine(machine *m) {
    moe_plan_free(&m->plan);
    moe_exchange_free(&m->exchange);
    moe_routing_free(&m->routing);
}

int main(int argc, char **argv) {
    static const int64_t hidden[] = {1, 5, MAX_H};
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    int32_t least = comm.size == 3 ? 6 : 8;
    MPI_Comm half;
    MPI_Comm_split(comm.comm, comm.rank >= (comm.size + 1) / 2, comm.rank, &half);
    moe_host *two_hosts = moe_host_new(&comm, half);
    moe_host *const hosts[] = {NULL, comm.host, two_hosts};
    enum { NUM_HOSTS = sizeof hosts / sizeof hosts[0] };
    machine together[NUM_HOSTS] = {0};
    for (uint64_t seed = 1; seed <= 9; seed++) {
        int32_t devices = seed % 3 == 0 ? 2 * comm.size : seed % 3 == 1 ? least : comm.size;
        static const int64_t tokens[] = {61, 1, 3, 0, 24, 40, 7, 90, 5};
        problem p = {.seed = seed,
                     .tokens = tokens[seed - 1],
                     .hidden = hidden[seed % 3],
                     .devices = devices,
                     .experts = devices * (int32_t)(1 + seed % 4),
                     .k = (int32_t)(1 + seed % MAX_K),
                     .scattered = seed % 2 == 0,
                     .crowded = seed == 5,
                     .chunks = 1};
        if (p.k > p.experts) {
            p.k = p.experts;
        }
        for (int h = 0; h < NUM_HOSTS; h++) {
            machine alone = {0};
            RUN(check_problem, &p, comm, hosts[h], &alone);
            RUN(check_problem, &p, comm, hosts[h], &together[h]);
            if (hosts[h] == NULL) {
                RUN(check_chunks, &p, comm, &together[h]);
            }
            if (seed == 8) {
                RUN(check_beyond_int, &p, &comm, &together[h]);
            }
            free_machine(&alone);
        }
    }
    for (int h = 0; h < NUM_HOSTS; h++) {
        RUN(check_late_reader, &comm, hosts[h], &together[h]);
        free_machine(&together[h]);
    }
    moe_host_free(two_hosts);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
