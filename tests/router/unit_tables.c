/* unit_tables.c: the tables of the router and of the capacity are complete: one row for every name
 * that the configuration knows, in its order, with all that a row must have; and every row does
 * what it says: the methods choose as their twins in tests/support/reference.c, the score functions
 * have their values, bounds and derivatives. */
#include <math.h>
#include <string.h>

#include "capacity/capacity.h"
#include "check.h"
#include "config/table.h"
#include "random_router.h"
#include "reference.h"
#include "router/groups.h"
#include "router/keyed.h"
#include "router/methods.h"
#include "router/scores.h"
#include "router/select.h"
#include "router/weights.h"

enum { N = 24, SEEDS = 40 };

/* --- names --- */

/* Row i of a table of `rows` rows is called as value i of a key, and the key has no further value.
 */
static void check_name(enum moe_key_id key, int i, int rows, const char *name) {
    const char *wanted = moe_table_enum_name(key, i);
    CHECK_MSG(name && wanted && strcmp(name, wanted) == 0, "%s, row %d: %s, the key says %s",
              moe_keys[key].name, i, name ? name : "no name", wanted ? wanted : "nothing");
    CHECK_MSG(moe_table_enum_name(key, rows) == NULL, "%s has more than %d values",
              moe_keys[key].name, rows);
}

static void test_names(void) {
    for (int i = 0; i < MOE_NUM_METHODS; i++) {
        check_name(MOE_KEY(router, method), i, MOE_NUM_METHODS, moe_methods[i].name);
    }
    for (int i = 0; i < MOE_NUM_SCORE_FUNCTIONS; i++) {
        check_name(MOE_KEY(router, score_func), i, MOE_NUM_SCORE_FUNCTIONS,
                   moe_score_functions[i].name);
    }
    for (int i = 0; i < MOE_NUM_GROUP_LIMITS; i++) {
        check_name(MOE_KEY(router, group_limit), i, MOE_NUM_GROUP_LIMITS, moe_group_limits[i].name);
    }
    for (int i = 0; i < MOE_NUM_ROUNDINGS; i++) {
        check_name(MOE_KEY(capacity, rounding), i, MOE_NUM_ROUNDINGS, moe_roundings[i].name);
    }
    for (int i = 0; i < MOE_NUM_DROP_ORDERS; i++) {
        check_name(MOE_KEY(capacity, drop), i, MOE_NUM_DROP_ORDERS, moe_drop_orders[i].name);
    }
}

/* --- columns --- */

static void test_columns(void) {
    for (int i = 0; i < MOE_NUM_METHODS; i++) {
        const moe_method *m = &moe_methods[i];
        bool device = m->needs == MOE_NEEDS_DEVICE;
        CHECK_MSG(m->choose && m->rule, "%s", m->name);
        CHECK_MSG(device == (m->factors || m->takes) && !(m->factors && m->takes), "%s", m->name);
        CHECK_MSG(!m->chooses_best ||
                      (m->needs == MOE_NEEDS_SCORES && !m->has_second && !m->any_number),
                  "%s", m->name);
        CHECK_MSG(!m->by_byte || m->needs == MOE_NEEDS_KEYS, "%s", m->name);
        /* what the configuration believes */
        moe_config c;
        moe_config_defaults(&c);
        c.model.num_experts = N;
        c.router.top_k = 3;
        c.router.method = (enum moe_router_method)i;
        moe_router r = {.num_experts = N, .top_k = 3, .method = c.router.method};
        CHECK_EQ(moe_config_most_experts(&c), moe_method_most(&r));
        CHECK_EQ(moe_config_ignores_scores(&c), m->needs == MOE_NEEDS_KEYS);
    }
    for (int i = 0; i < MOE_NUM_SCORE_FUNCTIONS; i++) {
        const moe_score_function *f = &moe_score_functions[i];
        moe_config c;
        moe_config_defaults(&c);
        c.router.score_func = (enum moe_score_func)i;
        CHECK_MSG(moe_config_scores_sum_to_one(&c) == f->sums_to_one, "%s", f->name);
        CHECK_MSG(moe_config_weights_over_chosen(&c) == f->over_chosen, "%s", f->name);
    }
    for (int i = 0; i < MOE_NUM_GROUP_LIMITS; i++) {
        const moe_group_limit_row *g = &moe_group_limits[i];
        CHECK_MSG((i != MOE_GROUP_NONE) == (g->scores != NULL), "%s", g->name);
        CHECK_MSG(!g->scores == !g->rule, "%s", g->name);
    }
    for (int i = 0; i < MOE_NUM_ROUNDINGS; i++) {
        CHECK_MSG(moe_roundings[i].pairs, "%s", moe_roundings[i].name);
    }
}

/* --- score functions: value, bound, sum, derivative --- */

static moe_router scorer(int function) {
    return (moe_router){.num_experts = N, .score_func = (enum moe_score_func)function};
}

static void fill_logits(uint64_t seed, double z[N]) {
    for (uint64_t i = 0; i < N; i++) {
        z[i] = random_logit(seed, seed % 4 == 3 ? 3 : 0, 1, i);
    }
}

static void test_scores(int function) {
    const moe_score_function *f = &moe_score_functions[function];
    moe_router r = scorer(function);
    CHECK_MSG(f->fill && f->derivative && f->formula && f->bound > 0, "%s", f->name);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        double z[N], s[N], wanted[N], lse, wanted_lse, sum = 0;
        fill_logits(seed, z);
        moe_scores_fill(&r, z, s, &lse);
        ref_scores(&r, z, wanted, &wanted_lse);
        CHECK_NEAR(lse, wanted_lse, 1e-13);
        for (int i = 0; i < N; i++) {
            CHECK_NEAR(s[i], wanted[i], 1e-13);
            CHECK_MSG(s[i] >= 0 && s[i] <= f->bound, "%s: score %g", f->name, s[i]);
            sum += s[i];
        }
        CHECK_MSG((fabs(sum - 1) < 1e-13) == f->sums_to_one, "%s: sum %g", f->name, sum);
    }
}

