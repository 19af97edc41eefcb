/* checks.c: the self-checks of a layer. They recount from the routing what the plan, the inbox and
 * the losses claim, and share no code with them. First each rank counts what speaks against its own
 * tokens and rows; when these counts are summed, each check is made from them. */
#include <float.h>
#include <math.h>
#include <stdio.h>

#include "base/exact.h"
#include "base/status.h"
#include "base/sums.h"
#include "router/group_theorem.h"
#include "router/methods.h"
#include "router/scores.h"
#include "tally/internal.h"

/* --- counting on one rank --- */

/* What the weights of a token are multiplied by, and whether their scores are first divided by
 * their sum S: by S itself (over_chosen), or by S + 1e-20. */
typedef struct weight_rule {
    double factor;
    bool normalized, over_chosen;
    bool may_leave_out; /* S may hold a second expert that was left out */
} weight_rule;

static weight_rule weight_rule_of(const moe_router *r) {
    const moe_score_function *score = moe_score_function_of(r);
    weight_rule rule = {.factor = r->routed_scaling_factor,
                        .over_chosen = score->over_chosen,
                        .may_leave_out = moe_method_may_leave_out(r)};
    rule.normalized = (r->norm_topk_prob && (r->top_k > 1 || r->norm_single)) || rule.over_chosen;
    if (rule.normalized && !r->scale_normalized) {
        rule.factor = 1;
    }
    if (!rule.normalized) {
        rule.factor /= moe_router_probability_divisor(r);
    }
    return rule;
}

/* Whether k weights add up to `sum` though their scores add up to `scores`. */
static bool weights_fit(const weight_rule *rule, double scores, double sum, int64_t k) {
    double share = scores;
    if (rule->normalized) {
        const double divisor = rule->over_chosen ? scores : scores + 1e-20;
        share = divisor > 0 ? scores / divisor : 0;
    }
    const double expected = rule->factor * share;
    const double rounding = 1e-5 * fabs(expected) + (double)k * FLT_MIN;
    if (rule->normalized && rule->may_leave_out) {
        return sum * expected >= 0 && fabs(sum) <= fabs(expected) + rounding;
    }
    return fabs(sum - expected) <= rounding;
}

static void check_weights(moe_tally *t, const moe_context *context, const moe_routing *routing) {
    const weight_rule rule = weight_rule_of(&context->router);
    const moe_score_function *score = moe_score_function_of(&context->router);
    if (moe_config_recorded(context->config)) {
        return; /* nothing is known of them */
    }
    for (int64_t token = 0; token < routing->num_tokens; token++) {
        double sum = 0, scores = 0;
        const int64_t begin = routing->row_offset[token], end = routing->row_offset[token + 1];
        for (int64_t i = begin; i < end; i++) {
            sum += (double)routing->weight[i];
            scores += routing->score[i];
        }
        const double most = score->bound * (score->sums_to_one ? 1 : (double)(end - begin));
        const bool bounded = scores >= 0 && (end == begin || scores <= most * (1 + 1e-5));
        t->scalar[MOE_TALLY_BAD_WEIGHTS] +=
            !bounded || !weights_fit(&rule, scores, sum, end - begin);
    }
}

static bool finite_row(const real *row, int64_t n, double *sum_of_squares) {
    *sum_of_squares = moe_sum_of_squares(row, n);
    return isfinite(*sum_of_squares);
}

static void check_output(moe_tally *t,
                         const moe_context *context,
                         const moe_activations *a,
                         const real *y) {
    int64_t h = context->config->model.hidden_size;
    for (int64_t token = 0; token < context->batch->num_tokens; token++) {
        double squares;
        if (!finite_row(y + token * h, h, &squares)) {
            t->scalar[MOE_TALLY_NOT_FINITE]++;
        } else if (squares / (double)h < 1e9) {
            moe_exact_add(t->output, squares / (double)h);
        }
    }
    t->scalar[MOE_TALLY_NOT_FINITE] += a->first_bad_token >= 0;
}

/* rows [D] -= the distinct tokens of local device j that go to each device, as the router counted
 * them. *segment: its first segment, then the first one after it. */
