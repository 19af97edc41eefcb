/* mpi_layer_backward.c: every gradient of a layer against central differences of total = <y, dy> +
 * sum alpha L: each kind of parameter and the input, over score functions, normalisations, group
 * limits, loss scopes, expert types, exchange modes and shared experts, and over every value of the
 * keys that choose a score function, a form of the loss and a type of experts. The double build
 * bounds it tightly, the float build loosely.
 *
 * ctest: f64 gemm np=1,2,4 timeout=120 */
#include <math.h>
#include <string.h>

#include "base/gemm.h"
#include "base/rng.h"
#include "check.h"
#include "config/table.h"
#include "model_fixture.h"
#include "world/comm.h"

static const double step = sizeof(real) == sizeof(float) ? 2e-3 : 1e-5;
static const double tolerance = sizeof(real) == sizeof(float) ? 2e-2 : 2e-7;

typedef struct fixture {
    model_fixture m;
    moe_layer *layer; /* the only one, and what it computed */
    moe_activations *a;
    moe_parameters all;
    real *x, *dy, *y, *dx;
} fixture;

static const char common[] = "cluster.devices=4 model.num_experts=16 model.hidden_size=10 "
                             "model.moe_intermediate_size=6 router.top_k=3 "
                             "data.tokens_per_device=6 data.sequence_length=9 "
                             "balance.alpha_expert=0.3 balance.alpha_device=0.2 "
                             "balance.alpha_comm=0.1 balance.z_loss=0.01";

/* Two tokens fewer than the settings say, so that devices hold unequal numbers. */
static void set_up(fixture *f, const moe_comm *comm, const char *settings) {
    *f = (fixture){0};
    settings_resolve(&f->m.c, common, settings, comm->size);
    int64_t h = f->m.c.model.hidden_size;
    model_fixture_make(&f->m, comm, f->m.c.cluster.devices * f->m.c.data.tokens_per_device - 2);
    f->m.context.keep = !f->m.c.train.recompute;
    moe_parameters_init(&f->all, f->m.batch.devices, f->m.batch.num_local_devices);
    moe_stack_register(&f->m.stack, &f->all);
    f->layer = &f->m.stack.layer[0];
    f->a = &f->m.stack.activations[0];
    f->x = moe_stack_input(&f->m.stack);
    f->y = f->m.stack.y;
    f->dy = moe_alloc(f->m.batch.num_tokens * h + 1, sizeof(real), "test");
    f->dx = moe_alloc(f->m.batch.num_tokens * h + 1, sizeof(real), "test");
    for (int64_t t = 0; t < f->m.batch.num_tokens; t++) {
        uint64_t token = (uint64_t)(f->m.batch.first_token + t);
        moe_rng_normal((moe_rng){5, MOE_RNG_TEST}, token, 1, 1, f->x + t * h, h);
        moe_rng_normal((moe_rng){5, MOE_RNG_TEST}, token, 2, 1, f->dy + t * h, h);
    }
}

static void tear_down(fixture *f) {
    model_fixture_free(&f->m);
    moe_parameters_free(&f->all);
    moe_free(f->dy);
    moe_free(f->dx);
}

/* total on every rank; *selection is a fingerprint of who was chosen. */
static double total(fixture *f, int64_t *selection) {
    double sum = 0;
    moe_layer_forward(f->layer, &f->m.context, f->x, f->y, f->a, &f->m.metrics.layer[0]);
    moe_layer_losses(f->layer, &f->m.context, f->a, &f->m.metrics.layer[0]);
    for (int64_t i = 0; i < f->m.batch.num_tokens * f->m.c.model.hidden_size; i++) {
        sum += (double)f->y[i] * f->dy[i];
    }
    double *parts = moe_alloc(f->m.context.comm->size, sizeof *parts, "test");
    int64_t *bytes = moe_alloc(f->m.context.comm->size, sizeof *bytes, "test");
    for (int q = 0; q < f->m.context.comm->size; q++) {
        bytes[q] = sizeof(double);
    }
    moe_comm_allgatherv(f->m.context.comm, &sum, parts, bytes);
    sum = 0;
    for (int q = 0; q < f->m.context.comm->size; q++) {
        sum += parts[q];
    }
    moe_free(parts);
    moe_free(bytes);
    *selection = 0;
    for (int64_t i = 0; i < f->a->routing.num_selections; i++) {
        *selection = (*selection * 31 + f->a->routing.expert[i]) % 1000003;
    }
    for (int64_t i = 0; f->a->drop.on && i < f->a->routing.num_selections; i++) {
        *selection = (*selection * 31 + f->a->drop.server[i] + 1) % 1000003;
    }
    moe_comm_sum_i64(f->m.context.comm, selection, 1);
    return sum + f->m.metrics.layer[0].total;
}

