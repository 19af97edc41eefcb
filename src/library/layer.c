/* layer.c: a layer from its settings to its losses. Read moesim_layer_route, at the end, first. */
#include <stdio.h>
#include <string.h>

#include "library/internal.h"
#include "router/scores.h"

const char *moesim_version(void) {
    return MOESIM_VERSION;
}

/* The parser of configurations calls "--set" what was not in a file. */
int moe_layer_report(const moe_status *st, char *error) {
    static const char place[] = "--set: ";
    const bool placed = strncmp(st->message, place, sizeof place - 1) == 0;
    if (error) {
        snprintf(error, MOESIM_ERROR_MAX, "%s",
                 st->code == MOE_OK ? "" : st->message + (placed ? sizeof place - 1 : 0));
    }
    return st->code != MOE_OK;
}

/* --- settings --- */

/* Keys, or sections, that say nothing here. What acts in training only does nothing in a forward
 * pass, and the library knows no other. */
static const struct {
    const char *begins, *why;
} no_setting[] = {
    {"train.", "the library does not train"},
    {"output.", "the library writes no files"},
    {"run.steps", "a layer is routed once; the settings may change in between"},
    {"run.mode", "the library computes the forward pass"},
    {"run.threads", "the environment variable OMP_NUM_THREADS has the number of threads"},
    {"run.gemm", "the library multiplies no experts"},
    {"model.num_layers", "a layer is one layer"},
    {"model.expert_segmentation", "give the numbers of experts that are meant"},
    {"model.load", "the library multiplies no experts"},
    {"model.residual", "the library multiplies no experts"},
    {"model.norm", "the library multiplies no experts"},
    {"model.attention", "a layer is one MoE layer"},
    {"model.num_heads", "a layer is one MoE layer"},
    {"model.num_kv_heads", "a layer is one MoE layer"},
    {"model.head_dim", "a layer is one MoE layer"},
    {"model.rope_", "a layer is one MoE layer"},
    {"model.kv_lora_rank", "a layer is one MoE layer"},
    {"model.q_lora_rank", "a layer is one MoE layer"},
    {"router.jitter", "it acts in training only"},
    {"router.expert_dropout", "it acts in training only"},
    {"router.bias_file", "the array bias takes its place"},
    {"balance.begin_step", "it acts in training only"},
    {"balance.ramp_steps", "it acts in training only"},
    {"balance.global_batch", "it acts in training only"},
    {"balance.aux_layers", "a layer is one layer"},
    {"placement.load", "moesim_place takes loads"},
    {"placement.file", "the array expert_at takes its place"},
    {"placement.fit", "moesim_place takes loads"},
    {"placement.score", "moesim_place takes loads"},
    {"placement.rebalance_every", "a layer is routed once"},
    {"placement.window", "a layer is routed once"},
    {"placement.hysteresis", "a layer is routed once"},
    {"data.source", "the arrays logits and routing say it"},
    {"data.path", "the arrays logits and routing take its place"},
    {"data.mask", "the array mask takes its place"},
    {"data.boundaries", "the array boundaries takes its place"},
    {"data.weights", "the array weights takes its place"},
    {"data.scores", "the array scores takes its place"},
    {"data.drift", "only the first step is made"},
    {"cluster.file", "set the keys that such a file holds"},
};

static int refuse_useless(const char *line, moe_status *st) {
    for (size_t i = 0; i < sizeof no_setting / sizeof no_setting[0]; i++) {
        if (strncmp(line, no_setting[i].begins, strlen(no_setting[i].begins)) == 0) {
            return moe_fail(st, MOE_USER, "%.*s is no setting of a layer: %s",
                            (int)strcspn(line, " ="), line, no_setting[i].why);
        }
    }
    return MOE_OK;
}

static int take_line(moe_config *c, const char *begin, size_t length, moe_status *st) {
    char line[MOE_PATH_MAX];
    if (length >= sizeof line) {
        return moe_fail(st, MOE_USER, "a setting has more than %zu characters", sizeof line - 1);
    }
    memcpy(line, begin, length);
    line[length] = '\0';
    const char *text = line + strspn(line, " \t\r");
    return text[0] == '\0' || refuse_useless(text, st) != MOE_OK ? st->code
                                                                 : moe_config_set(c, text, st);
}

static int take_settings(moe_config *c, const char *settings, moe_status *st) {
    for (const char *at = settings; st->code == MOE_OK && *at != '\0';) {
        const size_t length = strcspn(at, "\n");
        take_line(c, at, length, st);
        at += length + (at[length] == '\n');
    }
    return st->code;
}