static void take_distinct(const moe_context *context,
                          const moe_activations *a,
                          int32_t j,
                          int64_t *segment,
                          int64_t *rows) {
    const moe_batch *b = context->batch;
    if (a->by_device.on) {
        const moe_sparse_cell *cell =
            a->by_device.distinct + b->device_offset[j] * moe_config_most_experts(context->config);
        for (int64_t k = 0; k < a->by_device.num_distinct[j]; k++) {
            rows[cell[k].column] -= cell[k].count;
        }
        return;
    }
    for (; *segment < b->num_segments && b->segment[*segment].device == b->first_device + j;
         ++*segment) {
        const int64_t *tokens =
            moe_stats_device_tokens(&a->segments, moe_stats_cell(&a->segments, *segment));
        for (int32_t d = 0; d < b->devices; d++) {
            rows[d] -= tokens[d];
        }
    }
}

/* f'' of every device pair, by its definition (counted by the router), against the rows given to
 * MPI_Alltoallv and those removed by dropping. */
static void check_comm_count(moe_tally *t,
                             const moe_layer *layer,
                             const moe_context *context,
                             const moe_activations *a) {
    const moe_batch *b = context->batch;
    int64_t *rows = moe_scratch_take(b->scratch, b->devices, sizeof *rows, "tally");
    int64_t segment = 0;
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        moe_activations_rows_before_dropping(layer, context, a, j, rows);
        take_distinct(context, a, j, &segment, rows);
        for (int32_t d = 0; d < b->devices; d++) {
            t->scalar[MOE_TALLY_COMM_BAD] += rows[d] != 0;
        }
    }
    moe_scratch_give(b->scratch, rows);
}

/* The theorem on distinct groups, docs/method.md section 1.9. Checking it costs about as much as
 * routing. */
static void check_theorem(moe_tally *t,
                          const moe_layer *layer,
                          const moe_context *context,
                          const moe_activations *a) {
    const moe_router *r = &layer->router;
    if (r->group_limit != MOE_GROUP_MAX || moe_config_recorded(context->config)) {
        return;
    }
    if (a->by_device.on) {
        t->scalar[MOE_TALLY_THEOREM_TOKENS] = a->by_device.theorem.tokens;
        t->scalar[MOE_TALLY_THEOREM_BAD] = a->by_device.theorem.bad;
        return;
    }
    moe_group_theorem_check(r, a->logits, &a->routing, moe_batch_routed(context->batch), 1,
                            &t->scalar[MOE_TALLY_THEOREM_TOKENS],
                            &t->scalar[MOE_TALLY_THEOREM_BAD]);
}

void moe_tally_checks_count(moe_tally *t,
                            const moe_layer *layer,
                            const moe_context *context,
                            const moe_activations *a,
                            const real *y) {
    check_weights(t, context, &a->routing);
    check_output(t, context, a, y);
    if (!moe_context_rows_not_tokens(context)) {
        check_comm_count(t, layer, context, a);
    }
    check_theorem(t, layer, context, a);
}

/* --- what the checks look at, summed over the ranks --- */

typedef struct evidence {
    const int64_t *scalar; /* [MOE_TALLY_NUM_SCALARS] */
    const moe_tally *tally;
    const moe_layer *layer;
    const moe_context *context;
    const moe_layer_metrics *metrics;
    int64_t row_sum, column_sum; /* of the device matrix */
    int64_t same_cells;          /* device pairs whose two ends saw the same number of rows */
    int64_t fullest;             /* pairs in the fullest buffer of the global pool */
    int64_t first_bad_rank;      /* the first one that holds a NaN or Inf */
} evidence;

typedef struct detail {
    char text[sizeof((moe_check *)0)->detail];
} detail;

static void add_matrix(evidence *e) {
    int64_t devices = e->context->batch->devices;
    for (int64_t i = 0; i < devices; i++) {
        e->row_sum += e->metrics->sent_rows[i];
        e->column_sum += e->metrics->received_rows[i];
    }
    e->same_cells = devices * devices - e->tally->different;
}

