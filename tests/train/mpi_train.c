/* mpi_train.c: a training step from inside: micro-batches, the balancing bias, steps that must not
 * update anything, and specialisation.
 *
 * Accumulation. The gradient of two micro-batches, halved, is that of one batch twice the size
 * where every loss is a plain mean over tokens or over whole sequences: the task, the z-loss, and
 * balance losses in scope `sequence`. In the scopes `device` and `global` it is not: there f and P
 * are averages over more tokens before they are multiplied, and mean(f) mean(P) is not mean(f P).
 * The test shows both. With balance.global_batch = step it holds in scope `global` too.
 *
 * ctest: f64 np=1,2,4 timeout=120 */
#include <math.h>
#include <string.h>

#include "base/gemm.h"
#include "base/rng.h"
#include "check.h"
#include "model_fixture.h"
#include "reference.h"
#include "train/specialization.h"
#include "train/train.h"
#include "world/comm.h"

static const double rounding = sizeof(real) == sizeof(float) ? 2e-5 : 1e-12; /* of sums in another
                                                                                order, relative to
                                                                                the largest */

typedef model_fixture fixture;

static const char common[] =
    "run.mode=train cluster.devices=4 model.num_experts=16 model.hidden_size=12 "
    "model.moe_intermediate_size=6 "
    "router.top_k=3 data.tokens_per_device=16 data.sequence_length=16 data.num_topics=5";

static void set_up(fixture *f, const moe_comm *comm, const char *settings) {
    model_fixture_init(f, comm, common, settings, 0);
}

static int64_t num_values(const moe_parameters *all) {
    int64_t n = 0;
    for (int i = 0; i < all->num; i++) {
        n += all->p[i].count * all->p[i].size;
    }
    return n;
}

/* Gradients (or values) of all parameters of this rank, one behind the other. Owner: the caller. */
static real *flat(const moe_parameters *all, bool values) {
    real *copy = moe_alloc(num_values(all), sizeof *copy, "test"), *to = copy;
    for (int i = 0; i < all->num; i++) {
        int64_t n = all->p[i].count * all->p[i].size;
        memcpy(to, values ? all->p[i].value : all->p[i].gradient, (size_t)n * sizeof *to);
        to += n;
    }
    return copy;
}

/* Largest |a + b - 2 c|, relative to the largest |2 c|. */
static double gap(const real *a, const real *b, const real *c, int64_t n) {
    double most = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] + (double)b[i] - 2 * (double)c[i]));
        largest = fmax(largest, fabs(2 * (double)c[i]));
    }
    return most / largest;
}

/* --- accumulation through moe_training_step: the mean of the gradients of the draws --- */

/* What one layer's record says, as numbers: integers that add up, then reals that are means. */
enum { NUM_SUMS = 12, NUM_MEANS = 8 };

static void figures(const moe_step_metrics *r, int64_t sums[NUM_SUMS], double means[NUM_MEANS]) {
    const moe_layer_metrics *l = &r->layer[1];
    const moe_volume *v = l->volume;
    const int64_t sum[NUM_SUMS] = {l->counts_per_expert[5],
                                   l->distinct_tokens_per_device[1],
                                   moe_sparse_at(&l->matrix, 0, 1),
                                   l->kept_per_expert[2],
                                   l->selections,
                                   l->dropped,
                                   l->tokens_by_reach[2],
                                   l->capacity.dropped_tokens,
                                   v[MOE_DISPATCH].rows,
                                   v[MOE_COMBINE].remote_bytes,
                                   v[MOE_DISPATCH_BACKWARD].by_level[MOE_LEVEL_NODE].bytes,
                                   v[MOE_COMBINE_BACKWARD].metadata_bytes};
    const double mean[NUM_MEANS] = {l->loss_raw[MOE_LOSS_EXPERT],
                                    l->loss_by_scope[MOE_SCOPE_SEQUENCE][MOE_LOSS_COMM],
                                    l->ideal[MOE_LOSS_COMM],
                                    l->mean_devices,
                                    l->mean_nodes,
                                    l->mean_remote_nodes,
                                    l->total,
                                    l->output_rms * l->output_rms};
    memcpy(sums, sum, sizeof sum);
    memcpy(means, mean, sizeof mean);
}

