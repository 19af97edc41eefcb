/* rebalance.c: see rebalance.h. */
#include "run/rebalance.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/migration.h"
#include "model/serving.h"

/* --- made and freed --- */

static int64_t rows_of(const moe_rebalance *r) {
    return r->window > 0 ? r->window : 1;
}
static int64_t words_of(const moe_rebalance *r) {
    return rows_of(r) * r->layers * r->experts;
}
static int64_t words_of_pairs(const moe_rebalance *r) {
    return (int64_t)r->layers * r->experts * r->experts;
}

void moe_rebalance_init(moe_rebalance *r, moe_stack *stack, moe_training *training) {
    const moe_config *c = stack->context->config;
    *r = (moe_rebalance){.stack = stack, .training = training};
    if (!moe_config_places_by_load(c)) {
        return;
    }
    r->balancer = moe_balancer_find(
        moe_config_enum_name(MOE_KEY(placement, policy), (int)c->placement.policy));
    MOE_ASSERT(r->balancer);
    r->layers = moe_config_moe_layers(c);
    r->experts = c->model.num_experts;
    r->slots = moe_placement_slots(&stack->context->placements[0]);
    r->every = c->placement.rebalance_every;
    r->window = r->every > 0 ? c->placement.window : 0;
    r->load = moe_alloc_zero(words_of(r), sizeof *r->load, "rebalancing");
    r->expert_at = moe_alloc((int64_t)r->layers * r->slots, sizeof *r->expert_at, "rebalancing");
    const int64_t cells = (int64_t)r->layers * c->cluster.devices;
    r->detail = (moe_rebalance_detail){
        .layers = r->layers,
        .devices = c->cluster.devices,
        .before = moe_alloc_zero(cells, sizeof *r->detail.before, "rebalancing"),
        .after = moe_alloc_zero(cells, sizeof *r->detail.after, "rebalancing"),
        .move = moe_alloc((int64_t)r->layers * r->slots, sizeof *r->detail.move, "rebalancing")};
    for (int32_t l = 0; l < r->layers; l++) {
        memcpy(r->expert_at + (int64_t)l * r->slots, stack->context->placements[l].expert_at,
               (size_t)r->slots * sizeof *r->expert_at);
    }
    if (r->balancer->needs & MOE_NEEDS_PAIRS) {
        r->pairs = moe_alloc_zero(words_of_pairs(r), sizeof *r->pairs, "rebalancing");
    }
}

void moe_rebalance_free(moe_rebalance *r) {
    moe_free(r->load);
    moe_free(r->pairs);
    moe_free(r->expert_at);
    moe_free(r->detail.before);
    moe_free(r->detail.after);
    moe_free(r->detail.move);
    *r = (moe_rebalance){0};
}

/* --- loads --- */

bool moe_rebalance_due(const moe_rebalance *r, int64_t step) {
    return r->balancer && r->every > 0 && step > 0 && step % r->every == 0;
}

void moe_rebalance_see(moe_rebalance *r, int64_t step, int32_t layer, const moe_routing *routing) {
    const int64_t n = r->experts;
    if (!r->pairs || !(step < 0 || moe_rebalance_due(r, step + 1))) {
        return;
    }
    double *pairs = r->pairs + layer * n * n;
    for (int64_t t = 0; t < routing->num_tokens; t++) {
        for (int64_t i = routing->row_offset[t]; i < routing->row_offset[t + 1]; i++) {
            for (int64_t j = routing->row_offset[t]; j < routing->row_offset[t + 1]; j++) {
                pairs[routing->expert[i] * n + routing->expert[j]] += i != j;
            }
        }
    }
}

void moe_rebalance_take(moe_rebalance *r, int64_t step, const moe_step_metrics *metrics) {
    if (!r->balancer) {
        return;
    }
    double *load = r->load + step % rows_of(r) * r->layers * r->experts;
    if (r->window > 0) {
        memset(load, 0, (size_t)r->layers * (size_t)r->experts * sizeof *load);
    }
    for (int32_t l = 0; l < r->layers; l++) {
        for (int32_t e = 0; e < r->experts; e++) {
            load[(int64_t)l * r->experts + e] += (double)metrics->layer[l].counts_per_expert[e];
        }
    }
}

/* --- deciding --- */

/* load [N] of one layer, summed over the first `steps` rows of the window. */
static void sum_loads(const moe_rebalance *r, int32_t layer, int64_t steps, double *load) {
    for (int32_t e = 0; e < r->experts; e++) {
        load[e] = 0;
        for (int64_t s = 0; s < steps && s < rows_of(r); s++) {
            load[e] += r->load[(s * r->layers + layer) * r->experts + e];
        }
    }
}

/* mine [D]: the load of each device where replicas share it evenly, or as the balancer splits it.
 * Returns the busiest one over the mean. */