/* Pairs with the fullest target: an expert, or a device. */
static int64_t fullest_buffer(const moe_context *context,
                              const moe_tally *t,
                              const int64_t *kept_per_expert) {
    const bool by_expert = context->capacity.policy == MOE_CAPACITY_EXPERT;
    const int32_t devices = context->batch->devices;
    int64_t most = 0;
    for (int32_t i = 0; i < (by_expert ? context->router.num_experts : devices); i++) {
        int64_t pairs = by_expert ? kept_per_expert[i] : t->device_pairs[i];
        most = pairs > most ? pairs : most;
    }
    return most;
}

/* Collective. */
static int64_t first_bad_rank(const moe_comm *comm, bool bad_here) {
    int64_t minus_rank = bad_here ? -comm->rank : INT64_MIN;
    moe_comm_max_i64(comm, &minus_rank, 1);
    return -minus_rank;
}

/* --- the checks --- */

static bool rows_are_conserved(const evidence *e) {
    const int64_t *s = e->scalar;
    return s[MOE_TALLY_PLANNED_ROWS] == s[MOE_TALLY_EXPECTED_ROWS] &&
           s[MOE_TALLY_RECEIVED_ROWS] == s[MOE_TALLY_PLANNED_ROWS] &&
           s[MOE_TALLY_PLANNED_FIRST] == s[MOE_TALLY_EXPECTED_FIRST] &&
           s[MOE_TALLY_RECEIVED_FIRST] == s[MOE_TALLY_PLANNED_FIRST];
}

static int say_rows(const evidence *e, detail *d) {
    const int64_t *s = e->scalar;
    if (e->context->config->exchange.mode == MOE_EXCHANGE_TWO_LEVEL) {
        return snprintf(
            d->text, sizeof d->text,
            "to nodes %lld rows expected from the routing, %lld sent, %lld received; inside "
            "them %lld, %lld, %lld",
            (long long)s[MOE_TALLY_EXPECTED_FIRST], (long long)s[MOE_TALLY_PLANNED_FIRST],
            (long long)s[MOE_TALLY_RECEIVED_FIRST], (long long)s[MOE_TALLY_EXPECTED_ROWS],
            (long long)s[MOE_TALLY_PLANNED_ROWS], (long long)s[MOE_TALLY_RECEIVED_ROWS]);
    }
    return snprintf(d->text, sizeof d->text,
                    "%lld rows expected from the routing, %lld sent, %lld received",
                    (long long)s[MOE_TALLY_EXPECTED_ROWS], (long long)s[MOE_TALLY_PLANNED_ROWS],
                    (long long)s[MOE_TALLY_RECEIVED_ROWS]);
}

static bool selections_are_conserved(const evidence *e) {
    return e->scalar[MOE_TALLY_RECEIVED_PAIRS] + e->metrics->dropped ==
           e->scalar[MOE_TALLY_SELECTIONS];
}

static int say_selections(const evidence *e, detail *d) {
    return snprintf(d->text, sizeof d->text,
                    "%lld selections, %lld arrived at their experts, %lld were dropped",
                    (long long)e->scalar[MOE_TALLY_SELECTIONS],
                    (long long)e->scalar[MOE_TALLY_RECEIVED_PAIRS], (long long)e->metrics->dropped);
}

static int64_t moved_rows(const evidence *e) {
    return e->scalar[MOE_TALLY_WIRE_ROWS] + e->scalar[MOE_TALLY_OWN_ROWS];
}

static int64_t num_cells(const evidence *e) {
    return (int64_t)e->context->batch->devices * e->context->batch->devices;
}

static bool matrix_adds_up(const evidence *e) {
    return e->row_sum == moved_rows(e) && e->column_sum == moved_rows(e) &&
           e->same_cells == num_cells(e);
}

static int say_matrix(const evidence *e, detail *d) {
    return snprintf(d->text, sizeof d->text,
                    "row sums %lld, column sums %lld, rows given to MPI plus rows inside a rank "
                    "%lld; both ends agree on %lld of %lld device pairs",
                    (long long)e->row_sum, (long long)e->column_sum, (long long)moved_rows(e),
                    (long long)e->same_cells, (long long)num_cells(e));
}

