/* arrays.c: the arrays that a layer takes: their types, their shapes beside each other, and what
 * their numbers may be. What is refused is what the program refuses of files (data/recorded.c). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "library/internal.h"
#include "router/scores.h"

/* --- the table --- */

enum { FLOAT = 1 << MOESIM_F32 | 1 << MOESIM_F64 };

static const struct {
    unsigned types; /* a bit for each type that is taken */
    int32_t num_dims;
    const char *shape; /* in words */
} table[MOE_NUM_LAYER_ARRAYS] = {
    [MOE_ARRAY_LOGITS] = {FLOAT, 2, "[T,N] of float32 or float64"},
    [MOE_ARRAY_ROUTING] = {1 << MOESIM_I32, 2, "[T,K] of int32"},
    [MOE_ARRAY_WEIGHTS] = {1 << MOESIM_F64, 2, "[T,K] of float64"},
    [MOE_ARRAY_SCORES] = {1 << MOESIM_F64, 2, "[T,N] of float64"},
    [MOE_ARRAY_MASK] = {1 << MOESIM_U8, 1, "[T] of uint8"},
    [MOE_ARRAY_BIAS] = {1 << MOESIM_F64, 1, "[N] of float64"},
    [MOE_ARRAY_BOUNDARIES] = {1 << MOESIM_I64, 1, "[sequences + 1] of int64"},
    [MOE_ARRAY_EXPERT_AT] = {1 << MOESIM_I32, 1, "[slots] of int32"},
};

const char *const moe_layer_array_names[MOE_NUM_LAYER_ARRAYS + 1] = {
    "logits", "routing", "weights", "scores", "mask", "bias", "boundaries", "expert_at", NULL};

int64_t moe_layer_type_size(int32_t type) {
    return type == MOESIM_U8                          ? 1
           : type == MOESIM_I32 || type == MOESIM_F32 ? 4
           : type == MOESIM_I64 || type == MOESIM_F64 ? 8
                                                      : 0;
}

static enum moe_layer_array find(const char *name) {
    enum moe_layer_array i = 0;
    while (i < MOE_NUM_LAYER_ARRAYS && strcmp(moe_layer_array_names[i], name) != 0) {
        i++;
    }
    return i;
}

/* The number of elements, or -1 where it is none that memory could hold. */
static int64_t count_of(const moesim_array *a) {
    int64_t count = 1;
    for (int32_t i = 0; i < a->num_dims; i++) {
        if (a->shape[i] < 1 || a->shape[i] > ((int64_t)1 << 40) / count) {
            return -1;
        }
        count *= a->shape[i];
    }
    return count;
}

int moe_layer_take(moesim_layer *l, const char *name, const moesim_array *array, moe_status *st) {
    const enum moe_layer_array i = find(name);
    if (i == MOE_NUM_LAYER_ARRAYS) {
        return moe_fail(st, MOE_USER, "a layer takes no array '%.60s'", name);
    }
    if (array && (!array->data || array->num_dims != table[i].num_dims || array->type < 1 ||
                  array->type > MOESIM_F64 || !(table[i].types & 1u << array->type))) {
        return moe_fail(st, MOE_USER, "%s has to be an array %s", name, table[i].shape);
    }
    const int64_t count = array ? count_of(array) : 0;
    if (count < 0) {
        return moe_fail(st, MOE_USER,
                        "%s: every dimension has at least one element, and all have at most 2^40",
                        name);
    }
    moe_free((void *)l->array[i].data);
    l->array[i] = (moesim_array){0};
    if (array) {
        const int64_t size = moe_layer_type_size(array->type);
        void *copy = moe_alloc(count, (size_t)size, name);
        memcpy(copy, array->data, (size_t)(count * size));
        l->array[i] = *array;
        l->array[i].data = copy;
    }
    return MOE_OK;
}

/* --- what they say of the configuration --- */

static int set(moe_config *c, moe_status *st, const char *key, const char *value) {
    char text[128];
    snprintf(text, sizeof text, "%s=%s", key, value);
    return moe_config_set(c, text, st);
}

