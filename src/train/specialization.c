/* specialization.c: evaluates the network with some of its experts out of reach. The library's own
 * router chooses among the rest: a first pass through a layer gives its logits, a second pass takes
 * them, masked, as if they had been recorded. */
#include "train/specialization.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "router/methods.h"

/* --- logits without the best experts --- */

static int falling(const void *a, const void *b) {
    real x = *(const real *)a, y = *(const real *)b;
    return (x < y) - (x > y);
}

/* -inf in place of the n largest of z [N]; among equals the lower index is larger, as for the
 * router. sorted [N] is working memory. Every score function rises with the logit: the largest
 * logits have the highest scores. */
static void disable_largest(real *z, int32_t num_experts, int32_t n, real *sorted) {
    memcpy(sorted, z, (size_t)num_experts * sizeof *z);
    qsort(sorted, (size_t)num_experts, sizeof *sorted, falling);
    real least = sorted[n - 1];
    int32_t equal = n;
    for (int32_t i = 0; i < n; i++) {
        equal -= sorted[i] > least;
    }
    for (int32_t e = 0; e < num_experts; e++) {
        bool taken = z[e] > least || (z[e] == least && equal-- > 0);
        if (taken) {
            z[e] = (real)-INFINITY;
        }
    }
}

/* What the masked layers share: contexts as they are, but for the source of the logits. */
typedef struct masked {
    moe_training *training;
    moe_config config;
    moe_input input;
    moe_context context;
    real *logits; /* [layers][T,N] */
    int32_t disabled;
} masked;

static void masked_init(masked *m, moe_training *t) {
    const moe_context *context = t->stack->context;
    *m = (masked){
        .training = t, .config = *context->config, .input = *context->input, .context = *context};
    int64_t size = t->stack->num_layers * t->batch->num_tokens * context->config->model.num_experts;
    m->logits = moe_alloc(size, sizeof *m->logits, "masked logits");
    m->config.data.source = MOE_SOURCE_LOGITS;
    m->input.logits = m->logits;
    m->input.logits_dtype = sizeof(real) == sizeof(float) ? MOE_F32 : MOE_F64;
    m->context.config = &m->config;
    m->context.input = &m->input;
    m->context.keep = false;
}

static void mask(const masked *m, int32_t l, const real *logits) {
    int64_t tokens = m->training->batch->num_tokens;
    int32_t n = m->config.model.num_experts;
    real *to = m->logits + l * tokens * n;
#pragma omp parallel
    {
        real *sorted = moe_alloc(n, sizeof *sorted, "masked logits");
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            memcpy(to + t * n, logits + t * n, (size_t)n * sizeof *to);
            disable_largest(to + t * n, n, m->disabled, sorted);
        }
        moe_free(sorted);
    }
}

static void masked_layer(void *user,
                         int32_t l,
                         const real *x,
                         real *y,
                         moe_activations *a,
                         moe_layer_metrics *metrics) {
    masked *m = user;
    const moe_training *t = m->training;
    moe_layer_forward(&t->stack->layer[l], t->stack->context, x, y, a, metrics);
    mask(m, l, a->gate_logits);
    moe_layer_forward(&t->stack->layer[l], &m->context, x, y, a, metrics);
}

/* --- the network as it is --- */

typedef struct observer {
    moe_training *training;
    moe_specialization *result;
} observer;

static void observed_layer(void *user,
                           int32_t l,
                           const real *x,
                           real *y,
                           moe_activations *a,
                           moe_layer_metrics *metrics) {
    const observer *o = user;
    const moe_training *t = o->training;
    moe_specialization *s = o->result;
    moe_layer_forward(&t->stack->layer[l], t->stack->context, x, y, a, metrics);
    for (int64_t i = 0; i < t->batch->num_tokens; i++) {
        int64_t *load =
            s->domain_load + ((int64_t)l * s->num_domains + t->task.domain[i]) * s->num_experts;
        if (t->batch->counted && !t->batch->counted[i]) {
            continue;
        }
        for (int64_t k = a->routing.row_offset[i]; k < a->routing.row_offset[i + 1]; k++) {
            load[a->routing.expert[k]]++;
        }
    }
}

/* --- routed experts in place of the shared --- */

typedef struct replaced {
    moe_training *training;
    moe_config config;
    moe_context context;
} replaced;

static void replaced_layer(void *user,
                           int32_t l,
                           const real *x,
                           real *y,
                           moe_activations *a,
                           moe_layer_metrics *metrics) {
    const replaced *r = user;
    moe_layer layer = r->training->stack->layer[l];
    layer.shared.count = 0;
    layer.router.top_k = r->config.router.top_k;
    moe_layer_forward(&layer, &r->context, x, y, a, metrics);
}