static void check_accumulate(const moe_comm *comm) {
    enum { STEP = 3 };
    const char *of_both = "train.optimizer=sgd train.learning_rate=0 balance.alpha_expert=0.1 "
                          "balance.scope=global model.num_layers=2 "
                          "capacity.policy=device capacity.capacity_factor=0.6";
    char settings[256];
    real *gradient[3];
    double loss[3], means[3][NUM_MEANS];
    int64_t n = 0, sums[3][NUM_SUMS], sequences[3];
    moe_status st = {0};
    for (int i = 0; i < 3; i++) { /* draws 2 STEP and 2 STEP + 1 alone, then both */
        fixture f;
        snprintf(settings, sizeof settings, "%s train.accumulate=%d", of_both, i == 2 ? 2 : 1);
        set_up(&f, comm, settings);
        CHECK_MSG(model_fixture_train(&f, i == 2 ? STEP : 2 * STEP + i, &st) == MOE_OK, "%s",
                  st.message);
        gradient[i] = flat(&f.training.parameters, false);
        n = num_values(&f.training.parameters);
        loss[i] = f.metrics.task_loss;
        figures(&f.metrics, sums[i], means[i]);
        sequences[i] = f.metrics.layer[1].capacity.num_sequences;
        CHECK(moe_step_metrics_all_passed(&f.metrics) && f.metrics.num_checks > 5);
        model_fixture_free(&f);
    }
    double distance = gap(gradient[0], gradient[1], gradient[2], n);
    CHECK_MSG(distance <= rounding, "accumulated gradients are off by %g", distance);
    CHECK_NEAR((loss[0] + loss[1]) / 2, loss[2], 1e-14);
    for (int j = 0; j < NUM_SUMS; j++) {
        CHECK_MSG(sums[0][j] + sums[1][j] == sums[2][j], "figure %d: %lld + %lld, not %lld", j,
                  (long long)sums[0][j], (long long)sums[1][j], (long long)sums[2][j]);
    }
    CHECK_MSG(sums[2][5] > 0 && sums[2][7] > 0, "nothing is dropped: %lld", (long long)sums[2][5]);
    for (int j = 0; j < NUM_MEANS; j++) {
        CHECK_NEAR((means[0][j] + means[1][j]) / 2, means[2][j], 1e-12);
    }
    CHECK_EQ(sequences[0] + sequences[1], sequences[2]);
    for (int i = 0; i < 3; i++) {
        moe_free(gradient[i]);
    }
}

/* --- two micro-batches beside one batch twice the size, one layer, the same tokens --- */

typedef struct piece {
    moe_config c;
    moe_batch batch;
    moe_input input;
    moe_context context;
    moe_layer layer;
    moe_parameters all;
    moe_activations a;
    moe_backward work;
    moe_step_metrics metrics;
    moe_stats whole; /* of both sequences, where they are to be counted together */
} piece;

/* Vectors of sequences first .. first + count - 1 of every device, of two in all; mean over tokens,
 * so that dy shrinks as they become more. */
static void fill(const piece *p, int first, int count, uint64_t key, double scale, real *x) {
    int64_t h = p->c.model.hidden_size, length = p->c.data.sequence_length;
    for (int64_t t = 0; t < p->batch.num_tokens; t++) {
        int64_t global = p->batch.first_token + t;
        int64_t device = global / (count * length);
        int64_t place = global % (count * length);
        moe_rng_normal((moe_rng){9, MOE_RNG_TEST},
                       (uint64_t)(device * 2 * length + first * length + place), key, scale,
                       x + t * h, h);
    }
}

/* Counts the first sequences of all devices and the second ones together. */
static void count_both(piece *p, const moe_comm *comm, real *x, real *y) {
    for (int first = 0; first < 2; first++) {
        fill(p, first, 1, 1, 1, x);
        moe_layer_forward(&p->layer, &p->context, x, y, &p->a, &p->metrics.layer[0]);
        if (first == 0) {
            moe_stats_reserve(&p->whole, p->c.model.num_experts, 4, 1);
        }
        moe_scopes_add_global(&p->a.scopes, comm, p->whole.cell);
    }
    p->context.whole_step = &p->whole;
}

