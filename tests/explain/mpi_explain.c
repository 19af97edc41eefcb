/* mpi_explain.c: an explanation of every token adds up. Shares of the losses to the losses, rows
 * to the volume, contributions to y; gradients are the program's, bit for bit; groups and choices
 * those of the oracle; and the same numbers when the devices are folded onto one rank. A derivation
 * agrees with what is reported, and does not when what is reported is wrong.
 *
 * ctest: np=1,2,4 timeout=60 */
#include <limits.h>
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "check.h"
#include "data/synthetic.h"
#include "explain/explain.h"
#include "explain/json.h"
#include "model_fixture.h"
#include "reference.h"
#include "world/comm.h"

typedef struct layer_run {
    model_fixture m;
    moe_layer *layer; /* the only one, and what it computed */
    moe_activations *a;
    real *y;
    double *dlogits;
} layer_run;

static void forward(layer_run *r, const moe_comm *comm, const char *settings) {
    *r = (layer_run){0};
    model_fixture_init(&r->m, comm, "", settings, 0);
    const moe_config *c = &r->m.c;
    const moe_context *context = &r->m.context;
    moe_step_metrics *metrics = &r->m.metrics;
    real *x = moe_stack_input(&r->m.stack);
    r->layer = &r->m.stack.layer[0];
    r->a = &r->m.stack.activations[0];
    r->y = r->m.stack.y;
    r->dlogits =
        moe_alloc(r->m.batch.num_tokens * c->model.num_experts, sizeof *r->dlogits, "test");
    moe_step_metrics_clear(metrics);
    metrics->num_tokens = r->m.batch.num_tokens_global;
    moe_synthetic_vectors(&c->data, c->run.seed, c->model.hidden_size, &r->m.batch, 0, x, NULL);
    moe_layer_forward(r->layer, context, x, r->y, r->a, &metrics->layer[0]);
    moe_tally_layer(r->layer, context, r->a, r->y, metrics);
    moe_layer_dlogits(r->layer, context, r->a, r->dlogits, NULL);
}

static void tear_down(layer_run *r) {
    model_fixture_free(&r->m);
    moe_free(r->dlogits);
}

/* --- one token --- */

/* The oracle's choice, and its groups: those that hold a chosen expert must be admitted, and no
 * more than the limit are. */
static void check_choice(const layer_run *r, const moe_explained_layer *l) {
    const moe_router *router = &r->m.context.router;
    int32_t n = router->num_experts, expert[64], admitted = 0;
    double s[64], weight[64], lse;
    ref_scores(router, l->logit, s, &lse);
    CHECK_NEAR(l->lse, lse, 1e-12);
    for (int32_t i = 0; i < n; i++) {
        CHECK_NEAR(l->score[i], s[i], 1e-12);
    }
    int32_t count = ref_select(router, l->logit, s, expert, weight);
    CHECK_EQ(l->num_choices, count);
    for (int32_t k = 0; k < count && k < l->num_choices; k++) {
        CHECK_EQ(l->choice[k].expert, expert[k]);
        CHECK_NEAR(l->choice[k].weight, weight[k], 1e-6);
        CHECK_NEAR(l->choice[k].score / l->weight_divisor * l->weight_factor, weight[k], 1e-6);
        if (l->num_groups) {
            CHECK_EQ(l->admitted[expert[k] / (n / l->num_groups)], 1);
        }
    }
    for (int32_t g = 0; g < l->num_groups; g++) {
        admitted += l->admitted[g] == 1;
    }
    if (l->num_groups) {
        CHECK_EQ(admitted, router->topk_group);
    }
    /* the score of an admitted group is at least that of every other */
    for (int32_t g = 0; g < l->num_groups; g++) {
        for (int32_t other = 0; other < l->num_groups; other++) {
            CHECK(!(l->admitted[g] == 1 && l->admitted[other] == 0 &&
                    l->group_score[g] < l->group_score[other]));
        }
    }
}

/* Every choice is served, moved or dropped as the capacity's order says; rows go to the devices
 * that serve. */