static double busiest(const moe_rebalance *r,
                      const moe_balancer_problem *problem,
                      const int32_t *expert_at,
                      double *mine) {
    moe_balancer_answer answer = {0};
    double sum = 0;
    moe_balancer_answer_of(problem, expert_at, &answer);
    if (r->balancer->timing == MOE_BALANCER_SPLITS) {
        moe_balancer_split(r->balancer, problem, &answer);
    }
    const double most = moe_balancer_device_load(&answer, problem->devices, mine);
    for (int32_t d = 0; d < problem->devices; d++) {
        sum += mine[d];
    }
    moe_balancer_answer_free(&answer);
    return sum > 0 ? most * problem->devices / sum : 1;
}

/* Rank 0: the experts in the slots of one layer, the old ones where the new ones gain too little.
 */
static void decide_layer(moe_rebalance *r, int32_t layer, int64_t steps, double *load) {
    const moe_config *c = r->stack->context->config;
    const moe_placement *now = &r->stack->context->placements[layer];
    const int64_t n = r->experts;
    int32_t *to = r->expert_at + (int64_t)layer * r->slots;
    moe_balancer_answer answer = {0};
    sum_loads(r, layer, steps, load);
    moe_balancer_problem problem = moe_serving_problem(c, now, load);
    problem.pairs = r->pairs ? r->pairs + layer * n * n : NULL;
    moe_balancer_place(r->balancer, &problem, &answer);
    double *was = r->detail.before + (int64_t)layer * now->devices;
    double *is = r->detail.after + (int64_t)layer * now->devices;
    const double before = busiest(r, &problem, now->expert_at, was);
    double after = busiest(r, &problem, answer.expert, is);
    const bool takes = c->placement.hysteresis == 0 || r->last.first ||
                       after < before * (1 - c->placement.hysteresis);
    memcpy(to, takes ? answer.expert : now->expert_at, (size_t)r->slots * sizeof *to);
    moe_migration_align(now, to);
    if (!takes) {
        after = before;
        memcpy(is, was, (size_t)now->devices * sizeof *is);
    }
    r->last.device_before += before / r->layers;
    r->last.device_after += after / r->layers;
    moe_balancer_answer_free(&answer);
}

/* Collective. Leaves on rank 0 the pairs of all ranks' tokens, and none on the others. */
static void gather_pairs(moe_rebalance *r) {
    const moe_comm *comm = r->stack->context->comm;
    const int64_t count = words_of_pairs(r);
    int64_t *sum = moe_alloc(count, sizeof *sum, "rebalancing");
    for (int64_t i = 0; i < count; i++) {
        sum[i] = (int64_t)r->pairs[i];
    }
    moe_comm_sum_i64(comm, sum, count);
    for (int64_t i = 0; i < count; i++) {
        r->pairs[i] = comm->rank == 0 ? (double)sum[i] : 0;
    }
    moe_free(sum);
}

/* Collective. Rank 0 decides, and tells all ranks. */
static void decide(moe_rebalance *r, int64_t steps) {
    const moe_comm *comm = r->stack->context->comm;
    const double begin = moe_comm_time();
    double *load = moe_alloc(r->experts, sizeof *load, "rebalancing");
    if (r->pairs) {
        gather_pairs(r);
    }
    for (int32_t l = 0; l < r->layers && comm->rank == 0; l++) {
        decide_layer(r, l, steps, load);
    }
    moe_comm_bcast(comm, r->expert_at, (int64_t)r->layers * r->slots * (int64_t)sizeof(int32_t), 0);
    moe_comm_bcast(comm, &r->last, sizeof r->last, 0);
    if (r->pairs) {
        memset(r->pairs, 0, (size_t)words_of_pairs(r) * sizeof *r->pairs);
    }
    moe_free(load);
    r->last.decide_seconds = moe_comm_time() - begin;
}

/* --- moving --- */

static int by_slot(const void *a, const void *b) {
    const moe_slot_copy *x = a, *y = b;
    return (x->to > y->to) - (x->to < y->to);
}

/* Notes who came from another device. */
static void note_moves(moe_rebalance *r, int32_t layer, moe_slot_copies *c) {
    const moe_placement *p = &r->stack->context->placements[layer];
    moe_rebalance_detail *d = &r->detail;
    qsort(c->list, (size_t)c->num, sizeof *c->list, by_slot);
    for (int32_t i = 0; i < c->num; i++) {
        const int32_t from = c->list[i].from / p->slots_per_device;
        const int32_t to = c->list[i].to / p->slots_per_device;
        if (from != to) {
            d->move[d->num_moves++] =
                (moe_expert_move){layer, p->expert_at[c->list[i].to], from, to};
        }
    }
}