/* Routed experts that one token can reach. */
static int32_t reachable(const moe_config *c) {
    if (c->router.group_limit == MOE_GROUP_NONE) {
        return c->model.num_experts;
    }
    if (c->router.group_limit == MOE_GROUP_QUOTA) {
        return c->router.top_k; /* K/M in each group: one more has no place */
    }
    return c->router.topk_group * (c->model.num_experts / c->router.num_groups);
}

static double loss_without_shared(moe_training *t, int64_t batches) {
    replaced r = {
        .training = t, .config = *t->stack->context->config, .context = *t->stack->context};
    r.config.router.top_k += r.config.model.num_shared_experts;
    r.context.config = &r.config;
    r.context.router.top_k = r.config.router.top_k;
    if (r.config.model.num_shared_experts == 0 ||
        r.config.router.top_k > reachable(t->stack->context->config)) {
        return NAN;
    }
    return moe_training_evaluate(t, batches, replaced_layer, &r);
}

/* --- all of it --- */

static moe_specialization prepared(const moe_training *t, int64_t batches) {
    const moe_config *c = t->stack->context->config;
    moe_specialization s = {.num_layers = t->stack->num_layers,
                            .num_domains = moe_task_is_text(&t->task) ? t->task.corpus.num_domains
                                                                      : c->data.num_topics,
                            .num_experts = c->model.num_experts,
                            .top_k = moe_methods[c->router.method].fewer ? 1 : c->router.top_k,
                            .num_shared = c->model.num_shared_experts,
                            .batches = batches,
                            .num_disabled = 1};
    int64_t most = moe_config_ignores_scores(c) ? 0 : s.num_experts - s.top_k;
    for (int32_t n = 1; n <= most && s.num_disabled < MOE_MAX_DISABLED; n *= 2) {
        s.disabled[s.num_disabled++] = n;
    }
    s.domain_load = moe_alloc_zero((int64_t)s.num_layers * s.num_domains * s.num_experts,
                                   sizeof *s.domain_load, "load by domain");
    return s;
}

moe_specialization moe_specialization_measure(moe_training *t, int64_t batches) {
    moe_specialization s = prepared(t, batches);
    observer o = {t, &s};
    masked m;
    s.loss[0] = moe_training_evaluate(t, batches, observed_layer, &o);
    moe_comm_sum_i64(t->stack->context->comm, s.domain_load,
                     (int64_t)s.num_layers * s.num_domains * s.num_experts);
    masked_init(&m, t);
    for (int32_t i = 1; i < s.num_disabled; i++) {
        m.disabled = s.disabled[i];
        s.loss[i] = moe_training_evaluate(t, batches, masked_layer, &m);
    }
    moe_free(m.logits);
    s.loss_without_shared = loss_without_shared(t, batches);
    return s;
}

void moe_specialization_free(moe_specialization *s) {
    moe_free(s->domain_load);
    *s = (moe_specialization){0};
}

/* --- score --- */

static double entropy_of(const int64_t *count, int32_t n, double total) {
    double entropy = 0;
    for (int32_t i = 0; i < n; i++) {
        if (count[i] > 0) {
            entropy -= (double)count[i] / total * log((double)count[i] / total);
        }
    }
    return entropy;
}

static int64_t num_seen(const int64_t *count, int32_t n) {
    int64_t seen = 0;
    for (int32_t i = 0; i < n; i++) {
        seen += count[i] > 0;
    }
    return seen;
}

/* I = H(domain) + H(expert) - H(domain, expert). */
moe_domain_score moe_specialization_score(const int64_t *load,
                                          int32_t domains,
                                          int32_t experts,
                                          int32_t top_k) {
    int64_t *of_domain = moe_alloc_zero((int64_t)domains + experts, sizeof *of_domain, "scores");
    int64_t *of_expert = of_domain + domains;
    int64_t total = 0;
    double joint = 0;
    for (int32_t d = 0; d < domains; d++) {
        for (int32_t e = 0; e < experts; e++) {
            int64_t n = load[(int64_t)d * experts + e];
            of_domain[d] += n;
            of_expert[e] += n;
            total += n;
        }
    }
    moe_domain_score s = {0};
    if (total > 0) {
        for (int32_t d = 0; d < domains; d++) {
            joint += entropy_of(load + (int64_t)d * experts, experts, (double)total);
        }
        double of_domains = entropy_of(of_domain, domains, (double)total),
               ideal = fmin(of_domains, log((double)experts / top_k));
        double chance =
            (double)((num_seen(of_domain, domains) - 1) * (num_seen(of_expert, experts) - 1)) /
            (2 * (double)total);
        s.information = fmax(0, of_domains + entropy_of(of_expert, experts, (double)total) - joint);
        s.score = ideal > 0 ? s.information / ideal : NAN;
        s.chance = ideal > 0 ? chance / ideal : NAN;
    }
    moe_free(of_domain);
    return s;
}
