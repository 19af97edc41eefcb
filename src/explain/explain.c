/* explain.c: the rank of the token writes down what it knows, the ranks of its experts add what
 * they returned, and every rank gets a copy. */
#include "explain/explain.h"

#include <math.h>
#include <string.h>

#include "exchange/row_format.h"
#include "explain/derive.h"
#include "explain/derive_losses.h"
#include "explain/internal.h"
#include "router/methods.h"
#include "router/scores.h"
#include "router/select.h"
#include "router/weights.h"

/* --- where the token is --- */

static moe_watched watch(moe_explanation *e,
                         const moe_layer *layer,
                         const moe_context *context,
                         const moe_activations *a) {
    const moe_batch *b = context->batch;
    int32_t d = 0;
    while (moe_batch_token_begin(b->num_tokens_global, b->devices, d + 1) <= e->token) {
        d++;
    }
    moe_watched w = {.layer = layer,
                     .context = context,
                     .a = a,
                     .e = &e->layer[layer->index],
                     .draw = moe_layer_draw(layer, context),
                     .token = e->token,
                     .device = d,
                     .rank = d / b->num_local_devices};
    w.here = w.rank == context->comm->rank;
    w.local = e->token - b->first_token;
    return w;
}

static double norm(const real *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum);
}

/* Collective. Gathers the bytes around the token, each from the rank that holds it. */
static void gather_text(moe_explanation *e, const moe_context *context) {
    const moe_batch *b = context->batch;
    int64_t begin = moe_batch_sequence_begin(b, e->sequence),
            end = moe_batch_sequence_begin(b, e->sequence + 1);
    for (int64_t i = 0; i <= 2 * MOE_EXPLAINED_BYTES; i++) {
        int64_t at = e->token - MOE_EXPLAINED_BYTES + i, local = at - b->first_token;
        bool here = at >= begin && at < end && local >= 0 && local < b->num_tokens;
        e->byte[i] = here ? b->byte[local] : -1;
    }
    moe_comm_max_i64(context->comm, e->byte, 2 * MOE_EXPLAINED_BYTES + 1);
}

static void fill_head(moe_explanation *e, const moe_watched *w) {
    const moe_config *c = w->context->config;
    const moe_batch *b = w->context->batch;
    e->step = w->context->step;
    e->num_tokens = b->num_tokens_global;
    e->sequence = moe_batch_sequence_of(b, e->token);
    e->position = e->token - moe_batch_sequence_begin(b, e->sequence);
    e->drops_padding = b->drops_padding;
    e->device = w->device;
    e->rank = w->rank;
    e->num_experts = c->model.num_experts;
    e->num_devices = c->cluster.devices;
    e->micro_batches = c->run.mode == MOE_MODE_TRAIN ? c->train.accumulate : 1;
    e->has_text = c->data.source == MOE_SOURCE_TEXT;
    if (e->has_text) {
        gather_text(e, w->context);
    }
}

/* --- what the token's rank knows --- */

/* Fills in the scores of a computed routing. Returns false where the logits are bad. */
static bool score_token(const moe_watched *w) {
    moe_explained_layer *e = w->e;
    int32_t n = e->num_experts;
    double *factor = NULL, ignored_of_group[1];
    if (moe_scores_read_logits(w->a->logits, w->local, n, e->logit) & MOE_ROW_BAD) {
        return false;
    }
    moe_scores_fill(&w->layer->router, e->logit, e->score, &e->lse);
    const moe_method *method = moe_method_of(&w->layer->router);
    if (method->factors && !w->draw.evaluating) {
        const int64_t *offset =
            w->context->batch->device_offset + (w->device - w->context->batch->first_device);
        factor = moe_alloc(n, sizeof *factor, "sinkhorn");
        method->factors(&w->layer->router, w->a->logits, moe_batch_routed(w->context->batch),
                        offset[0], offset[1], factor);
    }
    for (int32_t i = 0; i < n; i++) {
        e->added[i] = factor ? factor[i] : w->layer->router.bias ? w->layer->router.bias[i] : 0;
    }
    moe_select_reasons(&w->layer->router, e->logit, e->score, factor, e->selection,
                       e->num_groups ? e->group_score : ignored_of_group, e->admitted);
    moe_free(factor);
    return true;
}

