/* unit_balance.c: f, P, the losses in the three scopes, their ideal values and their gradient,
 * against the oracle and by finite differences. */
#include <string.h>

#include "base/alloc.h"
#include "base/exact.h"
#include "check.h"
#include "config/table.h"
#include "random_router.h"
#include "reference.h"
#include "router/loss_gradient.h"

/* One routed case: what the library and the oracle need to know. */
typedef struct fixture {
    random_router c;
    double *z;
    moe_batch batch;
    moe_placement placement;
    moe_routing routing;
    moe_stats segments, cells; /* per segment; per scope */
    moe_balance balance;
    ref_batch ref;
    ref_counts *counts;
    int32_t *home, *scope;
} fixture;

static int32_t scope_of(const moe_segment *s, enum moe_scope scope) {
    return scope == MOE_SCOPE_SEQUENCE ? (int32_t)s->sequence
           : scope == MOE_SCOPE_DEVICE ? s->device
                                       : 0;
}

static void set_scope(fixture *f, enum moe_scope scope) {
    int64_t scopes[MOE_NUM_SCOPES] = {f->batch.num_sequences, f->c.devices, 1};
    moe_stats_reserve(&f->cells, f->c.router.num_experts, f->c.devices, scopes[scope]);
    for (int64_t i = 0; i < f->batch.num_segments; i++) {
        const moe_segment *s = &f->batch.segment[i];
        moe_stats_add(&f->cells, moe_stats_cell(&f->cells, scope_of(s, scope)),
                      moe_stats_cell(&f->segments, i));
        for (int64_t t = s->begin; t < s->end; t++) {
            f->scope[t] = scope_of(s, scope);
            f->home[t] = s->device;
        }
    }
    f->ref.num_scopes = (int32_t)scopes[scope];
}

/* Every loss that the oracle has a gradient of, each with a coefficient of its own. */
static void set_alphas(moe_balance *b) {
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        const enum moe_loss_kind kind = moe_loss_rows[l].kind;
        if (kind == MOE_LOSS_OVER_EXPERTS || kind == MOE_LOSS_OVER_DEVICES || l == MOE_LOSS_Z) {
            b->alpha[l] = 0.3 + 0.1 * l;
        }
    }
}

static fixture fixture_make(uint64_t seed) {
    fixture f = {.c = random_router_make(seed, random_int(seed, 50, 1, 60))};
    int32_t n = f.c.router.num_experts;
    int64_t bad;
    f.c.router.noise = 0.8;
    f.c.router.load_form = f.c.router.score_func == MOE_SCORE_SOFTMAX
                               ? (enum moe_load_form)random_int(seed, 57, 0, 1)
                               : MOE_LOAD_SELECTIONS;
    f.z = random_router_wide(&f.c);
    f.home = malloc((size_t)f.c.num_tokens * sizeof *f.home);
    f.scope = malloc((size_t)f.c.num_tokens * sizeof *f.scope);
    moe_batch_layout(&f.batch, f.c.num_tokens, random_int(seed, 51, 1, 40), f.c.devices, 0, 1);
    moe_placement_block(&f.placement, n, f.c.devices);
    if (seed % 2) {
        f.batch.counted = moe_alloc_zero(f.c.num_tokens, 1, "test");
        for (int64_t t = 0; t < f.c.num_tokens; t++) {
            f.batch.counted[t] = random_unit(seed, 52, (uint64_t)t) < 0.6;
        }
    }
    f.c.router.importance_of = (enum moe_importance_of)random_int(seed, 56, 0, 1);
    moe_stats_reserve(&f.segments, n, f.c.devices, f.batch.num_segments);
    moe_router_route(&f.c.router, &(moe_draw){0}, &f.batch, &f.placement, (moe_logits){.f64 = f.z},
                     NULL, &f.routing, &f.segments, &bad);
    f.balance = (moe_balance){.importance_of = f.c.router.importance_of,
                              .load_form = f.c.router.load_form,
                              .comm_limit = random_int(seed, 53, 1, f.c.devices),
                              .comm_count = (enum moe_comm_count)random_int(seed, 54, 0, 1),
                              .device_p = (enum moe_device_p)random_int(seed, 55, 0, 1),
                              .has_scores = true,
                              .has_logits = true};
    set_alphas(&f.balance);
    f.ref = (ref_batch){.devices = f.c.devices,
                        .device = f.placement.device,
                        .num_tokens = f.c.num_tokens,
                        .z = f.z,
                        .home = f.home,
                        .scope = f.scope,
                        .counted = f.batch.counted,
                        .comm_limit = f.balance.comm_limit,
                        .comm_count = f.balance.comm_count,
                        .device_p = f.balance.device_p,
                        .importance_of = f.balance.importance_of};
    return f;
}

