/* mpi_layer.c: a whole layer. Against a naive serial layer in double (plain loops, the oracle's
 * routing and losses); bit for bit the same when its devices are folded onto one rank, with 1 and 2
 * threads and in every exchange mode, with the same number of chunks; and against golden layers of
 * the public reference code.
 *
 * ctest: f64 gemm timeout=120 */
#include <limits.h>
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "check.h"
#include "data/synthetic.h"
#include "model_fixture.h"
#include "reference.h"
#include "world/comm.h"

static const double output_tolerance = sizeof(real) == sizeof(float) ? 1e-4 : 1e-11;

/* --- one layer on one communicator --- */

typedef struct layer_run {
    model_fixture m;
    moe_layer *layer; /* the only one, and what it computed */
    moe_activations *a;
    real *x, *y;
    double *dlogits;
} layer_run;

static moe_comm comm_self(void) {
    return (moe_comm){
        .comm = MPI_COMM_SELF, .size = 1, .local_size = 1, .num_hosts = 1, .max_count = INT_MAX};
}

/* settings: "section.key=value" separated by blanks. */
static void set_up(layer_run *r, const moe_comm *comm, const char *settings, int64_t tokens) {
    *r = (layer_run){0};
    model_fixture_init(&r->m, comm, "", settings, tokens);
    r->layer = &r->m.stack.layer[0];
    r->a = &r->m.stack.activations[0];
    r->x = moe_stack_input(&r->m.stack);
    r->y = r->m.stack.y;
    r->dlogits =
        moe_alloc(r->m.batch.num_tokens * r->m.c.model.num_experts, sizeof *r->dlogits, "test");
    moe_synthetic_vectors(&r->m.c.data, r->m.c.run.seed, r->m.c.model.hidden_size, &r->m.batch, 0,
                          r->x, NULL);
}

static void forward(layer_run *r, int threads) {
    omp_set_num_threads(threads);
    moe_step_metrics_clear(&r->m.metrics);
    memset(r->y, 0x7f, (size_t)(r->m.batch.num_tokens * r->m.c.model.hidden_size) * sizeof *r->y);
    moe_layer_forward(r->layer, &r->m.context, r->x, r->y, r->a, &r->m.metrics.layer[0]);
    moe_layer_losses(r->layer, &r->m.context, r->a, &r->m.metrics.layer[0]);
    moe_layer_dlogits(r->layer, &r->m.context, r->a, r->dlogits, NULL);
    CHECK_EQ(r->a->first_bad_token, -1);
}

static void tear_down(layer_run *r) {
    model_fixture_free(&r->m);
    moe_free(r->dlogits);
}

static double logit(const layer_run *r, int64_t i) {
    return r->a->logits.f64 ? r->a->logits.f64[i] : (double)r->a->logits.f32[i];
}

/* --- the naive layer --- */

static double act(enum moe_expert_type type, double a) {
    switch (type) {
    case MOE_EXPERT_GELU:
        return a / 2 * (1 + erf(a / sqrt(2)));
    case MOE_EXPERT_RELU:
        return a > 0 ? a : 0;
    default:
        return a / (1 + exp(-a));
    }
}

/* y [H] += weight * FFN_i(u). */
static void naive_ffn(const moe_ffn *f, int64_t i, double weight, const double *u, double *y) {
    int64_t h = f->hidden, width = f->width;
    const real *w1 = f->w1 + i * h * width;
    const real *w3 = f->w3 + i * h * width;
    const real *w2 = f->w2 + i * h * width;
    if (f->type == MOE_EXPERT_IDENTITY) {
        for (int64_t k = 0; k < h; k++) {
            y[k] += weight * u[k];
        }
        return;
    }
    for (int64_t j = 0; j < width; j++) {
        double a = 0, b = 0;
        for (int64_t k = 0; k < h; k++) {
            a += (double)w1[j * h + k] * u[k];
            if (f->type == MOE_EXPERT_SWIGLU) {
                b += (double)w3[j * h + k] * u[k];
            }
        }
        double inner = act(f->type, a) * (f->type == MOE_EXPERT_SWIGLU ? b : 1);
        for (int64_t k = 0; k < h; k++) {
            y[k] += weight * inner * (double)w2[k * width + j];
        }
    }
}

