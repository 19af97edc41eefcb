/* losses.c: the token's share of each balance loss, and the gradient that comes back to its logits.
 *
 * A loss is L = mean over cells of sum_i f_i P_i with P_i = (1/T) sum_t s'_{i,t}, so that token t
 * adds sum_i f_i s'_{i,t} / (T cells), where f is what moe_balance_coefficients gives with alpha
 * = 1. z and the entropies are means over tokens. CV^2 and variance are no sums over tokens, so a
 * token has no share in them. docs/method.md section 2. */
#include <math.h>
#include <string.h>

#include "explain/internal.h"
#include "model/layer.h"
#include "router/loss_gradient.h"
#include "router/noise.h"
#include "router/scores.h"
#include "router/smooth_load.h"
#include "router/weight_gradient.h"

static bool is_sum_of_scores(int loss) {
    return moe_loss_rows[loss].kind == MOE_LOSS_OVER_EXPERTS ||
           moe_loss_rows[loss].kind == MOE_LOSS_OVER_DEVICES;
}

/* The cell of `scopes` that the token's losses are made from. */
static int64_t *cell_in(const moe_watched *w, const moe_scopes *scopes, double *divisor) {
    const moe_batch *b = w->context->batch;
    int64_t i = 0;
    while (b->segment[i].end <= w->local) {
        i++;
    }
    return moe_scopes_cell(scopes, (enum moe_scope)w->context->config->balance.scope, b, i,
                           divisor);
}

static int64_t *cell_of(const moe_watched *w, double *divisor) {
    return cell_in(w, &w->a->scopes, divisor);
}

/* Computes the coefficients [3N] of one loss, times alpha. */
static void coefficients_of(const moe_watched *w, int loss, double alpha, double *to) {
    double divisor;
    moe_balance one = w->context->balance;
    memset(one.alpha, 0, sizeof one.alpha);
    one.alpha[loss] = alpha;
    moe_balance_coefficients(&one, w->layer->placement, &w->a->scopes.global, cell_of(w, &divisor),
                             to);
}

static double share_of(const moe_watched *w, int loss) {
    const moe_explained_layer *e = w->e;
    double tokens = (double)e->counted_tokens, entropy;
    if (!moe_balance_defined(&w->context->balance, (enum moe_loss)loss) || e->bad) {
        return NAN;
    }
    if (!e->counted) {
        return 0;
    }
    if (is_sum_of_scores(loss)) {
        return moe_scores_dot(e->coefficient + (int64_t)loss * e->num_experts, e->normalized,
                              e->num_experts) /
               e->divisor;
    }
    if (loss == MOE_LOSS_Z) {
        return e->lse > -INFINITY ? e->lse * e->lse / tokens : 0;
    }
    if (loss != MOE_LOSS_ENTROPY && loss != MOE_LOSS_ENTROPY_Z) {
        return NAN;
    }
    entropy = e->lse == -INFINITY ? 0 : moe_scores_entropy(e->normalized, e->num_experts) / tokens;
    return loss == MOE_LOSS_ENTROPY ? entropy : -entropy / e->num_experts;
}

void moe_explain_losses(const moe_watched *w, const moe_layer_metrics *metrics) {
    moe_explained_layer *e = w->e;
    int64_t n = e->num_experts;
    double *a = moe_alloc(MOE_COEFFICIENTS * n, sizeof *a, "explanation");
    cell_of(w, &e->divisor);
    for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
        if (is_sum_of_scores(loss)) {
            coefficients_of(w, loss, 1, a);
            memcpy(e->coefficient + loss * n, a, (size_t)n * sizeof *a);
        }
        e->loss[loss] = (moe_explained_loss){metrics->loss_raw[loss], share_of(w, loss),
                                             w->context->balance.alpha[loss], 1};
    }
    moe_free(a);
}

/* --- gradients --- */

/* A batch and a routing of this token alone, which the functions of the gradient are given. */
typedef struct alone {
    moe_batch batch;
    moe_routing routing;
    int64_t offset[2];
    uint8_t counted[1];
    moe_logits logits;
} alone;

static void set_alone(const moe_watched *w, const moe_routing *r, alone *one) {
    int64_t begin = r->row_offset[w->local];
    *one = (alone){.offset = {0, r->row_offset[w->local + 1] - begin},
                   .counted = {w->e->counted},
                   .logits = {.f64 = w->e->logit}};
    one->batch = (moe_batch){.num_tokens = 1, .counted = one->counted};
    one->routing = (moe_routing){.num_tokens = 1,
                                 .num_selections = one->offset[1],
                                 .row_offset = one->offset,
                                 .expert = r->expert + begin,
                                 .weight = r->weight + begin};
}