static void check_fate(const layer_run *r, const moe_explanation *e, const moe_explained_layer *l) {
    double norm = 0, part = 0;
    int32_t served = 0, pairs = 0;
    for (int32_t k = 0; k < l->num_choices; k++) {
        const moe_explained_choice *choice = &l->choice[k];
        served += choice->server >= 0;
        if (r->m.c.capacity.policy != MOE_CAPACITY_NONE && !l->exempt) {
            CHECK((choice->place <= choice->budget) == (choice->server == choice->expert));
        }
        if (choice->server >= 0) {
            part += choice->share;
        }
        if (choice->server >= 0) {
            norm = fmax(norm, choice->contribution);
        }
    }
    const int32_t per_node = r->m.c.cluster.devices_per_node;
    const bool two_level = r->m.c.exchange.mode == MOE_EXCHANGE_TWO_LEVEL;
    for (int32_t i = 0; i < l->num_rows; i++) {
        const moe_explained_row *row = &l->row[i];
        const bool to_node = two_level && row->hop == 0;
        int32_t here = 0;
        pairs += row->pairs;
        CHECK_EQ(row->level, moe_level_of(row->from, row->device, per_node));
        CHECK(row->hop == 0 ? row->from == e->device
                            : row->from % per_node == e->device % per_node &&
                                  row->from / per_node == row->device / per_node);
        CHECK(!to_node || row->device % per_node == e->device % per_node);
        for (int32_t k = 0; k < l->num_choices; k++) {
            const int32_t d = l->choice[k].served_on;
            here += to_node ? d >= 0 && d / per_node == row->device / per_node : d == row->device;
        }
        CHECK(r->m.c.exchange.mode == MOE_EXCHANGE_SELECTION ? here >= 1 : here == row->pairs);
    }
    CHECK_EQ(pairs, two_level ? 2 * served : served);
    if (!isnan(l->shared_norm)) {
        part += l->shared_share;
    }
    if (served > 0 || !isnan(l->shared_norm)) {
        CHECK_NEAR(part, 1, 1e-5);
    }
    CHECK_MSG(l->gap <= (sizeof(real) == 4 ? 1e-5 : 1e-13) * (1 + norm),
              "y and its parts differ by %g", l->gap);
}

/* On the token's rank: the row of dlogits and of y. */
static void check_own(const layer_run *r, const moe_explanation *e, const moe_explained_layer *l) {
    int64_t t = e->token - r->m.batch.first_token;
    int64_t n = l->num_experts;
    int64_t h = r->m.c.model.hidden_size;
    double squares = 0, most = 0;
    if (t < 0 || t >= r->m.batch.num_tokens) {
        return;
    }
    CHECK(memcmp(l->balance_gradient, r->dlogits + t * n, (size_t)n * sizeof(double)) == 0);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
            sum += l->gradient[loss * n + i];
        }
        most = fmax(most, fabs(sum - l->balance_gradient[i]));
    }
    CHECK_MSG(most < 1e-15, "gradients of the losses and of all of them differ by %g", most);
    for (int64_t i = 0; i < h; i++) {
        squares += (double)r->y[t * h + i] * (double)r->y[t * h + i];
    }
    CHECK_NEAR(l->y_norm, sqrt(squares), 1e-12);
}

/* --- all tokens --- */

typedef struct totals {
    double share[MOE_NUM_LOSSES];
    int64_t rows, bytes, metadata, dropped;
} totals;

static void add_token(const layer_run *r, int64_t token, totals *sum, char **text) {
    moe_explainer x = {.token = true};
    moe_explanation_init(&x.explanation, token, 1);
    moe_explain_forward(&x, r->layer, &r->m.context, r->a, r->y, &r->m.metrics.layer[0]);
    const moe_explained_layer *l = &x.explanation.layer[0];
    check_choice(r, l);
    check_fate(r, &x.explanation, l);
    check_own(r, &x.explanation, l);
    for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
        sum->share[loss] += l->loss[loss].share;
    }
    for (int32_t i = 0; i < l->num_rows; i++) {
        sum->rows++;
        sum->bytes += l->row[i].bytes;
        sum->metadata += l->row[i].metadata_bytes;
    }
    for (int32_t k = 0; k < l->num_choices; k++) {
        sum->dropped += l->choice[k].server < 0;
    }
    for (int32_t i = 0; i < l->num_rows; i++) {
        l->row[i].rank = 0; /* which depends on the number of ranks */
    }
    x.explanation.rank = 0;
    *text = moe_explain_json(&r->m.c, &x.explanation, NULL);
    moe_explainer_free(&x);
}

static void check_totals(const layer_run *r, const totals *sum) {
    const moe_layer_metrics *metrics = &r->m.metrics.layer[0];
    for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
        bool additive =
            loss != MOE_LOSS_IMPORTANCE && loss != MOE_LOSS_LOAD && loss != MOE_LOSS_USAGE_VARIANCE;
        if (additive) {
            CHECK_NEAR(sum->share[loss], metrics->loss_raw[loss], 1e-11);
        } else {
            CHECK(isnan(sum->share[loss]));
        }
    }
    CHECK_EQ(sum->rows, metrics->volume[MOE_DISPATCH].rows);
    CHECK_EQ(sum->bytes, metrics->volume[MOE_DISPATCH].logical_bytes);
    CHECK_EQ(sum->metadata, metrics->volume[MOE_DISPATCH].metadata_bytes);
    CHECK_EQ(sum->dropped, metrics->dropped);
}

/* --- the step --- */