static void naive_norm(const layer_run *r, const real *x, double *u) {
    int64_t h = r->m.c.model.hidden_size;
    double mean = 0;
    for (int64_t k = 0; k < h; k++) {
        mean += (double)x[k] * (double)x[k] / (double)h;
    }
    for (int64_t k = 0; k < h; k++) {
        u[k] =
            r->m.c.model.norm == MOE_NORM_RMSNORM ? (double)x[k] / sqrt(mean + 1e-6) : (double)x[k];
    }
}

/* One token: its logits must be those of the gate; given them, its y must be that of the
 * reference's experts and weights. */
static void check_token(const layer_run *r,
                        const double *z,
                        int64_t t,
                        double *worst_logit,
                        double *worst_y) {
    int64_t h = r->m.c.model.hidden_size, n = r->m.c.model.num_experts;
    const moe_placement *p = &r->m.context.placements[0];
    double *u = moe_alloc(2 * h + 2 * n, sizeof *u, "test");
    double *y = u + h;
    double *s = y + h;
    double *weight = s + n;
    double lse;
    double most = 0;
    double error = 0;
    int32_t *expert = moe_alloc(n, sizeof *expert, "test");
    naive_norm(r, r->x + t * h, u);
    for (int64_t e = 0; e < n; e++) {
        double sum = 0;
        for (int64_t k = 0; k < h; k++) {
            sum += (double)r->layer->gate[e * h + k] * u[k];
        }
        *worst_logit = fmax(*worst_logit, fabs(sum - z[t * n + e]) / (1 + fabs(sum)));
    }
    ref_scores(&r->m.context.router, z + t * n, s, &lse);
    int32_t count = ref_select(&r->m.context.router, z + t * n, s, expert, weight);
    memset(y, 0, (size_t)h * sizeof *y);
    for (int32_t i = 0; i < count; i++) {
        naive_ffn(&r->layer->experts,
                  (int64_t)p->device[expert[i]] * p->slots_per_device + p->slot[expert[i]],
                  weight[i], u, y);
    }
    if (r->layer->shared.count) {
        bool identity = r->layer->shared.type == MOE_EXPERT_IDENTITY;
        naive_ffn(&r->layer->shared, 0, identity ? r->m.c.model.num_shared_experts : 1, u, y);
    }
    for (int64_t k = 0; k < h; k++) {
        most = fmax(most, fabs(y[k]));
        error = fmax(error, fabs(y[k] - (double)r->y[t * h + k]));
    }
    *worst_y = isnan(error) || isnan((double)r->y[t * h])
                   ? INFINITY
                   : fmax(*worst_y, error / fmax(most, 1e-30));
    moe_free(u);
    moe_free(expert);
}

/* Losses in all scopes, and the gradient in the one that trains. */
static void check_losses(const layer_run *r, const double *z) {
    const moe_batch *b = &r->m.batch;
    int64_t tokens = b->num_tokens, n = r->m.c.model.num_experts;
    int32_t *home = moe_alloc(2 * tokens, sizeof *home, "test"), *scope_of = home + tokens;
    double *dlogits = moe_alloc_zero(tokens * n, sizeof *dlogits, "test");
    ref_batch ref = {.router = &r->m.context.router,
                     .devices = b->devices,
                     .device = r->m.context.placements[0].device,
                     .num_tokens = tokens,
                     .z = z,
                     .home = home,
                     .scope = scope_of,
                     .comm_limit = r->m.c.comm_limit,
                     .comm_count = r->m.c.balance.comm_count,
                     .device_p = r->m.c.balance.device_p};
    for (enum moe_scope scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        double loss[MOE_NUM_LOSSES];
        for (int32_t d = 0; d < b->devices; d++) {
            for (int64_t t = b->device_offset[d]; t < b->device_offset[d + 1]; t++) {
                home[t] = d;
                scope_of[t] = scope == MOE_SCOPE_SEQUENCE ? (int32_t)(t / b->sequence_length)
                              : scope == MOE_SCOPE_DEVICE ? d
                                                          : 0;
            }
        }
        ref.num_scopes = scope == MOE_SCOPE_SEQUENCE ? (int32_t)b->num_sequences
                         : scope == MOE_SCOPE_DEVICE ? b->devices
                                                     : 1;
        ref_counts *counts = ref_count(&ref);
        ref_losses(&ref, counts, loss);
        for (int l = 0; l < MOE_NUM_LOSSES; l++) {
            if (l == MOE_LOSS_Z && scope != MOE_SCOPE_GLOBAL) {
                continue; /* a mean over tokens, the same in every scope */
            }
            CHECK_NEAR(r->m.metrics.layer[0].loss_by_scope[scope][l], loss[l], 1e-11);
        }
        if (scope == r->m.c.balance.scope) {
            ref_dlogits(&ref, counts, r->m.context.balance.alpha, dlogits);
        }
        ref_counts_free(counts, ref.num_scopes);
    }
    double most = 0, error = 0;
    for (int64_t i = 0; i < tokens * n; i++) {
        most = fmax(most, fabs(dlogits[i]));
        error = fmax(error, fabs(dlogits[i] - r->dlogits[i]));
    }
    CHECK_MSG(error <= 1e-11 * most, "dlogits differ by %g of %g", error, most);
    moe_free(home);
    moe_free(dlogits);
}