static bool ceilings_hold(const evidence *e) {
    return e->scalar[MOE_TALLY_BAD_DEVICES] == 0 && e->scalar[MOE_TALLY_BAD_GROUPS] == 0;
}

static int say_ceilings(const evidence *e, detail *d) {
    return snprintf(d->text, sizeof d->text,
                    "%lld tokens reach more devices, %lld more groups than K, D and M allow%s",
                    (long long)e->scalar[MOE_TALLY_BAD_DEVICES],
                    (long long)e->scalar[MOE_TALLY_BAD_GROUPS],
                    moe_config_recorded(e->context->config) && !ceilings_hold(e)
                        ? ": the recorded routing does not keep to router.group_limit"
                        : "");
}

/* What compares scores and weights has nothing to say of those that are no numbers: `finite` has.
 */
static const char *why_not_numbers(const evidence *e) {
    return e->scalar[MOE_TALLY_NOT_FINITE] > 0 ? "some logits or outputs are not finite" : NULL;
}

static const char *why_no_theorem(const evidence *e) {
    if (moe_config_recorded(e->context->config)) {
        return "the routing was recorded, not computed";
    }
    if (e->context->router.group_limit != MOE_GROUP_MAX) {
        return "it holds for group_limit = max only";
    }
    return e->scalar[MOE_TALLY_THEOREM_TOKENS] == 0
               ? "every token has ties, disabled experts or too few experts"
               : why_not_numbers(e);
}

static bool theorem_holds(const evidence *e) {
    return e->scalar[MOE_TALLY_THEOREM_BAD] == 0;
}

static int say_theorem(const evidence *e, detail *d) {
    return snprintf(d->text, sizeof d->text,
                    "distinct groups = min(M, distinct groups of the greedy choice): %lld "
                    "tokens looked at, %lld differ",
                    (long long)e->scalar[MOE_TALLY_THEOREM_TOKENS],
                    (long long)e->scalar[MOE_TALLY_THEOREM_BAD]);
}

static const char *why_no_weights(const evidence *e) {
    return moe_config_recorded(e->context->config) ? "weights were recorded (0)"
                                                   : why_not_numbers(e);
}

static bool weights_add_up(const evidence *e) {
    return e->scalar[MOE_TALLY_BAD_WEIGHTS] == 0;
}

static int say_weights(const evidence *e, detail *d) {
    return snprintf(d->text, sizeof d->text, "%lld tokens whose combine weights have a wrong sum",
                    (long long)e->scalar[MOE_TALLY_BAD_WEIGHTS]);
}

static const char *why_no_comm_loss(const evidence *e) {
    return moe_context_rows_not_tokens(e->context);
}

static bool comm_loss_counts_rows(const evidence *e) {
    return e->scalar[MOE_TALLY_COMM_BAD] == 0;
}

static int say_comm_loss(const evidence *e, detail *d) {
    (void)e;
    return snprintf(d->text, sizeof d->text,
                    "f'' equals the rows given to MPI_Alltoallv and those removed by dropping, for "
                    "every device pair");
}

static bool has_capacity(const evidence *e) {
    return e->context->capacity.policy != MOE_CAPACITY_NONE;
}

static const char *why_no_capacity(const evidence *e) {
    const moe_capacity *c = &e->context->capacity;
    return c->policy == MOE_CAPACITY_SEQUENCE || c->scope == MOE_CAPACITY_PER_DEVICE
               ? "budgets are of a sequence or of a device's tokens, the counts are of the batch"
               : NULL;
}

static bool capacity_is_kept(const evidence *e) {
    int64_t capacity = e->metrics->capacity.capacity;
    return e->fullest <= capacity || e->fullest - capacity <= e->metrics->capacity.exempt_overflow;
}

static int say_capacity(const evidence *e, detail *d) {
    return snprintf(d->text, sizeof d->text,
                    "budgets of %lld pairs, %lld in the fullest, %lld pairs of exempt sequences "
                    "beyond budgets",
                    (long long)e->metrics->capacity.capacity, (long long)e->fullest,
                    (long long)e->metrics->capacity.exempt_overflow);
}