/* The number of experts that the arrays speak of, or 0. */
static int64_t experts_of(const moesim_layer *l) {
    return moe_layer_has(l, MOE_ARRAY_LOGITS)   ? l->array[MOE_ARRAY_LOGITS].shape[1]
           : moe_layer_has(l, MOE_ARRAY_SCORES) ? l->array[MOE_ARRAY_SCORES].shape[1]
                                                : 0;
}

static int set_experts(const moesim_layer *l, moe_config *c, moe_status *st) {
    char number[24];
    const int64_t n = experts_of(l);
    if (n == 0) {
        return MOE_OK;
    }
    if (moe_config_given(c, MOE_KEY(model, num_experts)) && c->model.num_experts != n) {
        return moe_fail(st, MOE_USER, "model.num_experts = %d, and the array has %lld columns",
                        c->model.num_experts, (long long)n);
    }
    snprintf(number, sizeof number, "%lld", (long long)n);
    return set(c, st, "model.num_experts", number);
}

/* A path stands for an array: the rules of the configuration ask whether there is one. */
int moe_layer_describe(const moesim_layer *l, moe_config *c, moe_status *st) {
    const bool routing = moe_layer_has(l, MOE_ARRAY_ROUTING),
               logits = moe_layer_has(l, MOE_ARRAY_LOGITS);
    if (routing || logits) {
        set(c, st, "data.source", routing ? "routing" : "logits");
        set(c, st, "data.path", routing ? "routing" : "logits");
    }
    if (moe_layer_has(l, MOE_ARRAY_WEIGHTS)) {
        set(c, st, "data.weights", "weights");
    }
    if (moe_layer_has(l, MOE_ARRAY_SCORES)) {
        set(c, st, "data.scores", "scores");
    }
    if (moe_layer_has(l, MOE_ARRAY_MASK)) {
        set(c, st, "data.mask", "mask");
    }
    if (moe_layer_has(l, MOE_ARRAY_BOUNDARIES)) {
        set(c, st, "data.boundaries", "boundaries");
    }
    if (moe_layer_has(l, MOE_ARRAY_EXPERT_AT)) {
        set(c, st, "placement.file", "expert_at");
    }
    return st->code != MOE_OK ? st->code : set_experts(l, c, st);
}

int64_t moe_layer_tokens(const moesim_layer *l) {
    return moe_layer_has(l, MOE_ARRAY_ROUTING) ? l->array[MOE_ARRAY_ROUTING].shape[0]
           : moe_layer_has(l, MOE_ARRAY_LOGITS)
               ? l->array[MOE_ARRAY_LOGITS].shape[0]
               : l->config.data.tokens_per_device * l->config.cluster.devices;
}

/* --- shapes --- */

/* rows = 0 and columns = 0: any number. */
static int check_shape(const moesim_layer *l,
                       enum moe_layer_array which,
                       int64_t rows,
                       int64_t columns,
                       const char *why,
                       moe_status *st) {
    const moesim_array *a = &l->array[which];
    const int64_t second = a->num_dims == 2 ? a->shape[1] : 0;
    if (!a->data || (a->shape[0] == rows && second == columns)) {
        return MOE_OK;
    }
    if (a->num_dims == 1) {
        return moe_fail(st, MOE_USER, "%s has %lld elements, and it needs %lld: %s",
                        moe_layer_array_names[which], (long long)a->shape[0], (long long)rows, why);
    }
    return moe_fail(st, MOE_USER, "%s is [%lld,%lld], and it has to be [%lld,%lld]: %s",
                    moe_layer_array_names[which], (long long)a->shape[0], (long long)second,
                    (long long)rows, (long long)columns, why);
}