static void check_naive(const layer_run *r, const char *settings) {
    int64_t count = r->m.batch.num_tokens * r->m.c.model.num_experts;
    double *z = moe_alloc(count, sizeof *z, "test");
    double worst_logit = 0;
    double worst_y = 0;
    for (int64_t i = 0; i < count; i++) {
        z[i] = logit(r, i);
    }
    for (int64_t t = 0; t < r->m.batch.num_tokens; t++) {
        check_token(r, z, t, &worst_logit, &worst_y);
    }
    CHECK_MSG(worst_logit <= output_tolerance / 10, "%s: logits differ by %g", settings,
              worst_logit);
    CHECK_MSG(worst_y <= output_tolerance, "%s: y differs by %g", settings, worst_y);
    check_losses(r, z);
    moe_free(z);
}

/* --- folded and distributed --- */

static const char *const cases[] = {
    "model.expert_type=swiglu model.num_shared_experts=1 router.score_func=softmax router.top_k=6 "
    "router.group_limit=max "
    "router.topk_group=3 "
    "balance.alpha_expert=0.003 balance.alpha_device=0.05 balance.alpha_comm=0.02 "
    "balance.scope=sequence",
    "model.expert_type=silu model.num_shared_experts=2 router.score_func=sigmoid "
    "router.norm_topk_prob=yes "
    "router.routed_scaling_factor=2.5 "
    "router.group_limit=top2_sum router.topk_group=2 router.top_k=4 balance.alpha_expert=0.1 "
    "balance.alpha_comm=0.1 balance.scope=device "
    "cluster.devices_per_node=2",
    "model.expert_type=gelu router.score_func=sqrtsoftplus router.top_k=3 balance.z_loss=0.001 "
    "balance.alpha_device=1 balance.scope=global "
    "balance.device_p=mean",
    "model.expert_type=relu router.score_func=softmax_topk router.top_k=2 model.norm=rmsnorm "
    "model.num_shared_experts=1 "
    "balance.alpha_comm=1 "
    "balance.comm_count=selections data.sequence_length=0",
    "model.expert_type=identity model.num_shared_experts=2 router.top_k=4 router.group_limit=quota "
    "router.topk_group=2 "
    "cluster.devices_per_node=2 "
    "balance.alpha_comm=1 balance.comm_count_local=no balance.scope=device",
    "model.expert_type=swiglu router.top_k=5 router.group_limit=topk_sum router.topk_group=3 "
    "model.hidden_size=1 "
    "model.moe_intermediate_size=1",
    "model.expert_type=swiglu model.hidden_size=10 model.moe_intermediate_size=6 "
    "model.num_experts=24 router.top_k=12 "
    "data.tokens_per_device=300 "
    "data.sequence_length=0 model.num_shared_experts=1", /* more rows than one GEMM call takes, in
                                                            experts and gate */
};
static const char *const mode_names[] = {"selection", "token", "two_level",
                                         "two_level exchange.node_sum=no"};
enum { NUM_MODES = sizeof mode_names / sizeof mode_names[0], NUM_ONE_HOP = 2 };

