/* recorded.c: logits and routing that were recorded elsewhere, step by step: dealt out to the
 * ranks, checked and turned into the types that the simulation works with. Every rank checks its
 * own tokens in their order and ranks have tokens in their order too, so that the failure of the
 * lowest rank, on which all agree, is the one of the lowest token. */
#include "data/recorded.h"

#include <math.h>

#include "base/alloc.h"
#include "data/token_array.h"

/* How far the sum of shares may be from 1 when they were recorded in a narrow format. */
static const double ROUNDED_SUM = 0.02;

static moe_token_array token_rows(const moe_config *c,
                                  const char *key,
                                  const char *path,
                                  enum moe_kind kind,
                                  int64_t columns,
                                  int64_t tokens) {
    return (moe_token_array){.key = key,
                             .path = path,
                             .kind = kind,
                             .columns = columns,
                             .tokens = tokens,
                             .layers = moe_config_moe_layers(c)};
}

/* Index of the first number of the row of a plane (a layer of a step) and a local token. */
static int64_t index_of_row(const moe_token_array *r, int64_t plane, int64_t t) {
    return (plane * r->count + t) * r->columns;
}

/* Says "token 3, expert 5: ...", with the layer and the step where there are several. */
static int bad_number(const moe_token_array *r,
                      int64_t plane,
                      int64_t t,
                      int64_t column,
                      const char *what,
                      double value,
                      const char *allowed,
                      moe_status *st) {
    char in_layer[32] = "", of_step[32] = "";
    if (r->layers > 1) {
        snprintf(in_layer, sizeof in_layer, " in layer %lld", (long long)(plane % r->layers));
    }
    if (r->file_steps > 1) {
        snprintf(of_step, sizeof of_step, " of step %lld", (long long)(plane / r->layers));
    }
    return moe_token_array_fail(r, st, "token %lld%s%s, %s %lld: %g is not allowed; allowed are %s",
                                (long long)(r->first + t), in_layer, of_step, what,
                                (long long)column, value, allowed);
}

/* --- mask --- */

/* Of each step how many tokens of all ranks count. A step in which none does has no losses. */
static int count_mask(const moe_comm *comm,
                      const moe_config *c,
                      const moe_token_array *r,
                      moe_input *in,
                      moe_status *st) {
    int64_t *counted = moe_alloc_zero(r->steps, sizeof *counted, "mask");
    for (int64_t i = 0; i < r->steps * r->count; i++) {
        counted[i / r->count] += in->mask[i] = moe_npy_i64(&r->header, r->data, i) != 0;
    }
    moe_comm_sum_i64(comm, counted, r->steps);
    for (int64_t s = 0; s < r->steps && st->code == MOE_OK; s++) {
        in->num_counted = counted[s] > in->num_counted ? counted[s] : in->num_counted;
        if (counted[s] == 0 && r->steps == 1) {
            moe_fail(st, MOE_USER,
                     "data.mask = %s: all of it is 0, so that no token is left to count",
                     c->data.mask);
        } else if (counted[s] == 0) {
            moe_fail(st, MOE_USER,
                     "data.mask = %s: all of step %lld is 0, so that no token is left to count",
                     c->data.mask, (long long)s);
        }
    }
    moe_free(counted);
    return st->code;
}

/* For the steps of the recording `of`. */
static int read_mask(const moe_comm *comm,
                     const moe_config *c,
                     const moe_token_array *of,
                     moe_input *in,
                     moe_status *st) {
    if (!c->data.mask[0]) {
        return MOE_OK;
    }
    moe_token_array r = {.key = "data.mask",
                         .path = c->data.mask,
                         .kind = MOE_KIND_INTEGER,
                         .flat = true,
                         .tokens = in->num_tokens_global,
                         .file_steps = of->file_steps,
                         .steps = of->steps};
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->mask = moe_alloc(r.steps * r.count, 1, "mask");
    in->mask_has_steps = r.file_steps > 1;
    count_mask(comm, c, &r, in, st);
    moe_free(r.data);
    return st->code;
}

/* Where the mask of a token in a plane of `r` stands. */
static int64_t index_of_mask(const moe_input *in, const moe_token_array *r, int64_t plane) {
    return in->mask_has_steps ? plane / r->layers * r->count : 0;
}