static void fill_scores(const moe_watched *w) {
    moe_explained_layer *e = w->e;
    const moe_input *in = w->context->input;
    int64_t n = e->num_experts;
    if (e->has_logits) {
        e->bad = !score_token(w);
        if (e->bad) {
            return;
        }
    } else if (e->has_scores) {
        memcpy(e->score,
               in->scores + (w->layer->index * w->context->batch->num_tokens + w->local) * n,
               (size_t)n * sizeof *e->score);
        for (int64_t i = 0; i < n; i++) {
            e->selection[i] = e->score[i];
            e->added[i] = 0;
        }
    }
    if (!e->has_scores) {
        return;
    }
    e->score_sum = moe_scores_sum(e->score, (int32_t)n);
    moe_scores_normalize(&w->layer->router, e->score, e->normalized);
}

static void fill_choices(const moe_watched *w) {
    moe_explained_layer *e = w->e;
    const moe_routing *r = &w->a->routing;
    const moe_drop *drop = &w->a->drop;
    int64_t begin = r->row_offset[w->local];
    for (int32_t k = 0; k < e->num_choices; k++) {
        int32_t expert = r->expert[begin + k], server = drop->on ? drop->server[begin + k] : expert;
        e->choice[k] = (moe_explained_choice){
            .expert = expert,
            .device = moe_explain_device(w, expert),
            .score = r->score[begin + k],
            .selection = e->has_logits ? e->selection[expert] : r->score[begin + k],
            .weight = (double)r->weight[begin + k],
            .server = server,
            .served_on = server < 0 ? -1 : moe_explain_device(w, server),
            .sent_weight = NAN,
            .output_norm = NAN,
            .contribution = NAN,
            .share = NAN,
            .weight_gradient = NAN};
    }
}

/* g = score / divisor x factor, where divisor and factor are those of the weights that came out. */
static void fill_weights(const moe_watched *w) {
    moe_explained_layer *e = w->e;
    e->weight_divisor = e->weight_factor = NAN;
    if (!e->has_logits) {
        return;
    }
    e->weight_divisor = 1;
    e->weight_factor = moe_weights_factor(&w->layer->router);
    if (!moe_weights_normalized(&w->layer->router)) {
        return;
    }
    e->weight_divisor = 0;
    for (int32_t k = 0; k < e->num_choices; k++) {
        e->weight_divisor += e->choice[k].score;
    }
    bool one_left_out = moe_method_may_leave_out(&w->layer->router) && e->num_choices == 1;
    if (one_left_out && e->choice[0].weight > 0) {
        e->weight_divisor = e->choice[0].score * e->weight_factor / e->choice[0].weight;
    }
}

/* The row of a hop that carries `pairs` pairs from one device to another. */
static moe_explained_row row_of(const moe_watched *w,
                                int hop,
                                int32_t from,
                                int32_t to,
                                const int32_t *expert,
                                int64_t pairs) {
    const moe_config *c = w->context->config;
    return (moe_explained_row){
        .hop = hop,
        .from = from,
        .device = to,
        .rank = to / w->context->batch->num_local_devices,
        .pairs = (int32_t)pairs,
        .expert = expert[0],
        .level = moe_level_of(from, to, c->cluster.devices_per_node),
        .bytes = moe_payload_bytes(w->context->dispatched, c->model.hidden_size),
        .metadata_bytes = moe_exchange_row_metadata_bytes(c->exchange.mode, hop) +
                          pairs * moe_exchange_pair_metadata_bytes()};
}

/* The rows into which a row of the first of two hops is split; row is filled from number i on.
 * Returns the number behind the last one. */
static int32_t fill_parts(const moe_watched *w, int64_t r, int32_t i) {
    const moe_plan *plan = &w->a->plan;
    int64_t p = plan->row_pair[r];
    for (int64_t part = plan->row_part[r]; part < plan->row_part[r + 1]; part++) {
        int64_t first = p;
        const int32_t device = plan->part_device[part];
        while (p < plan->row_pair[r + 1] && moe_explain_device(w, plan->pair_expert[p]) == device) {
            p++;
        }
        w->e->row[i++] =
            row_of(w, 1, plan->row_device[r], device, plan->pair_expert + first, p - first);
    }
    return i;
}

