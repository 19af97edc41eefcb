/* mpi_train_gradient.c: every gradient of a training step of two layers against central
 * differences of task loss + sum over layers of sum alpha L + the loss over all layers, with what
 * chance does to the gate (noise of fixed and of learned scale, smooth load, input jitter, expert
 * dropout) held fast by its keys, and with Mixtral's loss over the tokens of all layers in each
 * scope.
 *
 * ctest: f64 gemm np=1,2,4 timeout=120 */
#include <math.h>
#include <string.h>

#include "base/gemm.h"
#include "base/rng.h"
#include "check.h"
#include "model_fixture.h"
#include "train/train.h"
#include "world/comm.h"

static const double step = sizeof(real) == sizeof(float) ? 2e-3 : 1e-5;
static const double tolerance = sizeof(real) == sizeof(float) ? 3e-2 : 1e-6;

typedef model_fixture fixture;

static const char common[] = "run.mode=train cluster.devices=4 model.num_experts=8 "
                             "model.hidden_size=6 model.moe_intermediate_size=4 "
                             "router.top_k=2 model.num_layers=2 data.tokens_per_device=5 "
                             "data.sequence_length=8 data.num_topics=5 "
                             "train.optimizer=sgd train.learning_rate=0";

/* W_noise begins at 0: numbers of its own show more. */
static void stir_noise(moe_layer *layer, int64_t n) {
    if (layer->gate_noise) {
        moe_rng_normal((moe_rng){3, MOE_RNG_TEST}, (uint64_t)layer->index, 0, 0.5,
                       layer->gate_noise, n);
    }
}

static void set_up(fixture *f, const moe_comm *comm, const char *settings) {
    model_fixture_init(f, comm, common, settings, 0);
    for (int32_t l = 0; l < f->stack.num_layers; l++) {
        stir_noise(&f->stack.layer[l], (int64_t)f->c.model.num_experts * f->c.model.hidden_size);
    }
}

/* The objective on every rank; *selection is a fingerprint of who was chosen. */
static double objective(fixture *f, int64_t *selection) {
    moe_status st = {0};
    CHECK_MSG(model_fixture_train(f, 7, &st) == MOE_OK, "%s", st.message);
    double sum = f->metrics.task_loss + f->metrics.all_layers.loss;
    *selection = 0;
    for (int32_t l = 0; l < moe_config_moe_layers(&f->c); l++) {
        const moe_routing *r = &f->stack.activations[l].routing;
        sum += f->metrics.layer[l].total;
        for (int64_t i = 0; i < r->num_selections; i++) { /* of the last micro-batch */
            *selection = (*selection * 31 + r->expert[i]) % 1000003;
        }
        for (int32_t i = 0; i < f->c.model.num_experts; i++) { /* of all of them */
            *selection = (*selection * 31 + f->metrics.layer[l].counts_per_expert[i]) % 1000003;
        }
    }
    moe_comm_sum_i64(f->context.comm, selection, 1);
    return sum;
}

/* Collective. Central difference, where the ranks with value != NULL move it; *same = the selection
 * did not change. */
static double difference(fixture *f, real *value, int64_t chosen, bool *same) {
    int64_t up, down;
    real before = value ? *value : 0;
    if (value) {
        *value = before + (real)step;
    }
    double high = objective(f, &up);
    if (value) {
        *value = before - (real)step;
    }
    double low = objective(f, &down);
    if (value) {
        *value = before;
    }
    *same = up == chosen && down == chosen;
    return (high - low) / (2 * step);
}

static double rms(const real *values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)values[i] * values[i];
    }
    return n ? sqrt(sum / (double)n) : 0;
}

/* A few elements of a parameter; gradient is a copy, since a step makes it anew. */
static void check_parameter(fixture *f,
                            const char *settings,
                            const moe_parameter *p,
                            const real *gradient,
                            int64_t chosen,
                            int *compared) {
    double scale = rms(gradient, p->count * p->size);
    moe_comm_max_f64(f->context.comm, &scale, 1);
    CHECK_MSG(scale > 0, "%s: %s has no gradient at all", settings, p->name);
    for (uint64_t i = 0; i < 3; i++) {
        int64_t at = (int64_t)(moe_rng_bits((moe_rng){9, MOE_RNG_TEST}, (uint64_t)strlen(p->name),
                                            i, 0) %
                               (uint64_t)(p->count_global * p->size)),
                here = -1;
        bool same;
        for (int64_t b = 0; b < p->count; b++) {
            if ((p->expert ? p->id[b] : 0) == at / p->size) {
                here = b * p->size + at % p->size;
            }
        }
        double exact = here < 0 ? -INFINITY : (double)gradient[here];
        moe_comm_max_f64(f->context.comm, &exact, 1);
        double numeric = difference(f, here < 0 ? NULL : p->value + here, chosen, &same);
        if (!same) {
            continue;
        }
        ++*compared;
        CHECK_MSG(fabs(numeric - exact) <= tolerance * (fabs(exact) + scale),
                  "%s: %s[%lld]: %.12g by differences, %.12g by backward", settings, p->name,
                  (long long)at, numeric, exact);
    }
}