static bool is_padding(const moe_input *in, const moe_token_array *r, int64_t plane, int64_t t) {
    return in->mask && !in->mask[index_of_mask(in, r, plane) + t];
}

/* Whether a token is padding of which nothing is looked at. */
static bool ignores(const moe_input *in,
                    const moe_config *c,
                    const moe_token_array *r,
                    int64_t plane,
                    int64_t t) {
    return c->data.padding == MOE_PADDING_DROPPED && is_padding(in, r, plane, t);
}

/* --- steps --- */

/* What the first file says of the recording: tokens and steps. The same on every rank. */
static int take_steps(moe_config *c, const moe_token_array *r, moe_input *in, moe_status *st) {
    in->num_tokens_global = r->tokens;
    return moe_config_recorded_steps(c, r->file_steps, st);
}

/* As many steps as the run has; all where it takes those of the recording. */
static int64_t wanted_steps(const moe_config *c) {
    return c->steps_are_recorded ? 0 : c->run.steps;
}

/* --- recorded logits --- */

/* What a row of logits says: its largest logit, its sum, and whether all of it lies in [0,1]. */
typedef struct logits_row {
    double largest, sum;
    bool within_one;
} logits_row;

static logits_row read_row(const moe_token_array *r, int64_t row) {
    logits_row found = {.largest = -INFINITY, .within_one = true};
    for (int64_t e = 0; e < r->columns; e++) {
        const double z = moe_npy_f64(&r->header, r->data, row + e);
        found.largest = z > found.largest ? z : found.largest;
        found.sum += z;
        found.within_one = found.within_one && z >= 0 && z <= 1;
    }
    return found;
}

/* No NaN, no +inf and nothing that is too large to be routed. -inf disables an expert. */
static int check_row(const moe_token_array *r,
                     int64_t plane,
                     int64_t t,
                     double largest,
                     moe_status *st) {
    const double most = MOE_LOGIT_LIMIT - 16; /* the logsumexp is larger by log N at most */
    for (int64_t e = 0; e < r->columns; e++) {
        const double z = moe_npy_f64(&r->header, r->data, index_of_row(r, plane, t) + e);
        if (!(z < INFINITY) || z > most) {
            return bad_number(r, plane, t, e, "expert", z,
                              "logits of up to 1048560 and -inf (a disabled expert)", st);
        }
    }
    if (largest > -INFINITY && largest < -most) {
        return bad_number(r, plane, t, 0, "expert",
                          moe_npy_f64(&r->header, r->data, index_of_row(r, plane, t)),
                          "tokens with a logit of at least -1048560", st);
    }
    return MOE_OK;
}

/* Counts the rows that are no padding, and those that look like probabilities: a softmax whose user
 * meant its logits. */
static int check_logits(const moe_token_array *r,
                        const moe_config *c,
                        const moe_input *in,
                        int64_t rows[2],
                        moe_status *st) {
    for (int64_t t = 0; t < r->count; t++) {
        for (int64_t plane = 0; plane < moe_token_array_planes(r); plane++) {
            if (ignores(in, c, r, plane, t)) {
                continue;
            }
            const logits_row row = read_row(r, index_of_row(r, plane, t));
            if (check_row(r, plane, t, row.largest, st) != MOE_OK) {
                return st->code;
            }
            if (!is_padding(in, r, plane, t)) {
                rows[0]++;
                rows[1] += row.within_one && fabs(row.sum - 1) < ROUNDED_SUM;
            }
        }
    }
    return MOE_OK;
}

/* The first token of the array in the plane that has no enabled expert and is not padding; -1:
 * there is none. */
static int64_t find_disabled(const moe_token_array *r, const moe_input *in, int64_t plane) {
    for (int64_t t = 0; t < r->count; t++) {
        if (!is_padding(in, r, plane, t) &&
            read_row(r, index_of_row(r, plane, t)).largest == -INFINITY) {
            return t;
        }
    }
    return -1;
}

/* A token without any enabled expert has no scores, so that it can be counted in no mean: it has to
 * be padding. */