static void fill_rows(const moe_watched *w) {
    const moe_plan *plan = &w->a->plan;
    const int64_t *row = plan->token_row + plan->token_row_offset[w->local];
    const int32_t num_rows =
        (int32_t)(plan->token_row_offset[w->local + 1] - plan->token_row_offset[w->local]);
    int32_t at = num_rows;
    for (int32_t i = 0; i < num_rows; i++) {
        const int64_t first = plan->row_pair[row[i]];
        w->e->row[i] = row_of(w, 0, w->device, plan->row_device[row[i]], plan->pair_expert + first,
                              plan->row_pair[row[i] + 1] - first);
        if (plan->row_part) {
            at = fill_parts(w, row[i], at);
        }
    }
    MOE_ASSERT(at == w->e->num_rows);
}

static void fill_shape(const moe_watched *w) {
    const moe_batch *b = w->context->batch;
    const moe_config *c = w->context->config;
    moe_explained_layer *e = w->e;
    bool recorded = moe_config_recorded(c);
    e->num_experts = c->model.num_experts;
    e->num_groups = recorded || w->layer->router.group_limit == MOE_GROUP_NONE
                        ? 0
                        : w->layer->router.num_groups;
    e->num_choices =
        (int32_t)(w->a->routing.row_offset[w->local + 1] - w->a->routing.row_offset[w->local]);
    const moe_plan *plan = &w->a->plan;
    e->num_rows =
        (int32_t)(plan->token_row_offset[w->local + 1] - plan->token_row_offset[w->local]);
    if (plan->token_part_offset) {
        e->num_rows +=
            (int32_t)(plan->token_part_offset[w->local + 1] - plan->token_part_offset[w->local]);
    }
    e->has_logits = !recorded;
    e->has_scores = w->context->balance.has_scores;
    e->counted = !b->counted || b->counted[w->local];
    e->lse = e->score_sum = e->gradient_norm = NAN;
    e->counted_tokens = moe_scopes_tokens(&w->a->scopes);
    moe_explained_reserve(e);
}

/* --- what came back --- */

static double dot(const real *a, const real *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)a[i] * (double)b[i];
    }
    return sum;
}

/* The choice behind the j-th selection of the token that is sent. */
static moe_explained_choice *choice_of(const moe_watched *w, int64_t j) {
    const moe_drop *drop = &w->a->drop;
    if (!drop->on) {
        return &w->e->choice[j];
    }
    return &w->e->choice[drop->selection[drop->sent.row_offset[w->local] + j] -
                         w->a->routing.row_offset[w->local]];
}

static void fill_output(const moe_watched *w, const real *output, const real *y) {
    int64_t h = w->context->config->model.hidden_size;
    const moe_routing *sent = moe_activations_sent(w->a);
    int64_t begin = sent->row_offset[w->local], count = sent->row_offset[w->local + 1] - begin;
    const real *own_y = y + w->local * h, *x = w->a->layer_x + w->local * h;
    double *rest = moe_alloc(h, sizeof *rest, "explanation");
    double squares = dot(own_y, own_y, h);
    double residual = 0;
    moe_explained_layer *e = w->e;
    for (int64_t i = 0; i < h; i++) {
        rest[i] = (double)own_y[i];
        residual += ((double)own_y[i] + (double)x[i]) * ((double)own_y[i] + (double)x[i]);
    }
    for (int64_t j = 0; j < count; j++) {
        const real *out = output + j * h;
        double g = (double)sent->weight[begin + j];
        moe_explained_choice *k = choice_of(w, j);
        k->sent_weight = g;
        k->output_norm = norm(out, h);
        k->contribution = fabs(g) * k->output_norm;
        k->share = squares > 0 ? g * dot(out, own_y, h) / squares : NAN;
        for (int64_t i = 0; i < h; i++) {
            rest[i] -= g * (double)out[i];
        }
    }
    const real *shared = w->layer->shared.count ? w->a->shared_y + w->local * h : NULL;
    e->shared_norm = shared ? norm(shared, h) : NAN;
    e->shared_share = shared && squares > 0 ? dot(shared, own_y, h) / squares : NAN;
    e->gap = 0;
    for (int64_t i = 0; i < h; i++) {
        e->gap = fmax(e->gap, fabs(rest[i] - (shared ? (double)shared[i] : 0)));
    }
    e->x_norm = norm(x, h);
    e->u_norm = norm(w->a->x + w->local * h, h);
    e->y_norm = sqrt(squares);
    e->residual_norm = w->context->config->model.residual ? sqrt(residual) : NAN;
    moe_free(rest);
}

/* --- together --- */