/* --- made, changed and freed --- */

moesim_layer *moesim_layer_new(const char *settings, char *error) {
    moe_status st = {0};
    moesim_layer *l = moe_alloc_zero(1, sizeof *l, "layer");
    moe_config_defaults(&l->settings);
    l->settings.given[MOE_KEY(model, attention)] = 1; /* none, also where a preset has one */
    take_settings(&l->settings, settings ? settings : "", &st);
    if (moe_layer_report(&st, error)) {
        moe_free(l);
        return NULL;
    }
    l->comm = (moe_comm){.size = 1, .local_size = 1, .num_hosts = 1, .max_count = INT32_MAX};
    return l;
}

int moesim_layer_change(moesim_layer *l, const char *settings, char *error) {
    moe_status st = {0};
    moe_config changed = l->settings;
    if (take_settings(&changed, settings ? settings : "", &st) == MOE_OK) {
        l->settings = changed;
    }
    return moe_layer_report(&st, error);
}

int moesim_layer_set(moesim_layer *l, const char *name, const moesim_array *array, char *error) {
    moe_status st = {0};
    l->routed = false; /* the last routing may look at an array that goes */
    moe_layer_take(l, name ? name : "", array, &st);
    return moe_layer_report(&st, error);
}

void moe_layer_forget_results(moesim_layer *l) {
    for (int i = 0; i < MOE_MAX_RESULTS; i++) {
        moe_free((void *)l->result[i].data);
        l->result[i] = (moesim_array){0};
    }
}

void moesim_layer_free(moesim_layer *l) {
    if (!l) {
        return;
    }
    moe_layer_forget_results(l);
    for (int i = 0; i < MOE_NUM_LAYER_ARRAYS; i++) {
        moe_free((void *)l->array[i].data);
    }
    moe_plan_free(&l->plan);
    moe_drop_free(&l->drop);
    moe_scopes_free(&l->scopes);
    moe_stats_free(&l->segments);
    moe_routing_free(&l->routing);
    moe_placement_free(&l->placement);
    moe_batch_free(&l->batch);
    moe_free(l->synthetic);
    moe_free(l->weights);
    moe_free(l->scores);
    moe_scratch_free(&l->scratch);
    moe_free(l);
}

/* --- the configuration, the tokens, the experts' places --- */

static int resolve(moesim_layer *l, moe_status *st) {
    moe_config *c = &l->config;
    *c = l->settings;
    if (c->cluster.devices == 0) {
        c->cluster.devices = 1; /* there are no ranks that refusals could speak of */
    }
    if (moe_layer_describe(l, c, st) != MOE_OK || moe_config_resolve(c, 1, st) != MOE_OK) {
        return st->code;
    }
    if (moe_config_places_by_load(c)) {
        return moe_fail(st, MOE_USER,
                        "placement.policy places by load: moesim_place does, and its answer is "
                        "the array expert_at with placement.policy = file");
    }
    if (moe_row_format_hops(c->exchange.mode) > 1) {
        return moe_fail(st, MOE_USER,
                        "exchange.mode = two_level: the library plans one hop, token or selection");
    }
    if (c->exchange.chunks > 1) {
        return moe_fail(st, MOE_USER,
                        "exchange.chunks = %d: the library sends nothing, and has nothing to cut "
                        "into chunks",
                        c->exchange.chunks);
    }
    if (moe_layer_has(l, MOE_ARRAY_ROUTING)) {
        moe_config_recorded_top_k(c, (int32_t)l->array[MOE_ARRAY_ROUTING].shape[1], st);
    }
    return st->code != MOE_OK ? st->code : moe_layer_check(l, st);
}

static void lay_out_tokens(moesim_layer *l) {
    const moe_config *c = &l->config;
    const moesim_array *first = &l->array[MOE_ARRAY_BOUNDARIES];
    const int64_t tokens = moe_layer_tokens(l);
    moe_batch_free(&l->batch);
    l->batch = (moe_batch){0};
    if (first->data) {
        moe_batch_layout_boundaries(&l->batch, tokens, first->data, first->shape[0] - 1,
                                    c->cluster.devices, 0, 1);
    } else {
        moe_batch_layout(&l->batch, tokens, c->data.sequence_length, c->cluster.devices, 0, 1);
    }
    l->batch.scratch = &l->scratch;
    l->batch.counted = (uint8_t *)l->array[MOE_ARRAY_MASK].data;
    if (c->data.padding == MOE_PADDING_DROPPED) {
        moe_batch_drop_padding(&l->batch, &l->comm);
    }
}