static void move(moe_rebalance *r) {
    const moe_context *context = r->stack->context;
    const double begin = moe_comm_time();
    moe_slot_copies copies = {0};
    r->detail.num_moves = 0;
    for (int32_t l = 0; l < r->layers; l++) {
        const moe_migration_figures f = moe_migration_run(
            &copies, context, &r->stack->layer[l], &context->placements[l],
            r->expert_at + (int64_t)l * r->slots, r->training ? &r->stack->indices[l] : NULL,
            r->training ? &r->training->parameters : NULL);
        note_moves(r, l, &copies);
        r->last.moved += f.moved;
        r->last.bytes += f.bytes;
        r->last.cross_node_bytes += f.cross_node_bytes;
        r->last.wasted += moe_placement_wasted(&context->placements[l]);
    }
    moe_slot_copies_free(&copies);
    if (r->training) {
        moe_training_replan(r->training);
    }
    r->last.move_seconds = moe_comm_time() - begin;
}

void moe_rebalance_now(moe_rebalance *r, int64_t steps) {
    r->last = (moe_rebalance_metrics){.on = true, .first = r->total.decisions == 0};
    decide(r, steps);
    move(r);
    double seconds[2] = {r->last.decide_seconds, r->last.move_seconds};
    moe_comm_max_f64(r->stack->context->comm, seconds, 2);
    r->last.decide_seconds = seconds[0];
    r->last.move_seconds = seconds[1];
    r->last.decisions = 1;
    moe_rebalance_metrics_add(&r->total, &r->last);
    if (r->window == 0) {
        memset(r->load, 0, (size_t)words_of(r) * sizeof *r->load);
    }
}

/* --- over a restart --- */

/* Whether the pairs of the step before this one are waiting for a decision. */
static bool pairs_wait(const moe_rebalance *r, int64_t step) {
    return r->pairs && moe_rebalance_due(r, step);
}

void moe_rebalance_gather(moe_rebalance *r, int64_t step) {
    if (pairs_wait(r, step)) {
        gather_pairs(r);
    }
}

int moe_rebalance_blobs(moe_rebalance *r, int64_t step, moe_blob blob[MOE_REBALANCE_BLOBS]) {
    int num = 0;
    if (!r->balancer) {
        return num;
    }
    blob[num++] = moe_blob_of("placement", r->expert_at,
                              (int64_t)r->layers * r->slots * (int64_t)sizeof *r->expert_at);
    blob[num++] = moe_blob_of("placement load", r->load, words_of(r) * (int64_t)sizeof *r->load);
    blob[num++] = moe_blob_of("placement moves", &r->total, sizeof r->total);
    if (pairs_wait(r, step)) {
        void *pairs = r->stack->context->comm->rank == 0 ? r->pairs : NULL;
        blob[num++] =
            moe_blob_of("placement pairs", pairs, words_of_pairs(r) * (int64_t)sizeof *r->pairs);
    }
    return num;
}

/* Whether these are numbers of selections: whole, and exact in a double. */
static bool are_counts(const double *x, int64_t n) {
    bool are = true;
    for (int64_t i = 0; i < n; i++) {
        are &= x[i] >= 0 && x[i] <= (double)(INT64_C(1) << 53) && x[i] == floor(x[i]);
    }
    return are;
}

int moe_rebalance_check(const moe_rebalance *r, const char *path, moe_status *st) {
    if (r->balancer && !(are_counts(r->load, words_of(r)) &&
                         (!r->pairs || are_counts(r->pairs, words_of_pairs(r))))) {
        return moe_fail(st, MOE_USER,
                        "the checkpoint '%s' is damaged: a load that its placement follows is not "
                        "a number of selections",
                        path);
    }
    return MOE_OK;
}

int moe_rebalance_restore(moe_rebalance *r, const char *path, moe_status *st) {
    for (int32_t l = 0; l < r->layers; l++) {
        const int32_t *expert_at = r->expert_at + (int64_t)l * r->slots;
        int32_t there = 0;
        uint8_t *seen = moe_alloc_zero(r->experts, 1, "rebalancing");
        for (int32_t s = 0; s < r->slots; s++) {
            if (expert_at[s] >= 0 && expert_at[s] < r->experts) {
                there += !seen[expert_at[s]];
                seen[expert_at[s]] = 1;
            } else {
                there = INT32_MIN / 2;
            }
        }
        moe_free(seen);
        if (there != r->experts) {
            return moe_fail(st, MOE_USER,
                            "the checkpoint '%s' is damaged: its placement of layer %d does not "
                            "hold every expert",
                            path, l);
        }
        moe_placement_fill(&r->stack->context->placements[l], expert_at);
    }
    if (r->training && r->balancer) {
        moe_training_replan(r->training);
    }
    return MOE_OK;
}