/* Whether every loss with a coefficient can be computed: a recording may lack scores or logits. */
static bool total_is_defined(const evidence *e) {
    const moe_balance *b = &e->context->balance;
    for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
        if (b->alpha[loss] != 0 && !moe_balance_defined(b, (enum moe_loss)loss)) {
            return false;
        }
    }
    return true;
}

static bool all_is_finite(const evidence *e) {
    bool total = isfinite(e->metrics->total) || !total_is_defined(e);
    return e->scalar[MOE_TALLY_NOT_FINITE] == 0 && isfinite(e->metrics->output_rms) && total;
}

/* What makes values leave the range of numbers although the program is right. */
static const char *why_values_grow(const moe_config *c) {
    if (c->model.norm == MOE_NORM_NONE) {
        return "; model.norm = none lets values grow: norm = rmsnorm";
    }
    return c->run.mode == MOE_MODE_TRAIN ? "; a smaller train.learning_rate may help" : "";
}

static int say_finite(const evidence *e, detail *d) {
    if (e->scalar[MOE_TALLY_NOT_FINITE] == 0 && !total_is_defined(e)) {
        return snprintf(d->text, sizeof d->text,
                        "layer %d: output rms %g; a loss with a coefficient needs scores or logits "
                        "that were not recorded",
                        e->layer->index, e->metrics->output_rms);
    }
    if (e->scalar[MOE_TALLY_NOT_FINITE] == 0) {
        return snprintf(d->text, sizeof d->text,
                        "layer %d: output rms %g, balance losses x alpha %g", e->layer->index,
                        e->metrics->output_rms, e->metrics->total);
    }
    return snprintf(d->text, sizeof d->text,
                    "layer %d: NaN, Inf or huge values in the logits or the output of %lld "
                    "tokens, first on rank %lld%s",
                    e->layer->index, (long long)e->scalar[MOE_TALLY_NOT_FINITE],
                    (long long)e->first_bad_rank, why_values_grow(e->context->config));
}

static const struct {
    const char *name;
    const char *(*why_not)(const evidence *); /* NULL, or what it returns is NULL: it is made */
    bool (*passed)(const evidence *);
    int (*say)(const evidence *, detail *);
    bool (*exists)(const evidence *); /* NULL: in every run */
} checks[] = {
    {"rows_conserved", NULL, rows_are_conserved, say_rows, NULL},
    {"selections_conserved", NULL, selections_are_conserved, say_selections, NULL},
    {"matrix_sums", NULL, matrix_adds_up, say_matrix, NULL},
    {"ceilings", NULL, ceilings_hold, say_ceilings, NULL},
    {"group_theorem", why_no_theorem, theorem_holds, say_theorem, NULL},
    {"weight_sums", why_no_weights, weights_add_up, say_weights, NULL},
    {"comm_loss_from_bytes", why_no_comm_loss, comm_loss_counts_rows, say_comm_loss, NULL},
    {"capacity", why_no_capacity, capacity_is_kept, say_capacity, has_capacity},
    {"finite", NULL, all_is_finite, say_finite, NULL},
};

void moe_tally_checks_make(const moe_tally *t,
                           const moe_layer *layer,
                           const moe_context *context,
                           int64_t not_finite_here,
                           moe_step_metrics *metrics) {
    const moe_layer_metrics *l = &metrics->layer[layer->index];
    evidence e = {
        .scalar = t->scalar, .tally = t, .layer = layer, .context = context, .metrics = l};
    add_matrix(&e);
    if (has_capacity(&e)) {
        e.fullest = fullest_buffer(context, t, l->kept_per_expert);
    }
    if (e.scalar[MOE_TALLY_NOT_FINITE] > 0) {
        e.first_bad_rank = first_bad_rank(context->comm, not_finite_here > 0);
    }
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        if (checks[i].exists && !checks[i].exists(&e)) {
            continue;
        }
        const char *why_not = checks[i].why_not ? checks[i].why_not(&e) : NULL;
        detail d;
        if (!why_not) {
            checks[i].say(&e, &d);
        }
        moe_step_metrics_check(metrics, checks[i].name, !why_not, why_not || checks[i].passed(&e),
                               "%s", why_not ? why_not : d.text);
    }
}