static void place_experts(moesim_layer *l) {
    const moe_config *c = &l->config;
    moe_placement_free(&l->placement);
    moe_placement_init(&l->placement, c->model.num_experts, c->cluster.devices,
                       moe_config_slots_per_device(c), c->cluster.devices_per_node);
    if (c->placement.policy == MOE_PLACEMENT_ROUND_ROBIN) {
        moe_placement_deal_out(&l->placement);
    } else if (c->placement.policy == MOE_PLACEMENT_FILE) {
        moe_placement_fill(&l->placement, l->array[MOE_ARRAY_EXPERT_AT].data);
    }
}

static int64_t longest_sequence(const moe_batch *b) {
    return b->sequence_length < b->num_tokens_global ? b->sequence_length : b->num_tokens_global;
}

static void init_parts(moesim_layer *l) {
    const moe_config *c = &l->config;
    const bool recorded = moe_config_recorded(c);
    moe_router_init(&l->router, &c->router, &c->balance, c->model.num_experts, c->cluster.devices,
                    l->array[MOE_ARRAY_BIAS].data);
    l->router.scratch = &l->scratch;
    moe_balance_init(&l->balance, &c->balance, 1, c->comm_limit);
    l->balance.has_logits = !recorded;
    l->balance.has_scores =
        !recorded || moe_layer_has(l, MOE_ARRAY_SCORES) || moe_layer_has(l, MOE_ARRAY_LOGITS);
    moe_capacity_init(&l->capacity, c);
}

/* --- logits and scores --- */

static moe_logits logits_of(const moesim_array *a) {
    return a->type == MOESIM_F64 ? (moe_logits){.f64 = a->data} : (moe_logits){.f32 = a->data};
}

static moe_logits computed_logits(const real *z) {
#ifdef MOE_REAL_DOUBLE
    return (moe_logits){.f64 = z};
#else
    return (moe_logits){.f32 = z};
#endif
}

/* What the last synthetic logits were made of: as long as it is the same, they are kept. */
static bool same_tokens(const moe_config *a, const moe_config *b) {
    return a->run.seed == b->run.seed && a->model.hidden_size == b->model.hidden_size &&
           a->model.num_experts == b->model.num_experts &&
           a->router.gate_scale == b->router.gate_scale &&
           a->cluster.devices == b->cluster.devices &&
           a->data.tokens_per_device == b->data.tokens_per_device &&
           a->data.sequence_length == b->data.sequence_length && a->data.skew == b->data.skew &&
           a->data.num_topics == b->data.num_topics &&
           a->data.topic_strength == b->data.topic_strength &&
           a->data.topic_persistence == b->data.topic_persistence;
}

static void find_logits(moesim_layer *l, const moe_config *before) {
    const bool recorded = moe_config_recorded(&l->config);
    if (moe_layer_has(l, MOE_ARRAY_LOGITS)) {
        l->logits = logits_of(&l->array[MOE_ARRAY_LOGITS]);
    } else if (recorded) {
        l->logits = (moe_logits){0};
    } else {
        if (!l->synthetic || !same_tokens(before, &l->config) ||
            moe_layer_has(l, MOE_ARRAY_BOUNDARIES)) {
            moe_free(l->synthetic);
            l->synthetic = moe_alloc(l->batch.num_tokens * l->router.num_experts,
                                     sizeof *l->synthetic, "logits");
            moe_layer_synthetic(&l->config, &l->batch, l->synthetic);
        }
        l->logits = computed_logits(l->synthetic);
    }
}

/* Scores beside a recorded routing: those that were given, or those of the logits. */
static void find_scores(moesim_layer *l) {
    const int64_t n = l->router.num_experts, tokens = l->batch.num_tokens;
    const double *given = l->array[MOE_ARRAY_SCORES].data;
    const bool shares = moe_score_function_of(&l->router)->sums_to_one;
    moe_free(l->scores);
    l->scores = NULL;
    if (!l->balance.has_scores) {
        return;
    }
    l->scores = moe_alloc(tokens * n, sizeof *l->scores, "scores");
    for (int64_t i = 0; given && i < tokens * n; i++) {
        l->scores[i] = shares && given[i] > 1 ? 1 : given[i];
    }
    double *z = moe_alloc(n, sizeof *z, "logits");
    for (int64_t t = 0; !given && t < tokens; t++) {
        if (moe_scores_read_logits(l->logits, t, (int32_t)n, z) & MOE_ROW_BAD) {
            memset(l->scores + t * n, 0, (size_t)n * sizeof *l->scores); /* dropped padding */
        } else {
            moe_scores_fill(&l->router, z, l->scores + t * n, NULL);
        }
    }
    moe_free(z);
}