static void add_gradient(const moe_watched *w, double alpha_z, const double *a, double *dz) {
    const moe_router *router = &w->layer->router;
    moe_loss_coefficients all = {.a = a,
                                 .inverse_tokens = 1 / w->e->divisor,
                                 .alpha_z = alpha_z,
                                 .inverse_counted = 1 / (double)w->e->counted_tokens};
    alone one;
    set_alone(w, &w->a->routing, &one);
    const bool keeps = w->context->trains && moe_noise_keeps_clean(router);
    const int64_t at = w->local * (int64_t)w->e->num_experts;
    moe_noisy noisy = {0};
    if (keeps) {
        noisy = (moe_noisy){w->a->noisy.clean + at, w->a->noisy.v ? w->a->noisy.v + at : NULL};
    }
    moe_loss_gradient(router, &one.batch, one.logits, keeps ? &noisy : NULL, &one.routing, 0, 1,
                      &all, dz);
    if (!keeps || router->load_form != MOE_LOAD_SHAZEER) {
        return;
    }
    const int64_t n = w->e->num_experts;
    moe_smooth_load_gradient(router, &noisy, &one.batch, one.logits, &one.routing, 0, 1, a + 2 * n,
                             1 / w->e->divisor, dz, NULL);
}

void moe_explain_gradients(const moe_watched *w) {
    moe_explained_layer *e = w->e;
    int64_t n = e->num_experts;
    double divisor, *a = moe_alloc(MOE_COEFFICIENTS * n, sizeof *a, "explanation");
    double alpha_z = w->context->balance.alpha[MOE_LOSS_Z];
    memset(e->gradient, 0, (size_t)(MOE_NUM_LOSSES * n) * sizeof(double));
    memset(e->balance_gradient, 0, (size_t)n * sizeof(double));
    if (e->divisor > 0) {
        for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
            if (e->loss[loss].alpha == 0) {
                continue;
            }
            coefficients_of(w, loss, loss == MOE_LOSS_Z ? 0 : e->loss[loss].alpha, a);
            add_gradient(w, loss == MOE_LOSS_Z ? alpha_z : 0, a, e->gradient + loss * n);
        }
        moe_balance_coefficients(&w->context->balance, w->layer->placement, &w->a->scopes.global,
                                 cell_of(w, &divisor), a);
        add_gradient(w, alpha_z, a, e->balance_gradient);
    }
    moe_free(a);
}

void moe_explain_all_layers(const moe_watched *w) {
    moe_explained_layer *e = w->e;
    const moe_scopes *all = w->context->all_layers;
    int64_t n = e->num_experts;
    double alpha = w->context->balance.alpha_all_layers, divisor;
    if (!all || alpha == 0 || e->bad || !e->counted) {
        return;
    }
    moe_balance one = w->context->balance;
    int64_t *cell = cell_in(w, all, &divisor);
    double *a = moe_alloc_zero((MOE_COEFFICIENTS + 1) * n, sizeof *a, "explanation"),
           *dz = a + MOE_COEFFICIENTS * n;
    one.alpha_all_layers = 1;
    moe_balance_add_all_layers(&one, &all->global, cell, 1, a);
    double share = moe_scores_dot(a, e->normalized, e->num_experts) / divisor;
    e->loss[one.form] =
        (moe_explained_loss){all->loss[w->context->config->balance.scope][one.form], share, alpha,
                             moe_config_moe_layers(w->context->config)};
    for (int64_t i = 0; i < n; i++) {
        a[i] *= alpha * e->divisor / divisor;
    }
    add_gradient(w, 0, a, dz);
    for (int64_t i = 0; i < n; i++) {
        e->gradient[one.form * n + i] += dz[i];
        e->balance_gradient[i] += dz[i];
    }
    moe_free(a);
}

void moe_explain_task_gradient(const moe_watched *w, const real *dg) {
    moe_explained_layer *e = w->e;
    const moe_routing *r = moe_activations_weighted(w->a);
    int64_t begin = r->row_offset[w->local], end = r->row_offset[w->local + 1];
    alone one;
    set_alone(w, r, &one);
    memset(e->task_gradient, 0, (size_t)e->num_experts * sizeof(double));
    const int32_t *server = moe_activations_servers(w->a);
    moe_weight_gradient(&w->layer->router, one.logits, &one.routing, server ? server + begin : NULL,
                        dg + begin, e->task_gradient);
    for (int32_t k = 0; k < e->num_choices; k++) {
        for (int64_t i = begin; i < end; i++) {
            if (r->expert[i] == (r == &w->a->routing ? e->choice[k].expert : e->choice[k].server)) {
                e->choice[k].weight_gradient = (double)dg[i];
            }
        }
    }
}