static int check_shapes(const moesim_layer *l, moe_status *st) {
    const moe_config *c = &l->config;
    const int64_t tokens = moe_layer_tokens(l), n = c->model.num_experts,
                  k = moe_layer_has(l, MOE_ARRAY_ROUTING) ? l->array[MOE_ARRAY_ROUTING].shape[1]
                                                          : 0;
    check_shape(l, MOE_ARRAY_LOGITS, tokens, n, "a row for each token, a column for each expert",
                st);
    check_shape(l, MOE_ARRAY_SCORES, tokens, n, "a row for each token, a column for each expert",
                st);
    check_shape(l, MOE_ARRAY_WEIGHTS, tokens, k, "the shape of routing", st);
    check_shape(l, MOE_ARRAY_MASK, tokens, 0, "one for each token", st);
    check_shape(l, MOE_ARRAY_BIAS, n, 0, "one for each expert", st);
    check_shape(l, MOE_ARRAY_EXPERT_AT,
                (int64_t)moe_config_slots_per_device(c) * c->cluster.devices, 0,
                "one for each slot of each device", st);
    return st->code;
}

/* --- numbers --- */

static double number(const moesim_array *a, int64_t i) {
    return a->type == MOESIM_F32 ? (double)((const float *)a->data)[i]
                                 : ((const double *)a->data)[i];
}

static bool is_padding(const moesim_layer *l, int64_t t) {
    return moe_layer_has(l, MOE_ARRAY_MASK) &&
           ((const uint8_t *)l->array[MOE_ARRAY_MASK].data)[t] == 0;
}

static bool is_dropped(const moesim_layer *l, int64_t t) {
    return l->config.data.padding == MOE_PADDING_DROPPED && is_padding(l, t);
}

static int bad_number(const char *name,
                      int64_t row,
                      int64_t column,
                      double value,
                      const char *allowed,
                      moe_status *st) {
    return moe_fail(st, MOE_USER, "%s [%lld,%lld] is %g: allowed are %s", name, (long long)row,
                    (long long)column, value, allowed);
}

static int check_logits(const moesim_layer *l, moe_status *st) {
    const moesim_array *a = &l->array[MOE_ARRAY_LOGITS];
    const double most = MOE_LOGIT_LIMIT - 16; /* the logsumexp is larger by log N at most */
    for (int64_t t = 0; a->data && t < a->shape[0] && st->code == MOE_OK; t++) {
        double largest = -INFINITY;
        for (int64_t e = 0; e < a->shape[1] && !is_dropped(l, t); e++) {
            const double z = number(a, t * a->shape[1] + e);
            if (!(z <= most)) {
                return bad_number("logits", t, e, z,
                                  "numbers up to 1048560, and -inf (a disabled expert)", st);
            }
            largest = z > largest ? z : largest;
        }
        if (largest == -INFINITY && !is_padding(l, t)) {
            return moe_fail(st, MOE_USER,
                            "logits: all of token %lld are -inf, so that no expert is left for "
                            "it; mask may say that it is padding",
                            (long long)t);
        }
        if (largest > -INFINITY && largest < -most) {
            return bad_number("logits", t, 0, number(a, t * a->shape[1]),
                              "tokens with a logit of at least -1048560", st);
        }
    }
    return st->code;
}

static int check_routing(const moesim_layer *l, moe_status *st) {
    const moesim_array *a = &l->array[MOE_ARRAY_ROUTING];
    const int32_t *expert = a->data;
    char allowed[64];
    snprintf(allowed, sizeof allowed, "-1 (none) and experts 0 to %d",
             l->config.model.num_experts - 1);
    for (int64_t t = 0; expert && t < a->shape[0]; t++) {
        const int32_t *row = expert + t * a->shape[1];
        for (int64_t k = 0; k < a->shape[1]; k++) {
            if (row[k] < -1 || row[k] >= l->config.model.num_experts) {
                return bad_number("routing", t, k, row[k], allowed, st);
            }
            for (int64_t j = 0; j < k && row[k] >= 0; j++) {
                if (row[j] == row[k]) {
                    return bad_number("routing", t, k, row[k], "different experts in one token",
                                      st);
                }
            }
        }
    }
    return MOE_OK;
}