static void fixture_free(fixture *f) {
    free(f->z);
    free(f->home);
    free(f->scope);
    moe_free(f->batch.counted);
    moe_batch_free(&f->batch);
    moe_placement_free(&f->placement);
    moe_routing_free(&f->routing);
    moe_stats_free(&f->segments);
    moe_stats_free(&f->cells);
    random_router_free(&f->c);
}

static double counted_tokens(const fixture *f) {
    double counted = 0;
    for (int64_t i = 0; i < f->cells.num_cells; i++) {
        counted += (double)moe_stats_cell(&f->cells, i)[MOE_STAT_TOKENS];
    }
    return counted;
}

/* Mean over the cells that hold a token; z and entropy: over the tokens. */
static int64_t mean_losses(const fixture *f, double mean[MOE_NUM_LOSSES]) {
    int64_t used = 0;
    memset(mean, 0, MOE_NUM_LOSSES * sizeof *mean);
    for (int64_t i = 0; i < f->cells.num_cells; i++) {
        used += moe_stats_cell(&f->cells, i)[MOE_STAT_TOKENS] > 0;
    }
    for (int64_t i = 0; i < f->cells.num_cells; i++) {
        double loss[MOE_NUM_LOSSES];
        moe_balance_losses(&f->balance, &f->placement, &f->cells, moe_stats_cell(&f->cells, i),
                           loss);
        double tokens = (double)moe_stats_cell(&f->cells, i)[MOE_STAT_TOKENS];
        for (int l = 0; l < MOE_NUM_LOSSES && used > 0; l++) {
            mean[l] += moe_loss_rows[l].kind == MOE_LOSS_MEAN_OVER_TOKENS
                           ? loss[l] * tokens / counted_tokens(f)
                           : loss[l] / (double)used;
        }
    }
    return used;
}

static void gradient(const fixture *f, int64_t used, double *dlogits) {
    double *a = malloc(MOE_COEFFICIENTS * (size_t)f->c.router.num_experts * sizeof *a),
           counted = counted_tokens(f);
    for (int64_t i = 0; i < f->batch.num_segments; i++) {
        const moe_segment *s = &f->batch.segment[i];
        int64_t *cell = moe_stats_cell(&f->cells, f->scope[s->begin]);
        if (cell[MOE_STAT_TOKENS] == 0) {
            continue;
        }
        moe_balance_coefficients(&f->balance, &f->placement, &f->cells, cell, a);
        moe_loss_coefficients all = {.a = a,
                                     .inverse_tokens =
                                         1 / ((double)cell[MOE_STAT_TOKENS] * (double)used),
                                     .alpha_z = f->balance.alpha[MOE_LOSS_Z],
                                     .inverse_counted = 1 / counted};
        moe_loss_gradient(&f->c.router, &f->batch, (moe_logits){.f64 = f->z}, NULL, &f->routing,
                          s->begin, s->end, &all, dlogits);
    }
    free(a);
}

static double total_loss(const fixture *f) {
    double loss[MOE_NUM_LOSSES], sum = 0;
    ref_losses(&f->ref, f->counts, loss);
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        sum += f->balance.alpha[l] * loss[l];
    }
    return sum;
}

/* Central differences of the oracle's loss with its counts fixed, at a few entries. */
static void check_differences(const fixture *f,
                              const double *dlogits,
                              double scale,
                              uint64_t seed) {
    int64_t count = f->c.num_tokens * f->c.router.num_experts;
    for (uint64_t j = 0; j < 4; j++) {
        int64_t i = (int64_t)(random_unit(seed, 60, j) * (double)count);
        double kept = f->z[i], h = 1e-4, up, down;
        if (kept == -INFINITY || fabs(kept) > 12) {
            continue;
        }
        f->z[i] = kept + h;
        up = total_loss(f);
        f->z[i] = kept - h;
        down = total_loss(f);
        f->z[i] = kept;
        CHECK_MSG(fabs((up - down) / (2 * h) - dlogits[i]) <= 1e-6 * scale,
                  "seed %llu: difference %.12g, gradient %.12g", (unsigned long long)seed,
                  (up - down) / (2 * h), dlogits[i]);
    }
}