static int check_enabled(const moe_token_array *r,
                         const moe_config *c,
                         const moe_input *in,
                         moe_status *st) {
    for (int64_t plane = 0; plane < moe_token_array_planes(r) && st->code == MOE_OK; plane++) {
        const int64_t t = find_disabled(r, in, plane);
        char of_step[40] = "";
        if (t < 0) {
            continue;
        }
        if (r->file_steps > 1) {
            snprintf(of_step, sizeof of_step, " of step %lld", (long long)(plane / r->layers));
        }
        moe_fail(st, MOE_USER,
                 "data.path = %s: token %lld in layer %lld%s: all of its logits are -inf, so that "
                 "no expert is left for it; data.mask may say that it is padding",
                 c->data.path, (long long)(r->first + t), (long long)(plane % r->layers), of_step);
    }
    return st->code;
}

int moe_recorded_read_logits(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st) {
    moe_token_array r =
        token_rows(c, "data.path", c->data.path, MOE_KIND_FLOAT, c->model.num_experts, 0);
    r.steps = wanted_steps(c);
    int64_t rows[2] = {0};
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->logits_dtype = r.header.dtype;
    in->logits = r.data;
    if (take_steps(c, &r, in, st) || read_mask(comm, c, &r, in, st)) {
        return st->code;
    }
    if (check_logits(&r, c, in, rows, st) == MOE_OK) {
        check_enabled(&r, c, in, st);
    }
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    moe_comm_sum_i64(comm, rows, 2);
    in->logits_look_like_shares = r.columns > 1 && rows[0] > 0 && rows[1] == rows[0];
    return MOE_OK;
}

/* --- recorded routing, its weights and scores --- */

/* No expert may stand twice in the choices of one token; -1, which is none, may stand anywhere. */
static int check_choices(const moe_token_array *r,
                         int64_t plane,
                         int64_t t,
                         const int32_t *idx,
                         moe_status *st) {
    for (int64_t k = 0; k < r->columns; k++) {
        for (int64_t j = 0; j < k; j++) {
            if (idx[k] >= 0 && idx[j] == idx[k]) {
                return bad_number(r, plane, t, k, "choice", idx[k],
                                  "different experts in one token", st);
            }
        }
    }
    return MOE_OK;
}

static int convert_routing(const moe_token_array *r,
                           const moe_config *c,
                           const moe_input *in,
                           int32_t *routing,
                           moe_status *st) {
    int32_t num_experts = c->model.num_experts;
    char allowed[64];
    snprintf(allowed, sizeof allowed, "-1 (none) and experts 0 to %d", num_experts - 1);
    for (int64_t t = 0; t < r->count; t++) {
        for (int64_t plane = 0; plane < moe_token_array_planes(r); plane++) {
            int64_t row = index_of_row(r, plane, t);
            for (int64_t k = 0; k < r->columns; k++) {
                routing[row + k] = -1;
            }
            for (int64_t k = 0; k < r->columns && !ignores(in, c, r, plane, t); k++) {
                int64_t expert = moe_npy_i64(&r->header, r->data, row + k);
                if (expert < -1 || expert >= num_experts) {
                    return bad_number(r, plane, t, k, "choice", (double)expert, allowed, st);
                }
                routing[row + k] = (int32_t)expert;
            }
            if (check_choices(r, plane, t, routing + row, st)) {
                return st->code;
            }
        }
    }
    return MOE_OK;
}

static int read_choices(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st) {
    moe_token_array r = token_rows(c, "data.path", c->data.path, MOE_KIND_INTEGER, 0, 0);
    r.most_columns = c->model.num_experts;
    r.steps = wanted_steps(c);
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->num_steps = r.file_steps;
    in->routing_k = (int32_t)r.columns;
    in->routing = moe_alloc(moe_token_array_planes(&r) * r.count * r.columns, sizeof *in->routing,
                            "recorded routing");
    if (take_steps(c, &r, in, st) == MOE_OK && read_mask(comm, c, &r, in, st) == MOE_OK) {
        convert_routing(&r, c, in, in->routing, st);
    }
    moe_free(r.data);
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    return moe_config_recorded_top_k(c, in->routing_k, st);
}