static void check_same_bits(const layer_run *folded, const layer_run *mine, const char *settings) {
    int64_t h = mine->m.c.model.hidden_size;
    int64_t n = mine->m.c.model.num_experts;
    int64_t tokens = mine->m.batch.num_tokens;
    int64_t first = mine->m.batch.first_token;
    CHECK_MSG(memcmp(mine->y, folded->y + first * h, (size_t)(tokens * h) * sizeof(real)) == 0,
              "y, %s", settings);
    CHECK_MSG(memcmp(mine->dlogits, folded->dlogits + first * n,
                     (size_t)(tokens * n) * sizeof(double)) == 0,
              "dlogits, %s", settings);
    CHECK_MSG(memcmp(mine->m.metrics.layer[0].loss_by_scope,
                     folded->m.metrics.layer[0].loss_by_scope,
                     sizeof folded->m.metrics.layer[0].loss_by_scope) == 0,
              "losses, %s", settings);
}

static void check_case(const moe_comm *comm, const char *chosen, int chunks, bool look_closely) {
    layer_run folded, mine;
    moe_comm self = comm_self();
    char settings[1024];
    const int modes = chunks > 1 ? NUM_ONE_HOP : NUM_MODES;
    for (int mode = 0; mode < modes; mode++) {
        snprintf(settings, sizeof settings,
                 "model.num_experts=48 model.hidden_size=20 model.moe_intermediate_size=12 "
                 "data.tokens_per_device=9 data.sequence_length=13 "
                 "data.topic_strength=0.7 router.gate_scale=1.5 cluster.devices=%d "
                 "cluster.devices_per_node=%d exchange.mode=%s exchange.chunks=%d %s",
                 comm->size == 3 ? 6 : 8, comm->size == 3 ? 3 : 4, mode_names[mode], chunks,
                 chosen);
        if (mode == 0) {
            set_up(&folded, &self, settings, 0);
            forward(&folded, 1);
            if (look_closely) {
                check_naive(&folded, settings);
            }
        }
        set_up(&mine, comm, settings, 0);
        for (int threads = 1; threads <= 2; threads++) {
            forward(&mine, threads);
            check_same_bits(&folded, &mine, settings);
        }
        tear_down(&mine);
    }
    tear_down(&folded);
}

/* --- golden layers --- */

typedef struct golden_case {
    const char *name, *settings;
    int32_t devices;
    int64_t tokens;
    double loss[3]; /* expert, device, communication, times alpha */
} golden_case;

static const golden_case golden_cases[] = {
    {"layer_1_ds2_seq",
     "model.hidden_size=6 model.moe_intermediate_size=5 model.num_experts=8 router.top_k=2 "
     "cluster.devices=4 router.topk_group=2 "
     "model.num_shared_experts=1 router.routed_scaling_factor=2 data.sequence_length=8 "
     "balance.scope=sequence",
     4,
     16,
     {0.12597923218590099, 0.23519827095550216, 0.32400201535223483}},
    {"layer_2_ds2_norm_batch_mse",
     "model.hidden_size=8 model.moe_intermediate_size=7 model.num_experts=6 router.top_k=3 "
     "cluster.devices=3 router.topk_group=2 "
     "model.num_shared_experts=2 router.norm_topk_prob=yes data.sequence_length=20 "
     "balance.scope=global",
     3,
     20,
     {0.09790222902981245, 0.20321781467197206, 0.30244753238969685}},
};

/* Array `name` of the case; caller frees. */
static double *golden(const golden_case *c, const char *name) {
    char path[1024];
    moe_npy_header header;
    void *data;
    moe_status st = {0};
    snprintf(path, sizeof path, "%s/layer/%s/%s.npy", MOESIM_GOLDEN_DIR, c->name, name);
    if (moe_npy_read(path, &header, &data, &st)) {
        fprintf(stderr, "%s\n", st.message);
        moe_comm_abort(1);
    }
    double *values = moe_alloc(header.count, sizeof *values, "test");
    for (int64_t i = 0; i < header.count; i++) {
        values[i] = moe_npy_f64(&header, data, i);
    }
    moe_free(data);
    return values;
}