static void check_gradient(fixture *f, int64_t used, uint64_t seed) {
    int64_t count = f->c.num_tokens * f->c.router.num_experts;
    double *mine = calloc((size_t)count, sizeof *mine);
    double *wanted = calloc((size_t)count, sizeof *wanted);
    double scale = 1e-3;
    double worst = 0;
    gradient(f, used, mine);
    ref_dlogits(&f->ref, f->counts, f->balance.alpha, wanted);
    for (int64_t i = 0; i < count; i++) {
        scale = fmax(scale, fabs(wanted[i]));
    }
    for (int64_t i = 0; i < count; i++) {
        worst = fmax(worst, fabs(mine[i] - wanted[i]) / scale);
    }
    CHECK_MSG(worst < 1e-12, "seed %llu: gradient off by %g", (unsigned long long)seed, worst);
    f->balance.alpha[MOE_LOSS_IMPORTANCE] = 0.9;
    f->balance.alpha[MOE_LOSS_LOAD] = f->balance.load_form == MOE_LOAD_TUTEL ? 0.8 : 0;
    memset(mine, 0, (size_t)count * sizeof *mine);
    gradient(f, used, mine);
    check_differences(f, mine, fmax(scale, 1), seed);
    f->balance.alpha[MOE_LOSS_IMPORTANCE] = f->balance.alpha[MOE_LOSS_LOAD] = 0;
    free(mine);
    free(wanted);
}

static void test_random(uint64_t seed) {
    fixture f = fixture_make(seed);
    f.ref.router = &f.c.router;
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        double mean[MOE_NUM_LOSSES], wanted[MOE_NUM_LOSSES];
        set_scope(&f, (enum moe_scope)scope);
        f.counts = ref_count(&f.ref);
        int64_t used = mean_losses(&f, mean);
        ref_losses(&f.ref, f.counts, wanted);
        for (int l = 0; l < MOE_NUM_LOSSES; l++) {
            CHECK_MSG(fabs(mean[l] - wanted[l]) <=
                          (l < MOE_LOSS_ENTROPY ? 1e-12 : 1e-11) * fmax(fabs(wanted[l]), 1e-3),
                      "seed %llu, scope %d, loss %s: %.17g, %.17g", (unsigned long long)seed, scope,
                      moe_loss_names[l], mean[l], wanted[l]);
        }
        if (used > 0) {
            check_gradient(&f, used, seed);
        }
        ref_counts_free(f.counts, f.ref.num_scopes);
    }
    fixture_free(&f);
}

/* A cell made by hand: N = 4 on D = 2, T = 2, expert counts c, distinct tokens x, scores p (sums).
 */
static moe_stats cell_of(const int64_t c[4], const int64_t x[2], const double p[4]) {
    moe_stats s = {0};
    moe_stats_reserve(&s, 4, 2, 1);
    s.cell[MOE_STAT_TOKENS] = 2;
    moe_exact_add(s.cell + MOE_STAT_Z, 4.5);
    memcpy(moe_stats_counts(&s, s.cell), c, 4 * sizeof *c);
    memcpy(moe_stats_device_tokens(&s, s.cell), x, 2 * sizeof *x);
    moe_exact_add01(moe_stats_score_hi(&s, s.cell), moe_stats_score_lo(&s, s.cell), p, 4);
    return s;
}