/* Gradients of `count` sequences a device, from `first` on. Owner: the caller. */
static real *gradients(const moe_comm *comm,
                       const char *scope,
                       bool whole_step,
                       int first,
                       int count,
                       int64_t *n) {
    piece p = {.input = {0}};
    char settings[512];
    snprintf(settings, sizeof settings,
             "balance.scope=%s balance.alpha_expert=0.3 balance.alpha_device=0.2 "
             "balance.alpha_comm=0.1 balance.z_loss=0.01 balance.importance_loss=%g "
             "model.num_shared_experts=1 data.tokens_per_device=%d train.accumulate=%d%s",
             scope, whole_step ? 0.2 : 0, 16 * count, 3 - count,
             whole_step && count == 1 ? " balance.global_batch=step" : "");
    settings_resolve(&p.c, common, settings, comm->size);
    moe_batch_layout(&p.batch, 4 * 16 * count, 16, 4, comm->rank, comm->size);
    moe_context_init(&p.context, comm, &p.c, &p.batch, &p.input, NULL);
    p.context.keep = true;
    moe_layer_init(&p.layer, &p.context, 0);
    moe_parameters_init(&p.all, 4, p.batch.num_local_devices);
    moe_layer_indices indices = moe_layer_register(&p.layer, &p.context, &p.all);
    moe_step_metrics_init(&p.metrics, 1, p.c.model.num_experts, 4);
    int64_t elements = p.batch.num_tokens * p.c.model.hidden_size, bytes = 0;
    real *x = moe_alloc(3 * elements, sizeof *x, "test");
    real *dy = x + elements;
    real *y = dy + elements;
    if (whole_step && count == 1) {
        count_both(&p, comm, x, y);
    }
    fill(&p, first, count, 1, 1, x);
    fill(&p, first, count, 2, 1.0 / count, dy);
    moe_parameters_clear_gradients(&p.all);
    moe_layer_forward(&p.layer, &p.context, x, y, &p.a, &p.metrics.layer[0]);
    moe_layer_losses(&p.layer, &p.context, &p.a, &p.metrics.layer[0]);
    moe_layer_backward(&p.layer, &indices, &p.context, &p.a, &p.all, dy, &p.work, y,
                       &p.metrics.layer[0]);
    moe_parameters_reduce(&p.all, comm, 1, &bytes);
    real *result = flat(&p.all, false);
    *n = num_values(&p.all);
    moe_free(x);
    moe_layer_free(&p.layer);
    moe_activations_free(&p.a);
    moe_parameters_free(&p.all);
    moe_backward_free(&p.work);
    moe_stats_free(&p.whole);
    moe_step_metrics_free(&p.metrics);
    moe_context_free(&p.context);
    moe_batch_free(&p.batch);
    return result;
}

static void check_twice_the_size(const moe_comm *comm) {
    static const struct {
        const char *scope;
        bool whole_step, holds;
    } scopes[] = {{"sequence", false, true},
                  {"device", false, false},
                  {"global", false, false},
                  {"global", true, true}};
    for (int i = 0; i < 4; i++) {
        int64_t n;
        bool step = scopes[i].whole_step;
        real *first = gradients(comm, scopes[i].scope, step, 0, 1, &n);
        real *second = gradients(comm, scopes[i].scope, step, 1, 1, &n);
        real *both = gradients(comm, scopes[i].scope, step, 0, 2, &n);
        double distance = gap(first, second, both, n);
        moe_comm_max_f64(comm, &distance, 1);
        if (scopes[i].holds) {
            CHECK_MSG(distance <= rounding, "scope %s: off by %g", scopes[i].scope, distance);
        } else {
            CHECK_MSG(distance > 1e-4,
                      "scope %s: the same within %g, which the losses do not promise",
                      scopes[i].scope, distance);
        }
        moe_free(first);
        moe_free(second);
        moe_free(both);
    }
}

/* --- the losses of a step of three micro-batches as those of their tokens put together --- */

enum { MICRO_BATCHES = 3 };

typedef struct recorder { /* of the only layer, in every micro-batch */
    int64_t micro_batch;
    double *z;       /* [3,T,N] logits of the tokens of this rank, -Inf elsewhere */
    double *dlogits; /* [3,T,N] likewise */
} recorder;

static int record(void *self,
                  const moe_stack *s,
                  int32_t l,
                  moe_step_metrics *metrics,
                  moe_status *st) {
    recorder *r = self;
    const moe_batch *b = s->context->batch;
    const moe_activations *a = moe_stack_activations(s, l);
    const int64_t n = s->context->router.num_experts;
    const int64_t at = (r->micro_batch++ * b->num_tokens_global + b->first_token) * n;
    moe_tally_after_layer(NULL, s, l, metrics, st);
    for (int64_t i = 0; i < b->num_tokens * n; i++) {
        r->z[at + i] = a->gate_logits[i];
    }
    moe_layer_dlogits(&s->layer[l], s->context, a, r->dlogits + at, NULL);
    return MOE_OK;
}