/* All numbers of an array lie between two bounds. */
static int check_range(const moesim_layer *l,
                       enum moe_layer_array which,
                       double least,
                       double most,
                       const char *allowed,
                       moe_status *st) {
    const moesim_array *a = &l->array[which];
    const int64_t columns = a->num_dims == 2 ? a->shape[1] : 1;
    for (int64_t i = 0; a->data && i < a->shape[0] * columns; i++) {
        const double value = number(a, i);
        if (!(value >= least && value <= most)) {
            return bad_number(moe_layer_array_names[which], i / columns, i % columns, value,
                              allowed, st);
        }
    }
    return MOE_OK;
}

static int check_mask(const moesim_layer *l, moe_status *st) {
    const moesim_array *a = &l->array[MOE_ARRAY_MASK];
    const int64_t tokens = a->data ? a->shape[0] : 0;
    int64_t t = 0;
    while (t < tokens && is_padding(l, t)) {
        t++;
    }
    return a->data && t == tokens
               ? moe_fail(st, MOE_USER, "mask: all of it is 0, so that no token is left to count")
               : MOE_OK;
}

static int check_boundaries(const moesim_layer *l, moe_status *st) {
    const moesim_array *a = &l->array[MOE_ARRAY_BOUNDARIES];
    const int64_t *first = a->data, tokens = moe_layer_tokens(l);
    if (!first) {
        return MOE_OK;
    }
    if (a->shape[0] < 2 || first[0] != 0 || first[a->shape[0] - 1] != tokens) {
        return moe_fail(st, MOE_USER,
                        "boundaries: they begin with 0 and end with the number of tokens, here "
                        "%lld",
                        (long long)tokens);
    }
    for (int64_t i = 1; i < a->shape[0]; i++) {
        if (first[i] <= first[i - 1]) {
            return moe_fail(st, MOE_USER,
                            "boundaries: number %lld is %lld after %lld; allowed are rising "
                            "numbers, so that every sequence has a token",
                            (long long)i, (long long)first[i], (long long)first[i - 1]);
        }
    }
    return MOE_OK;
}

/* Every expert has a slot. */
static int check_slots(const moesim_layer *l, moe_status *st) {
    const moesim_array *a = &l->array[MOE_ARRAY_EXPERT_AT];
    const int32_t n = l->config.model.num_experts, *expert = a->data;
    if (!expert) {
        return MOE_OK;
    }
    uint8_t *there = moe_alloc_zero(n, 1, "slots");
    for (int64_t i = 0; i < a->shape[0] && st->code == MOE_OK; i++) {
        if (expert[i] < 0 || expert[i] >= n) {
            moe_fail(st, MOE_USER, "expert_at [%lld] is %d: allowed are experts 0 to %d",
                     (long long)i, expert[i], n - 1);
        } else {
            there[expert[i]] = 1;
        }
    }
    for (int32_t e = 0; e < n && st->code == MOE_OK; e++) {
        if (!there[e]) {
            moe_fail(st, MOE_USER, "expert_at: expert %d is in no slot", e);
        }
    }
    moe_free(there);
    return st->code;
}

int moe_layer_check(const moesim_layer *l, moe_status *st) {
    const enum moe_score_func f = l->config.router.score_func;
    const bool shares = moe_score_functions[f].sums_to_one;
    if (check_shapes(l, st) != MOE_OK || check_mask(l, st) != MOE_OK) {
        return st->code;
    }
    check_logits(l, st);
    check_routing(l, st);
    check_range(l, MOE_ARRAY_WEIGHTS, -MOE_LOGIT_LIMIT, MOE_LOGIT_LIMIT,
                "weights from -1048576 to 1048576", st);
    check_range(l, MOE_ARRAY_SCORES, 0, shares ? 1 + 1e-5 : MOE_LOGIT_LIMIT,
                shares ? "scores from 0 to 1" : "scores from 0 to 1048576", st);
    check_range(l, MOE_ARRAY_BIAS, -MOE_LOGIT_LIMIT, MOE_LOGIT_LIMIT,
                "numbers from -1048576 to 1048576", st);
    check_boundaries(l, st);
    return st->code != MOE_OK ? st->code : check_slots(l, st);
}