static void test_by_hand(void) {
    moe_placement p = {0};
    double loss[MOE_NUM_LOSSES], ideal[MOE_NUM_LOSSES], a[MOE_COEFFICIENTS * 4];
    moe_balance b = {
        .alpha = {1, 10, 100, 0}, .comm_limit = 1, .has_scores = true, .has_logits = true};
    moe_placement_block(&p, 4, 2);
    moe_stats s = cell_of((int64_t[]){2, 1, 1, 0}, (int64_t[]){2, 1},
                          (double[]){1, 0.5, 0.25, 0.25}); /* K-bar
                                                              = 2
                                                            */
    moe_balance_losses(&b, &p, &s, s.cell, loss);
    CHECK_NEAR(loss[MOE_LOSS_EXPERT], 2 * 0.5 + 1 * 0.25 + 1 * 0.125, 1e-15);
    CHECK_NEAR(loss[MOE_LOSS_DEVICE], 1.5 * 0.75 + 0.5 * 0.25, 1e-15);
    CHECK_NEAR(loss[MOE_LOSS_COMM], 2 * 0.75 + 1 * 0.25, 1e-15);
    CHECK_NEAR(loss[MOE_LOSS_Z], 2.25, 1e-15);
    moe_balance_coefficients(&b, &p, &s, s.cell, a);
    CHECK(a[0] == 2 + 15 + 200 && a[1] == 1 + 15 + 200 && a[2] == 1 + 5 + 100 && a[3] == 5 + 100);
    moe_balance_ideal(&b, &s, s.cell, ideal);
    CHECK(ideal[MOE_LOSS_EXPERT] == 1 && ideal[MOE_LOSS_DEVICE] == 1 &&
          ideal[MOE_LOSS_COMM] == 1.5 && isnan(ideal[MOE_LOSS_Z]));
    b.device_p = MOE_DEVICE_P_MEAN;
    b.comm_count = MOE_COUNT_SELECTIONS;
    moe_balance_losses(&b, &p, &s, s.cell, loss);
    CHECK_NEAR(loss[MOE_LOSS_DEVICE], (1.5 * 0.75 + 0.5 * 0.25) / 2, 1e-15);
    CHECK_NEAR(loss[MOE_LOSS_COMM], 2 * loss[MOE_LOSS_DEVICE], 1e-15); /* counting selections: (K/M)
                                                                          times the device loss */
    b.has_scores = b.has_logits = false;
    moe_balance_losses(&b, &p, &s, s.cell, loss);
    CHECK(isnan(loss[MOE_LOSS_EXPERT]) && isnan(loss[MOE_LOSS_COMM]) && isnan(loss[MOE_LOSS_Z]));
    moe_stats_free(&s);
    moe_placement_free(&p);
}

/* Perfect balance gives 1, 1 and mean(X)/M; no token gives 0. */
static void test_ends(void) {
    moe_placement p = {0};
    double loss[MOE_NUM_LOSSES], ideal[MOE_NUM_LOSSES];
    moe_balance b = {.comm_limit = 2, .has_scores = true, .has_logits = true};
    moe_placement_block(&p, 4, 2);
    moe_stats s =
        cell_of((int64_t[]){1, 1, 1, 1}, (int64_t[]){1, 1}, (double[]){0.5, 0.5, 0.5, 0.5});
    memcpy(moe_stats_first(&s, s.cell), (int64_t[]){1, 1, 1, 1}, 4 * sizeof(int64_t));
    moe_balance_losses(&b, &p, &s, s.cell, loss);
    moe_balance_ideal(&b, &s, s.cell, ideal);
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        if (moe_loss_rows[l].kind == MOE_LOSS_OVER_EXPERTS ||
            moe_loss_rows[l].kind == MOE_LOSS_OVER_DEVICES) {
            CHECK_MSG(loss[l] == ideal[l], "%s: %g, at balance %g", moe_loss_names[l], loss[l],
                      ideal[l]);
        }
    }
    CHECK_EQ(ideal[MOE_LOSS_COMM], 0.5);
    moe_stats_reserve(&s, 4, 2, 1);
    moe_balance_losses(&b, &p, &s, s.cell, loss);
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        CHECK_EQ(loss[l], 0);
    }
    moe_stats_free(&s);
    moe_placement_free(&p);
}

/* Every row has what its kind needs, and every form of the loss that alpha_expert trains has one
 * over the experts. */
static void test_rows(void) {
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        const moe_loss_row *row = &moe_loss_rows[l];
        const bool over = row->kind == MOE_LOSS_OVER_EXPERTS;
        CHECK_MSG(row->name && row->formula, "%s", moe_loss_names[l]);
        CHECK_MSG(over == (row->factor != NULL) && over == (row->at_balance != NULL), "%s",
                  moe_loss_names[l]);
    }
    moe_config c;
    moe_config_defaults(&c);
    for (int form = 0; moe_table_enum_name(MOE_KEY(balance, aux_form), form); form++) {
        double alpha[MOE_NUM_LOSSES];
        c.balance.aux_form = (enum moe_aux_form)form;
        c.balance.alpha_expert = 0.25;
        moe_balance_alphas(&c.balance, 1, alpha);
        const enum moe_loss loss = moe_balance_form(&c.balance);
        CHECK_MSG(alpha[loss] == 0.25 && moe_loss_rows[loss].kind == MOE_LOSS_OVER_EXPERTS, "%s",
                  moe_table_enum_name(MOE_KEY(balance, aux_form), form));
    }
}

int main(void) {
    RUN(test_rows);
    RUN(test_by_hand);
    RUN(test_ends);
    for (uint64_t seed = 0; seed < 200; seed++) {
        RUN(test_random, seed);
    }
    return check_verdict();
}