/* Collective. Gives every rank the layer as the token's rank has it. */
static void share_layer(const moe_watched *w) {
    const moe_comm *comm = w->context->comm;
    moe_explained_layer *e = w->e, head = *e;
    moe_comm_bcast(comm, &head, sizeof head, w->rank);
    if (!w->here) {
        head.block = e->block;
        *e = head;
        moe_explained_reserve(e);
    }
    moe_comm_bcast(comm, e->choice, e->num_choices * (int64_t)sizeof *e->choice, w->rank);
    moe_comm_bcast(comm, e->row, e->num_rows * (int64_t)sizeof *e->row, w->rank);
    moe_comm_bcast(comm, e->numbers, moe_explained_words(e) * (int64_t)sizeof *e->numbers, w->rank);
}

static void explain_token(moe_explanation *e,
                          const moe_layer *layer,
                          const moe_context *context,
                          const moe_activations *a,
                          const real *y,
                          const moe_layer_metrics *metrics) {
    moe_watched w = watch(e, layer, context, a);
    if (layer->index == 0) {
        fill_head(e, &w);
    }
    if (w.here) {
        fill_shape(&w);
        fill_scores(&w);
        fill_choices(&w);
        fill_weights(&w);
        fill_rows(&w);
        moe_explain_losses(&w, metrics);
        if (!w.e->bad && w.e->has_logits) {
            moe_explain_gradients(&w);
        }
    }
    moe_explain_capacity(&w);
    real *output = moe_explain_outputs(&w);
    if (w.here) {
        fill_output(&w, output, y);
    }
    moe_free(output);
    share_layer(&w);
    e->seen = layer->index + 1;
}

static bool watches_token(const moe_explainer *x, const moe_context *context) {
    bool trains = context->config->run.mode == MOE_MODE_TRAIN;
    return x->token && (!trains || x->micro_batch + 1 == context->config->train.accumulate);
}

void moe_explain_forward(moe_explainer *x,
                         const moe_layer *layer,
                         const moe_context *context,
                         const moe_activations *a,
                         const real *y,
                         const moe_layer_metrics *metrics) {
    if (watches_token(x, context)) {
        explain_token(&x->explanation, layer, context, a, y, metrics);
    }
    if (!x->step) {
        return;
    }
    moe_derive_job job = {.comm = context->comm,
                          .config = context->config,
                          .balance = &context->balance,
                          .placement = layer->placement,
                          .batch = context->batch,
                          .scopes = &a->scopes,
                          .layer = layer->index,
                          .micro_batch = x->micro_batch};
    moe_derive_losses(&x->derivation, &job, metrics);
}

void moe_explain_upstream(moe_explainer *x,
                          const moe_layer *layer,
                          const moe_context *context,
                          const real *dy) {
    if (!watches_token(x, context)) {
        return;
    }
    moe_watched w = watch(&x->explanation, layer, context, NULL);
    int64_t h = context->config->model.hidden_size;
    if (w.here) {
        w.e->gradient_norm = norm(dy + w.local * h, h);
    }
}

void moe_explain_backward(moe_explainer *x,
                          const moe_layer *layer,
                          const moe_context *context,
                          const moe_activations *a,
                          const moe_backward *b) {
    if (!watches_token(x, context)) {
        return;
    }
    moe_watched w = watch(&x->explanation, layer, context, a);
    if (w.here) {
        int64_t n = w.e->num_experts;
        w.e->has_task = true;
        moe_explain_all_layers(&w);
        moe_explain_task_gradient(&w, b->dg);
        memcpy(w.e->total_gradient, b->dlogits + w.local * n, (size_t)n * sizeof(double));
    }
    share_layer(&w);
}

static const char *first_difference(const moe_derivation *d) {
    for (int32_t i = 0; i < d->count; i++) {
        if (!d->item[i].agrees) {
            return d->item[i].name;
        }
    }
    return "nothing";
}

int moe_explain_finish(moe_explainer *x,
                       const moe_context *context,
                       const moe_step_metrics *metrics,
                       moe_status *st) {
    if (x->step && context->comm->rank == 0) {
        moe_derive_step(&x->derivation, context->config, metrics);
        if (x->derivation.disagree > 0) {
            moe_fail(st, MOE_RUN_FAILED,
                     "%d of %d derived figures do not agree with what is reported, the first: %s",
                     x->derivation.disagree, x->derivation.count, first_difference(&x->derivation));
        }
    }
    return moe_comm_agree(context->comm, st);
}

void moe_explainer_free(moe_explainer *x) {
    moe_explanation_free(&x->explanation);
    moe_derivation_free(&x->derivation);
}