/* to [count] = elements first .. of the array. */
static void load(const golden_case *c, const char *name, int64_t first, int64_t count, real *to) {
    double *from = golden(c, name);
    for (int64_t i = 0; i < count; i++) {
        to[i] = (real)from[first + i];
    }
    moe_free(from);
}

static void load_layer(const golden_case *c, layer_run *r) {
    int64_t h = r->m.c.model.hidden_size;
    int64_t f = r->m.c.model.moe_intermediate_size;
    int64_t shared = r->layer->shared.width;
    int64_t first = (int64_t)r->m.batch.first_device * r->m.context.placements[0].slots_per_device,
            count = r->layer->experts.count;
    load(c, "x", r->m.batch.first_token * h, r->m.batch.num_tokens * h, r->x);
    load(c, "wgate", 0, r->m.c.model.num_experts * h, r->layer->gate);
    load(c, "w1", first * f * h, count * f * h, r->layer->experts.w1);
    load(c, "w2", first * f * h, count * f * h, r->layer->experts.w2);
    load(c, "w3", first * f * h, count * f * h, r->layer->experts.w3);
    load(c, "sw1", 0, shared * h, r->layer->shared.w1);
    load(c, "sw2", 0, shared * h, r->layer->shared.w2);
    load(c, "sw3", 0, shared * h, r->layer->shared.w3);
}

/* Largest difference over the largest magnitude. */
static double distance(const double *expected, const real *found, int64_t count) {
    double error = 0, most = 0;
    for (int64_t i = 0; i < count; i++) {
        error =
            fmax(error, isnan((double)found[i]) ? INFINITY : fabs(expected[i] - (double)found[i]));
        most = fmax(most, fabs(expected[i]));
    }
    return count ? error / most : 0;
}

static void check_golden(const golden_case *c, const moe_comm *comm) {
    layer_run r;
    char settings[1024];
    double tolerance = sizeof(real) == sizeof(float) ? 1e-4 : 1e-9;
    double *y = golden(c, "y");
    double *idx = golden(c, "topk_idx");
    double *weight = golden(c, "topk_weight");
    snprintf(settings, sizeof settings,
             "%s router.group_limit=max balance.alpha_expert=0.1 balance.alpha_device=0.2 "
             "balance.alpha_comm=0.3",
             c->settings);
    set_up(&r, comm, settings, c->tokens);
    load_layer(c, &r);
    forward(&r, 1);
    int64_t h = r.m.c.model.hidden_size;
    int64_t k = r.m.c.router.top_k;
    int64_t first = r.m.batch.first_token;
    int64_t tokens = r.m.batch.num_tokens;
    int64_t wrong = 0;
    CHECK_MSG(distance(y + first * h, r.y, tokens * h) <= tolerance, "%s: y differs by %g", c->name,
              distance(y + first * h, r.y, tokens * h));
    CHECK_EQ(r.a->routing.num_selections, tokens * k);
    CHECK_MSG(distance(weight + first * k, r.a->routing.weight, tokens * k) <= tolerance,
              "%s: weights", c->name);
    for (int64_t i = 0; i < tokens * k; i++) {
        wrong += r.a->routing.expert[i] != (int32_t)idx[first * k + i];
    }
    CHECK_EQ(wrong, 0);
    for (int l = 0; l < 3; l++) { /* from float logits in the float build: within their rounding */
        CHECK_NEAR(r.m.metrics.layer[0].loss[l], c->loss[l],
                   sizeof(real) == sizeof(float) ? 1e-6 : 1e-12);
    }
    moe_free(y);
    moe_free(idx);
    moe_free(weight);
    tear_down(&r);
}

int main(int argc, char **argv) {
    moe_comm comm, self = comm_self();
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    for (int i = 0; i < (int)(sizeof cases / sizeof cases[0]); i++) {
        const bool mine = i % comm.size == comm.rank; /* the naive layer is slow: the ranks share
                                                         the cases */
        static const int chunks[] = {2, 3, 7};
        check_case(&comm, cases[i], 1, mine);
        check_case(&comm, cases[i], chunks[i % 3], mine);
    }
    for (int i = 0; i < (int)(sizeof golden_cases / sizeof golden_cases[0]); i++) {
        RUN(check_golden, &golden_cases[i],
            golden_cases[i].devices % comm.size == 0 ? &comm : &self);
    }
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