/* --- the router --- */

static void route_recorded(moesim_layer *l) {
    const moesim_array *routing = &l->array[MOE_ARRAY_ROUTING];
    const double *weights = l->array[MOE_ARRAY_WEIGHTS].data;
    const int32_t *given = routing->data;
    const uint8_t *routed = moe_batch_routed(&l->batch);
    const int64_t k = routing->shape[1], count = routing->shape[0] * k;
    int32_t *expert = moe_alloc(count, sizeof *expert, "routing");
    moe_free(l->weights);
    l->weights = weights ? moe_alloc(count, sizeof *l->weights, "weights") : NULL;
    for (int64_t i = 0; i < count; i++) {
        expert[i] = routed && !routed[i / k] ? -1 : given[i];
        if (weights) {
            l->weights[i] = expert[i] < 0 ? 0 : (real)weights[i];
        }
    }
    find_scores(l);
    moe_router_route_recorded(&l->router, &l->batch, &l->placement, expert, (int32_t)k, l->weights,
                              l->scores, &l->routing, &l->segments);
    moe_free(expert);
}

static int route_computed(moesim_layer *l, moe_status *st) {
    const moe_draw draw = {.seed = (uint64_t)l->config.run.seed};
    int64_t first_bad_token;
    moe_router_route(&l->router, &draw, &l->batch, &l->placement, l->logits, NULL, &l->routing,
                     &l->segments, &first_bad_token);
    if (first_bad_token >= 0) {
        return moe_fail(st, MOE_USER, "token %lld has logits that cannot be routed",
                        (long long)first_bad_token);
    }
    if (l->routing.unconverged_device >= 0) {
        return moe_fail(st, MOE_USER,
                        "router.method = sinkhorn: the factors of device %d do not converge in "
                        "router.sinkhorn_iterations = %d",
                        l->routing.unconverged_device, l->router.sinkhorn_iterations);
    }
    return MOE_OK;
}

static int route(moesim_layer *l, moe_status *st) {
    const moe_placement *p = &l->placement;
    moe_stats_reserve_slots(&l->segments, p->num_experts, p->devices,
                            p->replicated ? moe_placement_slots(p) : 0, l->batch.num_segments);
    if (moe_config_recorded(&l->config)) {
        route_recorded(l);
        return MOE_OK;
    }
    return route_computed(l, st);
}

static void drop(moesim_layer *l) {
    l->drop.on = false;
    if (l->capacity.policy != MOE_CAPACITY_NONE) {
        moe_drop_decide(&l->drop, &(moe_drop_job){.comm = &l->comm,
                                                  .capacity = &l->capacity,
                                                  .batch = &l->batch,
                                                  .placement = &l->placement,
                                                  .router = &l->router,
                                                  .logits = l->logits,
                                                  .routing = &l->routing});
    }
}

/* --- together --- */

static int route_layer(moesim_layer *l, moe_status *st) {
    const moe_config before = l->config;
    if (resolve(l, st) != MOE_OK) {
        l->config = before;
        return st->code;
    }
    lay_out_tokens(l);
    if (moe_capacity_check(&l->config, l->batch.num_routed, longest_sequence(&l->batch), st)) {
        return st->code;
    }
    place_experts(l);
    init_parts(l);
    find_logits(l, &before);
    if (route(l, st) != MOE_OK) {
        return st->code;
    }
    drop(l);
    moe_plan_build(&l->plan, l->config.exchange.mode, &l->batch, &l->placement, 1,
                   moe_layer_sent(l));
    moe_scopes_reduce(&l->scopes, &l->comm, &l->balance, &l->placement, &l->batch, &l->segments,
                      NULL);
    return MOE_OK;
}

int moesim_layer_route(moesim_layer *l, char *error) {
    moe_status st = {0};
    moe_layer_forget_results(l);
    l->routed = route_layer(l, &st) == MOE_OK;
    return moe_layer_report(&st, error);
}