/* Collective. d total / d *value, where the ranks with value != NULL move it; *same = the selection
 * did not change. */
static double difference(fixture *f, real *value, bool *same) {
    int64_t up, down;
    real before = value ? *value : 0;
    if (value) {
        *value = before + (real)step;
    }
    double high = total(f, &up);
    if (value) {
        *value = before - (real)step;
    }
    double low = total(f, &down);
    if (value) {
        *value = before;
    }
    *same = up == down;
    return (high - low) / (2 * step);
}

/* The gradient as the owner knows it, told to all. */
static double shared_value(const fixture *f, const real *value) {
    double told = value ? (double)*value : -INFINITY;
    moe_comm_max_f64(f->m.context.comm, &told, 1);
    return told;
}

static void compare(fixture *f,
                    const char *settings,
                    const char *what,
                    int64_t element,
                    real *value,
                    const real *gradient,
                    double scale,
                    int *compared) {
    bool same;
    double numeric = difference(f, value, &same), exact = shared_value(f, gradient);
    if (!same) {
        return;
    }
    ++*compared;
    CHECK_MSG(fabs(numeric - exact) <= tolerance * (fabs(exact) + scale),
              "%s: %s[%lld]: %.12g by differences, %.12g by backward", settings, what,
              (long long)element, numeric, exact);
}

static double rms(const real *values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)values[i] * values[i];
    }
    return n ? sqrt(sum / (double)n) : 0;
}

static void check_parameter(fixture *f,
                            const char *settings,
                            const moe_parameter *p,
                            int *compared) {
    double scale = rms(p->gradient, p->count * p->size);
    moe_comm_max_f64(f->m.context.comm, &scale, 1);
    CHECK_MSG(scale > 0, "%s: %s has no gradient at all", settings, p->name);
    for (uint64_t i = 0; i < 4; i++) {
        int64_t at = (int64_t)(moe_rng_bits((moe_rng){9, MOE_RNG_TEST}, (uint64_t)strlen(p->name),
                                            i, 0) %
                               (uint64_t)(p->count_global * p->size)),
                here = -1;
        for (int64_t b = 0; b < p->count; b++) {
            if ((p->expert ? p->id[b] : 0) == at / p->size) {
                here = b * p->size + at % p->size;
            }
        }
        compare(f, settings, p->name, at, here < 0 ? NULL : p->value + here,
                here < 0 ? NULL : p->gradient + here, scale, compared);
    }
}

static void check_input(fixture *f, const char *settings, int *compared) {
    int64_t h = f->m.c.model.hidden_size;
    double scale = rms(f->dx, f->m.batch.num_tokens * h);
    moe_comm_max_f64(f->m.context.comm, &scale, 1);
    for (uint64_t i = 0; i < 4; i++) {
        int64_t at = (int64_t)(moe_rng_bits((moe_rng){9, MOE_RNG_TEST}, 77, i, 0) %
                               (uint64_t)(f->m.batch.num_tokens_global * h));
        int64_t here = at - f->m.batch.first_token * h;
        bool mine = here >= 0 && here < f->m.batch.num_tokens * h;
        compare(f, settings, "x", at, mine ? f->x + here : NULL, mine ? f->dx + here : NULL, scale,
                compared);
    }
}

static void check_settings(const moe_comm *comm, const char *settings) {
    fixture f;
    int64_t selection, bytes = 0;
    int compared = 0;
    set_up(&f, comm, settings);
    total(&f, &selection);
    moe_parameters_clear_gradients(&f.all);
    moe_layer_backward(f.layer, &f.m.stack.indices[0], &f.m.context, f.a, &f.all, f.dy,
                       &f.m.stack.backward, f.dx, &f.m.metrics.layer[0]);
    moe_parameters_reduce(&f.all, comm, 1, &bytes);
    for (int i = 0; i < f.all.num; i++) {
        check_parameter(&f, settings, &f.all.p[i], &compared);
    }
    check_input(&f, settings, &compared);
    CHECK_MSG(compared >= f.all.num, "%s: only %d elements could be compared", settings, compared);
    tear_down(&f);
}