static void check_settings(const moe_comm *comm, const char *settings) {
    fixture f;
    int64_t chosen;
    int compared = 0;
    set_up(&f, comm, settings);
    const moe_parameters *all = &f.training.parameters;
    real **gradient = moe_alloc(all->num, sizeof *gradient, "test");
    objective(&f, &chosen);
    for (int i = 0; i < all->num; i++) {
        int64_t n = all->p[i].count * all->p[i].size;
        gradient[i] = moe_alloc(n, sizeof(real), "test");
        memcpy(gradient[i], all->p[i].gradient, (size_t)n * sizeof(real));
    }
    for (int i = 0; i < all->num; i++) {
        check_parameter(&f, settings, &all->p[i], gradient[i], chosen, &compared);
        moe_free(gradient[i]);
    }
    moe_free(gradient);
    CHECK_MSG(compared >= all->num, "%s: only %d elements could be compared", settings, compared);
    model_fixture_free(&f);
}

int main(int argc, char **argv) {
    static const char *const settings[] = {
        "balance.alpha_expert=0.3 balance.aux_form=mixtral balance.aux_layers=all "
        "balance.scope=global balance.z_loss=0.01",
        "balance.alpha_expert=0.3 balance.aux_form=mixtral balance.aux_layers=all "
        "balance.scope=device router.norm_topk_prob=yes",
        "balance.alpha_expert=0.3 balance.aux_form=mixtral balance.aux_layers=all "
        "balance.scope=sequence router.score_func=sigmoid "
        "balance.alpha_device=0.1",
        "router.noise=0.3 balance.alpha_expert=0.1 router.expert_dropout=0.2",
        "router.noise=0.3 balance.load_form=tutel balance.load_loss=0.2 "
        "balance.importance_of=scores balance.importance_loss=0.1",
        "router.noise=0.3 balance.importance_of=scores balance.importance_loss=0.2 "
        "router.score_func=sigmoid router.expert_dropout=0.2 balance.scope=global",
        "router.noise=0.3 balance.load_form=shazeer balance.load_loss=0.2 balance.scope=global",
        "router.noise_form=softplus balance.alpha_expert=0.1 router.norm_topk_prob=yes",
        "router.noise_form=softplus router.noise=0.01 router.score_func=softmax_topk "
        "balance.load_form=shazeer balance.load_loss=0.3 "
        "balance.importance_loss=0.1 balance.scope=device",
        "router.noise_form=softplus router.score_func=sigmoid balance.load_form=shazeer "
        "balance.load_loss=0.3 balance.scope=global "
        "router.expert_dropout=0.2 router.jitter=0.2",
        "router.jitter=0.3 balance.alpha_expert=0.1 model.num_shared_experts=1",
        "router.jitter=0.3 router.jitter_experts=yes balance.alpha_expert=0.1 "
        "model.num_shared_experts=1 exchange.mode=selection",
        "model.attention=mha model.num_heads=3 data.sequence_length=5 balance.alpha_expert=0.1",
        "model.attention=mla model.num_heads=2 model.rope_dim=4 model.kv_lora_rank=5 "
        "model.q_lora_rank=4 data.sequence_length=5 balance.alpha_device=0.1",
        "model.attention=mla model.num_heads=2 model.rope_dim=2 model.kv_lora_rank=5 "
        "data.sequence_length=5 train.recompute=yes",
        "model.num_layers=3 model.first_dense_layers=2 balance.alpha_expert=0.1",
        "model.num_layers=3 model.first_dense_layers=1 model.intermediate_size=5 model.norm=none "
        "model.expert_type=gelu train.recompute=yes balance.alpha_device=0.1",
        "model.num_layers=2 model.first_dense_layers=1 model.attention=mla model.num_heads=2 "
        "model.rope_dim=2 model.kv_lora_rank=5 data.sequence_length=5 router.noise=0.3",
        "train.accumulate=2 balance.scope=global balance.alpha_expert=0.3 balance.alpha_device=0.2",
        "train.accumulate=3 balance.scope=global balance.global_batch=step "
        "balance.alpha_expert=0.3 balance.alpha_device=0.2 balance.alpha_comm=0.1 "
        "balance.z_loss=0.01 router.score_func=sigmoid",
        "train.accumulate=2 balance.scope=global balance.global_batch=step router.noise=0.3 "
        "balance.load_form=shazeer balance.load_loss=0.2 balance.importance_loss=0.1",
        "train.accumulate=2 balance.scope=global balance.global_batch=step "
        "balance.alpha_expert=0.3 balance.aux_form=mixtral balance.aux_layers=all "
        "router.jitter=0.2 router.expert_dropout=0.2",
    };
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        RUN(check_settings, &comm, settings[i]);
    }
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