/* Against the naive reference, which is given the tokens of the whole step as one batch. */
static void check_whole_step(const moe_comm *comm) {
    fixture f;
    moe_status st = {0};
    set_up(&f, comm,
           "balance.scope=global balance.global_batch=step train.accumulate=3 "
           "balance.alpha_expert=0.3 balance.alpha_device=0.2 balance.alpha_comm=0.1 "
           "balance.z_loss=0.01 router.norm_topk_prob=yes");
    const int64_t tokens = f.batch.num_tokens_global, all = MICRO_BATCHES * tokens;
    const int64_t n = f.c.model.num_experts;
    double *z = moe_alloc(3 * all * n, sizeof *z, "test"), *dlogits = z + all * n;
    double *wanted = dlogits + all * n, loss[MOE_NUM_LOSSES];
    int32_t *home = moe_alloc_zero(2 * all, sizeof *home, "test");
    recorder r = {0, z, dlogits};
    moe_observer observer = {.self = &r, .after_layer = record};
    for (int64_t i = 0; i < all * n; i++) {
        z[i] = dlogits[i] = -INFINITY;
        wanted[i] = 0;
    }
    for (int64_t t = 0; t < all; t++) {
        home[t] = (int32_t)(t % tokens / f.c.data.tokens_per_device);
    }
    f.training.observer = &observer;
    CHECK_MSG(model_fixture_train(&f, 2, &st) == MOE_OK, "%s", st.message);
    moe_comm_max_f64(comm, z, 2 * all * n);
    ref_batch b = {.router = &f.context.router,
                   .devices = f.c.cluster.devices,
                   .device = f.context.placements[0].device,
                   .num_tokens = all,
                   .z = z,
                   .home = home,
                   .scope = home + all,
                   .num_scopes = 1,
                   .comm_limit = f.context.balance.comm_limit};
    ref_counts *counts = ref_count(&b);
    ref_losses(&b, counts, loss);
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        CHECK_NEAR(f.metrics.layer[0].loss_by_scope[MOE_SCOPE_GLOBAL][i], loss[i], 1e-11);
    }
    ref_dlogits(&b, counts, f.training.alpha, wanted);
    for (int64_t i = 0; i < all * n; i++) {
        CHECK_MSG(fabs(dlogits[i] - MICRO_BATCHES * wanted[i]) <= 1e-13, "%lld: %g, not %g",
                  (long long)i, dlogits[i], MICRO_BATCHES * wanted[i]);
    }
    CHECK(moe_step_metrics_all_passed(&f.metrics));
    CHECK_EQ(r.micro_batch, MICRO_BATCHES);
    ref_counts_free(counts, 1);
    moe_free(home);
    moe_free(z);
    model_fixture_free(&f);
}

/* --- bias --- */

static double sign(double x) {
    return (x > 0) - (x < 0);
}

/* b after one step from the step's counts, both forms, centred or not; counts are those of both
 * micro-batches. */
static void check_bias(const moe_comm *comm, bool proportional, bool centered) {
    fixture f;
    moe_status st = {0};
    char settings[256];
    double rate = proportional ? 1e-4 : 0.01;
    double mean = 0;
    double shift = 0;
    snprintf(settings, sizeof settings,
             "router.bias_update_rate=%g router.bias_update=%s router.bias_centered=%s "
             "train.accumulate=2",
             rate, proportional ? "proportional" : "sign", centered ? "yes" : "no");
    set_up(&f, comm, settings);
    CHECK_MSG(model_fixture_train(&f, 0, &st) == MOE_OK, "%s", st.message);
    int32_t n = f.c.model.num_experts;
    const int64_t *counts = f.metrics.layer[0].counts_per_expert;
    for (int32_t e = 0; e < n; e++) {
        mean += (double)counts[e] / n;
    }
    CHECK_NEAR(mean * n, 2 * 3 * (double)f.batch.num_tokens_global, 1e-15);
    for (int32_t e = 0; e < n && centered; e++) {
        double gap_of = mean - (double)counts[e];
        shift += rate * (proportional ? gap_of : sign(gap_of)) / n;
    }
    for (int32_t e = 0; e < n; e++) {
        double gap_of = mean - (double)counts[e],
               wanted = rate * (proportional ? gap_of : sign(gap_of)) - shift;
        CHECK_MSG(fabs(f.stack.layer[0].bias[e] - wanted) <= 1e-15, "expert %d: %g, not %g", e,
                  f.stack.layer[0].bias[e], wanted);
    }
    model_fixture_free(&f);
}

/* --- a failed step updates nothing --- */