/* Every value of a key, so that whoever adds one has it compared; a form of the loss with a
 * coefficient that counts. */
static void check_values(const moe_comm *comm, enum moe_key_id key, const char *others) {
    char settings[200];
    for (int i = 0; moe_table_enum_name(key, i); i++) {
        snprintf(settings, sizeof settings, "%s=%s %s", moe_keys[key].full,
                 moe_table_enum_name(key, i), others);
        if (strcmp(moe_table_enum_name(key, i), "identity") != 0) {
            RUN(check_settings, comm, settings);
        }
    }
}

int main(int argc, char **argv) {
    static const char *const settings[] = {
        "router.group_limit=max router.topk_group=2",
        "router.group_limit=max router.topk_group=2 model.num_shared_experts=2 model.norm=rmsnorm "
        "balance.scope=device",
        ("router.score_func=sigmoid router.group_limit=top2_sum router.topk_group=2 "
         "router.norm_topk_prob=yes "
         "router.routed_scaling_factor=2.5"),
        "router.score_func=sigmoid balance.scope=global model.expert_type=silu",
        "router.score_func=sqrtsoftplus router.norm_topk_prob=yes model.expert_type=gelu "
        "balance.scope=global",
        "router.score_func=sqrtsoftplus model.norm=rmsnorm",
        "router.score_func=softmax_topk model.expert_type=relu router.routed_scaling_factor=3",
        "router.norm_topk_prob=yes router.scale_normalized=no router.routed_scaling_factor=16",
        "router.norm_topk_prob=yes exchange.mode=selection balance.comm_count=selections "
        "balance.device_p=mean",
        "exchange.mode=selection train.recompute=yes model.num_shared_experts=1 "
        "balance.comm_count_local=no",
        "balance.aux_selection=unlimited router.group_limit=max router.topk_group=1 "
        "cluster.devices_per_node=2",
        "router.top_k=1 router.norm_topk_prob=yes router.norm_single=no balance.scope=device",
        "exchange.mode=two_level cluster.devices_per_node=2 capacity.policy=expert "
        "router.norm_topk_prob=yes",
        "exchange.mode=two_level exchange.node_sum=no cluster.devices_per_node=2",
        "exchange.chunks=2 model.num_shared_experts=1 router.group_limit=max router.topk_group=2",
        "exchange.chunks=3 exchange.mode=selection train.recompute=yes",
        "exchange.chunks=5 model.expert_type=lora model.lora_rank=2 capacity.policy=expert",
        "model.expert_type=lora model.lora_rank=2 model.lora_alpha=3",
        "model.expert_type=lora model.lora_rank=3 train.recompute=yes model.num_shared_experts=1",
        "router.num_groups=8 router.topk_group=3 router.group_limit=topk_sum",
        "capacity.policy=device router.group_limit=max router.topk_group=2 "
        "capacity.capacity_factor=0.8 capacity.exempt_sequences=0.3",
        "capacity.policy=expert router.norm_topk_prob=yes capacity.drop=position "
        "capacity.first_choices=yes",
        "capacity.policy=expert router.norm_topk_prob=yes capacity.renormalize=yes "
        "exchange.mode=selection",
        "capacity.policy=expert router.score_func=sigmoid router.norm_topk_prob=yes "
        "capacity.overflow=next_choice model.norm=rmsnorm",
        "capacity.policy=sequence capacity.expert_capacity=2 router.score_func=softmax_topk "
        "model.num_shared_experts=1",
        "capacity.policy=expert capacity.capacity_scope=device capacity.overflow=next_choice "
        "router.group_limit=max router.topk_group=2",
        "model.expert_type=identity model.num_shared_experts=3 model.norm=rmsnorm",
        "router.method=gshard router.top_k=2 router.second_choice=random "
        "router.norm_topk_prob=yes router.group_limit=max router.topk_group=1 "
        "balance.importance_loss=0.5",
    };
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        RUN(check_settings, &comm, settings[i]);
    }
    check_values(&comm, MOE_KEY(router, score_func), "router.norm_topk_prob=yes");
    check_values(&comm, MOE_KEY(balance, aux_form), "balance.alpha_expert=0.9");
    check_values(&comm, MOE_KEY(model, expert_type), "model.num_shared_experts=1");
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