/* Where there is no expert (-1) the weight becomes 0, whatever the file says. */
static int convert_weights(const moe_token_array *r,
                           const int32_t *routing,
                           real *weights,
                           moe_status *st) {
    for (int64_t t = 0; t < r->count; t++) {
        for (int64_t plane = 0; plane < moe_token_array_planes(r); plane++) {
            for (int64_t k = 0; k < r->columns; k++) {
                int64_t i = index_of_row(r, plane, t) + k;
                double weight = routing[i] < 0 ? 0 : moe_npy_f64(&r->header, r->data, i);
                weights[i] = (real)weight;
                if (!(fabs(weight) <= MOE_LOGIT_LIMIT)) {
                    return bad_number(r, plane, t, k, "choice", weight,
                                      "weights from -1048576 to 1048576", st);
                }
            }
        }
    }
    return MOE_OK;
}

static int read_weights(const moe_comm *comm, const moe_config *c, moe_input *in, moe_status *st) {
    moe_token_array r = token_rows(c, "data.weights", c->data.weights, MOE_KIND_FLOAT,
                                   in->routing_k, in->num_tokens_global);
    r.file_steps = in->num_steps;
    r.steps = c->run.steps;
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->weights = moe_alloc(moe_token_array_planes(&r) * r.count * r.columns, sizeof *in->weights,
                            "recorded weights");
    convert_weights(&r, in->routing, in->weights, st);
    moe_free(r.data);
    return moe_comm_agree(comm, st);
}

/* Scores that are shares (softmax) may pass 1 by as much as whoever recorded them rounded. *odd
 * counts tokens whose shares do not sum to 1, of which the first is kept in *in. */
static int convert_scores(const moe_token_array *r,
                          const moe_config *c,
                          bool shares,
                          moe_input *in,
                          int64_t *odd,
                          moe_status *st) {
    const double most = shares ? 1 + 1e-5 : MOE_LOGIT_LIMIT;
    for (int64_t t = 0; t < r->count; t++) {
        for (int64_t plane = 0; plane < moe_token_array_planes(r); plane++) {
            double sum = 0;
            for (int64_t e = 0; e < r->columns; e++) {
                int64_t i = index_of_row(r, plane, t) + e;
                double s = ignores(in, c, r, plane, t) ? 0 : moe_npy_f64(&r->header, r->data, i);
                if (!(s >= 0 && s <= most)) {
                    return bad_number(r, plane, t, e, "expert", s,
                                      shares ? "scores from 0 to 1" : "scores from 0 to 1048576",
                                      st);
                }
                in->scores[i] = shares && s > 1 ? 1 : s;
                sum += in->scores[i];
            }
            if (shares && !is_padding(in, r, plane, t) && fabs(sum - 1) > ROUNDED_SUM) {
                in->odd_scores_sum = *odd == 0 ? sum : in->odd_scores_sum;
                (*odd)++;
            }
        }
    }
    return MOE_OK;
}

static int read_scores(const moe_comm *comm, const moe_config *c, moe_input *in, moe_status *st) {
    moe_token_array r = token_rows(c, "data.scores", c->data.scores, MOE_KIND_FLOAT,
                                   c->model.num_experts, in->num_tokens_global);
    r.file_steps = in->num_steps;
    r.steps = c->run.steps;
    bool shares = moe_config_scores_sum_to_one(c);
    int64_t odd = 0;
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->scores = moe_alloc(moe_token_array_planes(&r) * r.count * r.columns, sizeof *in->scores,
                           "recorded scores");
    convert_scores(&r, c, shares, in, &odd, st);
    moe_free(r.data);
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    in->odd_scores = odd;
    moe_comm_sum_i64(comm, &in->odd_scores, 1);
    if (in->odd_scores > 0) {
        const int first = moe_comm_lowest_rank(comm, odd > 0);
        moe_comm_bcast(comm, &in->odd_scores_sum, sizeof in->odd_scores_sum, first);
    }
    return MOE_OK;
}

int moe_recorded_read_routing(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st) {
    if (read_choices(comm, c, in, st)) {
        return st->code;
    }
    if (c->data.weights[0] && read_weights(comm, c, in, st)) {
        return st->code;
    }
    if (c->data.scores[0] && read_scores(comm, c, in, st)) {
        return st->code;
    }
    return MOE_OK;
}