static int32_t derived(const layer_run *r, int32_t *count) {
    moe_explainer x = {.step = true};
    moe_status st = {0};
    moe_explain_forward(&x, r->layer, &r->m.context, r->a, r->y, &r->m.metrics.layer[0]);
    int code = moe_explain_finish(&x, &r->m.context, &r->m.metrics, &st);
    int64_t disagree = x.derivation.disagree;
    moe_comm_bcast(r->m.context.comm, &disagree, sizeof disagree, 0);
    CHECK_EQ(code, disagree ? MOE_RUN_FAILED : MOE_OK);
    *count = x.derivation.count;
    moe_explainer_free(&x);
    return (int32_t)disagree;
}

/* A figure that is reported wrong by little is found out. */
static void check_derivation(layer_run *r) {
    moe_layer_metrics *l = &r->m.metrics.layer[0];
    int32_t count;
    CHECK_EQ(derived(r, &count), 0);
    CHECK(r->m.context.comm->rank != 0 || count >= 60);
    l->loss_by_scope[r->m.c.balance.scope][MOE_LOSS_DEVICE] *= 1 + 1e-9;
    CHECK_EQ(derived(r, &count), 1);
    l->loss_by_scope[r->m.c.balance.scope][MOE_LOSS_DEVICE] /= 1 + 1e-9;
    l->volume[MOE_DISPATCH].rows++;
    CHECK(derived(r, &count) >= 1);
    l->volume[MOE_DISPATCH].rows--;
    l->total += 1e-6;
    CHECK_EQ(derived(r, &count), 1);
    l->total -= 1e-6;
}

/* --- cases --- */

static const char *const cases[] = {
    "model.num_shared_experts=1 router.top_k=6 router.group_limit=max router.topk_group=3 "
    "balance.alpha_expert=0.003 balance.alpha_device=0.05 balance.alpha_comm=0.02 "
    "balance.scope=sequence exchange.mode=token",

    "router.score_func=sigmoid router.norm_topk_prob=yes router.routed_scaling_factor=2.5 "
    "router.group_limit=top2_sum router.topk_group=2 router.top_k=4 "
    "balance.alpha_expert=0.1 balance.alpha_comm=0.1 balance.z_loss=0.01 balance.scope=device "
    "cluster.devices_per_node=2",

    "router.top_k=4 exchange.mode=two_level cluster.devices_per_node=2 "
    "capacity.policy=expert capacity.capacity_factor=0.6",

    "router.score_func=sqrtsoftplus router.top_k=3 "
    "balance.alpha_device=1 balance.scope=global balance.device_p=mean "
    "balance.importance_loss=0.1 model.norm=rmsnorm "
    "capacity.policy=expert capacity.capacity_factor=0.6",

    "router.top_k=2 router.score_func=softmax_topk "
    "capacity.policy=device capacity.capacity_factor=0.8 capacity.exempt_sequences=0.3 "
    "balance.alpha_comm=1 balance.comm_count=selections "
    "exchange.mode=selection model.expert_type=silu",

    "router.top_k=2 capacity.policy=expert capacity.capacity_factor=0.7 "
    "capacity.overflow=next_choice capacity.drop=position capacity.first_choices=yes "
    "balance.aux_form=gshard balance.alpha_expert=0.1 balance.scope=device",

    "router.top_k=2 router.norm_topk_prob=yes "
    "capacity.policy=sequence capacity.capacity_factor=1 capacity.drop=position "
    "capacity.renormalize=yes "
    "balance.aux_form=switch balance.alpha_expert=0.01 balance.scope=sequence",
};

static void check_case(const moe_comm *comm, const char *chosen) {
    moe_comm self = {
        .comm = MPI_COMM_SELF, .size = 1, .local_size = 1, .num_hosts = 1, .max_count = INT_MAX};
    layer_run folded, mine;
    totals sum = {.rows = 0}, alone = {.rows = 0};
    char settings[1024];
    snprintf(settings, sizeof settings,
             "model.num_experts=32 model.hidden_size=16 model.moe_intermediate_size=8 "
             "data.tokens_per_device=3 data.sequence_length=5 data.topic_strength=0.7 "
             "router.gate_scale=1.5 cluster.devices=8 %s",
             chosen);
    forward(&folded, &self, settings);
    forward(&mine, comm, settings);
    for (int64_t token = 0; token < mine.m.batch.num_tokens_global; token++) {
        char *here, *there;
        add_token(&mine, token, &sum, &here);
        add_token(&folded, token, &alone, &there);
        CHECK_MSG(strcmp(here, there) == 0, "token %lld differs from one rank: %s",
                  (long long)token, chosen);
        free(here);
        free(there);
    }
    check_totals(&mine, &sum);
    check_derivation(&mine);
    tear_down(&mine);
    tear_down(&folded);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1); /* a token is little work, and the ranks share the cores */
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        RUN(check_case, &comm, cases[i]);
    }
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