static void check_failed_step(const moe_comm *comm) {
    fixture f;
    moe_status st = {0};
    set_up(&f, comm, "router.bias_update_rate=0.01");
    real *before = flat(&f.training.parameters, true);
    if (comm->rank == 0) {
        f.training.task.teacher[0] = NAN; /* its target is NaN wherever rank 0 meets topic 0 */
    }
    CHECK_EQ(model_fixture_train(&f, 7, &st), MOE_RUN_FAILED);
    CHECK_MSG(strstr(st.message, "step 7") && strstr(st.message, "rank 0"), "%s", st.message);
    real *after = flat(&f.training.parameters, true);
    CHECK(memcmp(before, after, (size_t)num_values(&f.training.parameters) * sizeof *after) == 0);
    CHECK_EQ(f.stack.layer[0].bias[0], 0);
    moe_free(before);
    moe_free(after);
    model_fixture_free(&f);
}

/* --- memory: after some steps nothing grows but the room for rows and for the fullest expert,
 * which follows the routing by steps of a quarter --- */

static void check_memory(const moe_comm *comm) {
    fixture f;
    moe_status st = {0};
    int64_t live[3] = {0};
    set_up(&f, comm, "exchange.mode=selection"); /* a fixed number of rows in all; only their split
                                                    over ranks moves */
    for (int64_t step = 0; step < 60; step++) {
        CHECK_MSG(model_fixture_train(&f, step, &st) == MOE_OK, "%s", st.message);
        live[step / 20] = moe_alloc_live_bytes();
    }
    CHECK_MSG(live[2] - live[1] <= live[1] / (comm->size > 1 ? 4 : 20),
              "%lld bytes are live after 40 steps, %lld after 60", (long long)live[1],
              (long long)live[2]);
    model_fixture_free(&f);
}

/* --- specialisation --- */

/* Loss 0 is the validation loss; nothing that training needs is changed; taking all but K experts
 * away costs most. */
static void check_specialize(const moe_comm *comm) {
    fixture f;
    moe_status st = {0};
    int64_t total = 0;
    set_up(&f, comm, "model.num_layers=2 model.num_shared_experts=1 router.norm_topk_prob=yes");
    for (int64_t step = 0; step < 40; step++) {
        CHECK_MSG(model_fixture_train(&f, step, &st) == MOE_OK, "%s", st.message);
    }
    real *before = flat(&f.training.parameters, true);
    double loss = moe_training_validate(&f.training, 2);
    moe_specialization s = moe_specialization_measure(&f.training, 2);
    real *after = flat(&f.training.parameters, true);
    CHECK(memcmp(before, after, (size_t)num_values(&f.training.parameters) * sizeof *after) == 0);
    CHECK(s.loss[0] == loss && moe_training_validate(&f.training, 2) == loss);
    CHECK_EQ(s.num_disabled, 5); /* 0 1 2 4 8 of 16 - 3 */
    for (int32_t i = 1; i < s.num_disabled; i++) {
        CHECK_MSG(s.loss[i] > s.loss[0], "without the best %d experts: %g, with them %g",
                  s.disabled[i], s.loss[i], s.loss[0]);
    }
    CHECK(s.loss_without_shared > s.loss[0]);
    for (int64_t i = 0; i < 2 * (int64_t)s.num_domains * s.num_experts; i++) {
        total += s.domain_load[i];
    }
    CHECK_EQ(total, 2 * 2 * 3 * f.batch.num_tokens_global);
    moe_specialization_free(&s);
    moe_free(before);
    moe_free(after);
    model_fixture_free(&f);
}

static void check_score(void) {
    const int64_t ideal[2 * 4] = {5, 5, 0, 0, 0, 0, 5, 5};
    const int64_t none[2 * 4] = {6, 2, 4, 4, 3, 1, 2, 2};
    const int64_t one[4] = {1, 2, 3, 4};
    const int64_t empty[8] = {0};
    moe_domain_score s = moe_specialization_score(ideal, 2, 4, 2);
    CHECK_NEAR(s.score, 1, 1e-15);
    CHECK_NEAR(s.information, log(2), 1e-15);
    CHECK_NEAR(s.chance, 1.0 * 3 / (2 * 20) / log(2), 1e-15);
    CHECK(fabs(moe_specialization_score(none, 2, 4, 2).score) < 1e-15);
    CHECK(isnan(moe_specialization_score(one, 1, 4, 2).score) &&
          isnan(moe_specialization_score(ideal, 2, 4, 4).score));
    CHECK(moe_specialization_score(empty, 2, 4, 2).score == 0);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    RUN(check_accumulate, &comm);
    RUN(check_twice_the_size, &comm);
    RUN(check_whole_step, &comm);
    for (int i = 0; i < 4; i++) {
        RUN(check_bias, &comm, i & 1, i & 2);
    }
    RUN(check_failed_step, &comm);
    RUN(check_memory, &comm);
    RUN(check_specialize, &comm);
    RUN(check_score);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