/* ds_i / dz_j as scores.h says it: d_i [i = j] - s_i d_j [the scores sum to 1], all divided by the
 * temperature. */
static double slope_of(const moe_score_function *f,
                       const double *s,
                       const double *d,
                       int i,
                       int j) {
    return (i == j ? d[i] : 0) - (f->sums_to_one ? s[i] * d[j] : 0);
}

static void test_derivative(int function, double temperature) {
    const moe_score_function *f = &moe_score_functions[function];
    const double h = 1e-5;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        double z[N], s[N], d[N], up[N], down[N];
        fill_logits(seed, z);
        f->fill(z, temperature, s, N, NULL);
        f->derivative(z, s, d, N);
        for (int j = 0; j < N; j++) {
            double kept = z[j], one;
            f->derivative(z + j, s + j, &one, 1);
            CHECK_MSG(one == d[j], "%s: of one expert %g, of all %g", f->name, one, d[j]);
            if (kept == -INFINITY) {
                CHECK_EQ(d[j], 0);
                continue;
            }
            z[j] = kept + h;
            f->fill(z, temperature, up, N, NULL);
            z[j] = kept - h;
            f->fill(z, temperature, down, N, NULL);
            z[j] = kept;
            for (int i = 0; i < N; i++) {
                double difference = (up[i] - down[i]) / (2 * h);
                double wanted = slope_of(f, s, d, i, j) / temperature;
                CHECK_MSG(fabs(difference - wanted) < 1e-9,
                          "%s, temperature %g, ds_%d/dz_%d: difference %.12g, derivative %.12g",
                          f->name, temperature, i, j, difference, wanted);
            }
        }
    }
}

/* --- methods, score functions and group limits together, against the twin --- */

static moe_router chooser(uint64_t seed, int method, int function, int limit, const double *bias) {
    moe_router r = {.num_experts = N,
                    .devices = 4,
                    .num_groups = 6,
                    .topk_group = 2,
                    .top_k = method == MOE_METHOD_SWITCH ? 1 : random_int(seed, 70, 1, 3) * 2,
                    .method = (enum moe_router_method)method,
                    .score_func = (enum moe_score_func)function,
                    .group_limit = (enum moe_group_limit)limit,
                    .norm_topk_prob = seed % 2,
                    .norm_single = true,
                    .scale_normalized = true,
                    .routed_scaling_factor = 1.5,
                    .top_p = 0.7,
                    .bias = seed % 3 == 0 ? bias : NULL};
    if (method == MOE_METHOD_GSHARD) {
        r.top_k = 2;
    }
    if (moe_group_limits[limit].quota && r.top_k < 2) {
        r.topk_group = 1;
    }
    return r;
}

static int32_t ref_choice(const moe_router *r,
                          const moe_draw *d,
                          int64_t token,
                          const double *z,
                          const double *s,
                          int32_t *expert,
                          double *weight) {
    return moe_methods[r->method].needs == MOE_NEEDS_KEYS
               ? ref_select_keyed(r, d, token, z, s, expert, weight)
               : ref_select(r, z, s, expert, weight);
}

/* Every method but those that look at all tokens of a device chooses for one token what its twin
 * chooses; those choose as topk does here. */
static void test_method(int method, int function, int limit) {
    bool ranks = moe_methods[method].needs != MOE_NEEDS_KEYS;
    if (limit != MOE_GROUP_NONE && !ranks) {
        return; /* refused by the configuration */
    }
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        double bias[N], z[N], s[N], weight[N], wanted_weight[N];
        int32_t expert[N], wanted[N];
        moe_draw d = {.seed = seed, .step = (int64_t)seed % 5, .layer = (int32_t)seed % 3};
        int64_t token = (int64_t)seed * 7 + 1;
        for (uint64_t i = 0; i < N; i++) {
            bias[i] = random_unit(seed, 80, i) - 0.5;
        }
        fill_logits(seed, z);
        moe_router r = chooser(seed, method, function, limit, bias);
        moe_scores_fill(&r, z, s, NULL);
        int32_t count = moe_select_token(&r, &d, token, z, s, expert, weight);
        int32_t wanted_count = ref_choice(&r, &d, token, z, s, wanted, wanted_weight);
        CHECK_MSG(count == wanted_count && count <= moe_method_most(&r) &&
                      memcmp(expert, wanted, (size_t)count * sizeof *expert) == 0,
                  "%s, %s, %s, seed %d: %d experts, the twin has %d", moe_methods[method].name,
                  moe_score_functions[function].name, moe_group_limits[limit].name, (int)seed,
                  count, wanted_count);
        for (int32_t k = 0; k < count && count == wanted_count; k++) {
            CHECK_NEAR(weight[k], wanted_weight[k], 1e-13);
        }
    }
}

int main(void) {
    RUN(test_names);
    RUN(test_columns);
    for (int function = 0; function < MOE_NUM_SCORE_FUNCTIONS; function++) {
        RUN(test_scores, function);
        RUN(test_derivative, function, 1);
        if (moe_score_functions[function].sums_to_one) {
            RUN(test_derivative, function, 0.7);
        }
        for (int method = 0; method < MOE_NUM_METHODS; method++) {
            for (int limit = 0; limit < MOE_NUM_GROUP_LIMITS; limit++) {
                RUN(test_method, method, function, limit);
            }
        }
    }
    return check_verdict();
}
