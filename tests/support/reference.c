/* reference.c: the oracle; see reference.h. Slow and obvious on purpose. */
#include "reference.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

static bool softmax_family(const moe_router *r) {
    return r->score_func == MOE_SCORE_SOFTMAX || r->score_func == MOE_SCORE_SOFTMAX_TOPK;
}

/* NaN for a score function without a twin here, which no test passes. */
static double score(const moe_router *r, double z, double max, double sum) {
    switch (r->score_func) {
    case MOE_SCORE_SOFTMAX:
    case MOE_SCORE_SOFTMAX_TOPK:
        return exp(z - max) / sum;
    case MOE_SCORE_SIGMOID:
        return 1 / (1 + exp(-z));
    case MOE_SCORE_SQRTSOFTPLUS:
        return sqrt(z > 30 ? z + exp(-z) : log1p(exp(z)));
    }
    return NAN;
}

void ref_scores(const moe_router *r, const double *z, double *s, double *lse) {
    int32_t n = r->num_experts;
    double max = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++) {
        max = fmax(max, z[i]);
    }
    for (int32_t i = 0; i < n; i++) {
        if (z[i] != -INFINITY) {
            sum += exp(z[i] - max);
        }
    }
    *lse = sum == 0 ? -INFINITY : max + log(sum);
    for (int32_t i = 0; i < n; i++) {
        if (z[i] == -INFINITY) {
            s[i] = 0;
        } else {
            s[i] = score(r, z[i], max, sum);
        }
    }
}

void ref_normalized(const moe_router *r, const double *s, double *normalized) {
    double sum = 0;
    for (int32_t i = 0; i < r->num_experts; i++) {
        sum += s[i];
    }
    for (int32_t i = 0; i < r->num_experts; i++) {
        normalized[i] = softmax_family(r) || sum == 0 ? s[i] : s[i] / sum;
    }
}

static int compare_falling(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Score of the group whose selection scores are x [n]. */
static double group_score(const moe_router *r, const double *x, int32_t n) {
    double *sorted = malloc((size_t)n * sizeof *sorted), sum = 0;
    int32_t terms = 1;
    if (r->group_limit == MOE_GROUP_TOP2_SUM) {
        terms = 2;
    }
    if (r->group_limit == MOE_GROUP_TOPK_SUM) {
        terms = r->top_k / r->topk_group;
    }
    if (terms < 1) {
        terms = 1;
    }
    if (terms > n) {
        terms = n;
    }
    memcpy(sorted, x, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_falling);
    bool empty = sorted[0] == -INFINITY;
    for (int32_t i = 0; i < terms; i++) {
        if (sorted[i] != -INFINITY) {
            sum += sorted[i];
        }
    }
    free(sorted);
    return empty ? -INFINITY : sum;
}

/* Index of the first largest of x [n] that is not taken, or -1 when none is above -inf. */
static int32_t best_of(const double *x, const bool *taken, int32_t n) {
    int32_t best = -1;
    for (int32_t i = 0; i < n; i++) {
        if (!taken[i] && x[i] != -INFINITY && (best < 0 || x[i] > x[best])) {
            best = i;
        }
    }
    return best;
}

/* allowed[i]: expert i is in a kept group. */
static void limit_groups(const moe_router *r, const double *selection, bool *allowed) {
    int32_t n = r->num_experts;
    int32_t groups = r->num_groups;
    int32_t size = n / groups;
    double *score = malloc((size_t)groups * sizeof *score);
    bool *kept = calloc((size_t)groups, sizeof *kept);
    for (int32_t g = 0; g < groups; g++) {
        score[g] = group_score(r, selection + g * size, size);
    }
    for (int32_t m = 0; m < r->topk_group; m++) {
        int32_t g = best_of(score, kept, groups);
        if (g >= 0) {
            kept[g] = true;
        }
    }
    for (int32_t i = 0; i < n; i++) {
        allowed[i] = kept[i / size];
    }
    free(score);
    free(kept);
}

/* Marks chosen[i] for at most `count` experts of [begin, end). */
static void choose(const double *selection,
                   int32_t begin,
                   int32_t end,
                   int32_t count,
                   bool *chosen) {
    for (int32_t k = 0; k < count; k++) {
        int32_t best = best_of(selection + begin, chosen + begin, end - begin);
        if (best >= 0) {
            chosen[begin + best] = true;
        }
    }
}

static int32_t list_by_score(const double *s, const bool *chosen, int32_t n, int32_t *expert) {
    int32_t count = 0;
    bool *rest = malloc((size_t)n * sizeof *rest);
    for (int32_t i = 0; i < n; i++) {
        rest[i] = !chosen[i];
    }
    for (int32_t best = best_of(s, rest, n); best >= 0; best = best_of(s, rest, n)) {
        expert[count++] = best;
        rest[best] = true;
    }
    free(rest);
    return count;
}

static void weigh(const moe_router *r,
                  const double *s,
                  const int32_t *expert,
                  int32_t count,
                  double *weight) {
    double sum = 0;
    bool norm = r->norm_topk_prob && !(r->top_k == 1 && !r->norm_single);
    for (int32_t k = 0; k < count; k++) {
        sum += s[expert[k]];
    }
    for (int32_t k = 0; k < count; k++) {
        weight[k] = s[expert[k]];
        if (r->score_func == MOE_SCORE_SOFTMAX_TOPK) {
            weight[k] = sum > 0 ? weight[k] / sum : 0;
        } else if (norm) {
            weight[k] /= sum + 1e-20;
        }
        if (r->scale_normalized || !(norm || r->score_func == MOE_SCORE_SOFTMAX_TOPK)) {
            weight[k] *= r->routed_scaling_factor;
        }
    }
}

/* How many of the best experts by selection score are taken: K, or with top_p as few as it takes
 * for the sum of their scores to exceed p. */
static int32_t number_by_score(const moe_router *r, const double *selection, const double *s) {
    int32_t n = r->num_experts, count = 0;
    bool *taken = calloc((size_t)n, sizeof *taken);
    double sum = 0;
    while (count < r->top_k && (r->method != MOE_METHOD_TOP_P || sum <= r->top_p)) {
        int32_t best = best_of(selection, taken, n);
        if (best < 0) {
            break;
        }
        taken[best] = true;
        sum += s[best];
        count++;
    }
    free(taken);
    return count;
}

int32_t ref_select(const moe_router *r,
                   const double *z,
                   const double *s,
                   int32_t *expert,
                   double *weight) {
    int32_t n = r->num_experts;
    double *selection = malloc((size_t)n * sizeof *selection);
    bool *allowed = malloc((size_t)n * sizeof *allowed),
         *chosen = calloc((size_t)n, sizeof *chosen);
    for (int32_t i = 0; i < n; i++) {
        selection[i] = z[i] == -INFINITY ? -INFINITY : s[i] + (r->bias ? r->bias[i] : 0);
    }
    if (r->group_limit != MOE_GROUP_NONE) {
        limit_groups(r, selection, allowed);
        for (int32_t i = 0; i < n; i++) {
            if (!allowed[i]) {
                selection[i] = -INFINITY;
            }
        }
    }
    if (r->group_limit == MOE_GROUP_QUOTA) {
        int32_t size = n / r->num_groups;
        for (int32_t g = 0; g < r->num_groups; g++) {
            choose(selection, g * size, (g + 1) * size, r->top_k / r->topk_group, chosen);
        }
    } else {
        choose(selection, 0, n, number_by_score(r, selection, s), chosen);
    }
    int32_t count = list_by_score(s, chosen, n, expert);
    weigh(r, s, expert, count, weight);
    free(selection);
    free(allowed);
    free(chosen);
    return count;
}

/* The number of the key's draw j, of 0 .. n-1. */
static int32_t drawn(const moe_router *r, const moe_draw *d, int64_t token, int32_t j, int32_t n) {
    bool hash = r->method == MOE_METHOD_HASH;
    moe_rng rng = {d->seed, hash ? MOE_RNG_HASH_ROUTER : MOE_RNG_RANDOM_ROUTER};
    uint64_t key = hash ? (uint64_t)d->layer : (uint64_t)d->step * 4096 + (uint64_t)d->layer;
    return (int32_t)((unsigned __int128)moe_rng_bits(rng, key, (uint64_t)token, (uint32_t)j) *
                         (uint64_t)n >>
                     64);
}

/* The experts that are not disabled, in the order in which the method deals them. */
static int32_t list_dealt(const moe_router *r, const double *z, int32_t *dealt) {
    int32_t n = r->num_experts, count = 0;
    int32_t each = r->method == MOE_METHOD_ROUND_ROBIN ? n / r->devices : n;
    for (int32_t slot = 0; slot < each; slot++) {
        for (int32_t first = 0; first < n; first += each) {
            if (z[first + slot] != -INFINITY) {
                dealt[count++] = first + slot;
            }
        }
    }
    return count;
}

int32_t ref_select_keyed(const moe_router *r,
                         const moe_draw *d,
                         int64_t token,
                         const double *z,
                         const double *s,
                         int32_t *expert,
                         double *weight) {
    int32_t *dealt = malloc((size_t)r->num_experts * sizeof *dealt);
    bool *chosen = calloc((size_t)r->num_experts, sizeof *chosen);
    int32_t n = list_dealt(r, z, dealt), k = r->top_k < n ? r->top_k : n;
    for (int32_t i = 0; i < k; i++) {
        if (r->method == MOE_METHOD_ROUND_ROBIN) {
            chosen[dealt[(token * r->top_k + i) % n]] = true;
            continue;
        }
        int32_t j = n - k + i; /* Floyd: draw among 0 .. j; where it is taken already, j itself */
        int32_t place = drawn(r, d, token, j, j + 1);
        chosen[dealt[chosen[dealt[place]] ? j : place]] = true;
    }
    int32_t count = list_by_score(s, chosen, r->num_experts, expert);
    weigh(r, s, expert, count, weight);
    free(dealt);
    free(chosen);
    return count;
}

int32_t ref_distinct_groups(const moe_router *r, const int32_t *expert, int32_t count) {
    int32_t distinct = 0;
    for (int32_t g = 0; g < r->num_groups; g++) {
        bool hit = false;
        for (int32_t k = 0; k < count; k++) {
            hit = hit || expert[k] / (r->num_experts / r->num_groups) == g;
        }
        distinct += hit;
    }
    return distinct;
}

/* --- losses: docs/method.md section 2 --- */

static bool is_counted(const ref_batch *b, int64_t t) {
    return !b->counted || b->counted[t];
}

/* The selection that the losses count. */
static int32_t select_for_loss(const ref_batch *b, int64_t t, int32_t *expert) {
    moe_router r = *b->router;
    double *s = malloc(2 * (size_t)r.num_experts * sizeof *s), lse;
    const double *z = b->z + t * r.num_experts;
    if (r.aux_selection == MOE_AUX_UNLIMITED) {
        r.group_limit = MOE_GROUP_NONE;
        r.bias = NULL;
    }
    ref_scores(&r, z, s, &lse);
    int32_t count = ref_select(&r, z, s, expert, s + r.num_experts);
    free(s);
    return count;
}

static void count_token(const ref_batch *b, int64_t t, ref_counts *c) {
    int32_t *expert = malloc((size_t)b->router->top_k * sizeof *expert),
            count = select_for_loss(b, t, expert);
    c->tokens++;
    if (count > 0) {
        c->first[expert[0]]++;
    }
    for (int32_t k = 0; k < count; k++) {
        c->expert[expert[k]]++;
    }
    for (int32_t d = 0; d < b->devices; d++) {
        bool sent = false;
        for (int32_t k = 0; k < count; k++) {
            sent = sent || b->device[expert[k]] == d;
        }
        if (sent && (d != b->home[t] || b->router->comm_count_local)) {
            c->device[d]++;
        }
    }
    free(expert);
}

/* chosen [T,K] */
static int32_t *all_choices(const ref_batch *b) {
    int32_t n = b->router->num_experts, most = b->router->top_k;
    int32_t *chosen = malloc((size_t)(b->num_tokens * most) * sizeof *chosen);
    double *s = malloc(2 * (size_t)n * sizeof *s), lse;
    for (int64_t t = 0; t < b->num_tokens; t++) {
        ref_scores(b->router, b->z + t * n, s, &lse);
        int32_t count = ref_select(b->router, b->z + t * n, s, chosen + t * most, s + n);
        for (int32_t k = count; k < most; k++) {
            chosen[t * most + k] = -1;
        }
    }
    free(s);
    return chosen;
}

ref_counts *ref_count(const ref_batch *b) {
    ref_counts *c = calloc((size_t)b->num_scopes, sizeof *c);
    c[0].chosen = all_choices(b);
    for (int32_t i = 0; i < b->num_scopes; i++) {
        c[i].expert = calloc((size_t)b->router->num_experts, sizeof(int64_t));
        c[i].device = calloc((size_t)b->devices, sizeof(int64_t));
        c[i].first = calloc((size_t)b->router->num_experts, sizeof(int64_t));
    }
    for (int64_t t = 0; t < b->num_tokens; t++) {
        if (is_counted(b, t)) {
            count_token(b, t, &c[b->scope[t]]);
        }
    }
    return c;
}

void ref_counts_free(ref_counts *c, int32_t num_scopes) {
    for (int32_t i = 0; i < num_scopes; i++) {
        free(c[i].expert);
        free(c[i].device);
        free(c[i].first);
        free(c[i].chosen);
    }
    free(c);
}

/* f [N], f' [D], f'' [D] of one scope. */
static void frequencies(const ref_batch *b,
                        const ref_counts *c,
                        double *f,
                        double *f_device,
                        double *f_comm) {
    int32_t n = b->router->num_experts;
    double selections = 0;
    for (int32_t i = 0; i < n; i++) {
        selections += (double)c->expert[i];
    }
    double k_mean = selections / (double)c->tokens;
    for (int32_t i = 0; i < n; i++) {
        f[i] = k_mean > 0 ? n / (k_mean * (double)c->tokens) * (double)c->expert[i] : 0;
    }
    for (int32_t d = 0; d < b->devices; d++) {
        double sum = 0;
        double here = 0;
        double experts = 0;
        for (int32_t i = 0; i < n; i++) {
            if (b->device[i] == d) {
                sum += f[i];
                here += (double)c->expert[i];
                experts++;
            }
        }
        f_device[d] = sum / experts;
        if (b->comm_count == MOE_COUNT_TOKENS) {
            here = (double)c->device[d];
        }
        f_comm[d] = b->devices / ((double)b->comm_limit * (double)c->tokens) * here;
    }
}

/* P [N] of scope `scope`. */
static void mean_scores(const ref_batch *b, int32_t scope, int64_t tokens, double *p) {
    int32_t n = b->router->num_experts;
    double *s = malloc((size_t)n * sizeof *s), lse;
    for (int32_t i = 0; i < n; i++) {
        p[i] = 0;
    }
    for (int64_t t = 0; t < b->num_tokens; t++) {
        if (b->scope[t] != scope || !is_counted(b, t)) {
            continue;
        }
        ref_scores(b->router, b->z + t * n, s, &lse);
        ref_normalized(b->router, s, s);
        for (int32_t i = 0; i < n; i++) {
            p[i] += s[i] / (double)tokens;
        }
    }
    free(s);
}

/* Means over all counted tokens: of lse^2, and the entropy. */
static void token_means(const ref_batch *b, double loss[MOE_NUM_LOSSES]) {
    int32_t n = b->router->num_experts;
    double *s = malloc((size_t)n * sizeof *s);
    double lse;
    double squares = 0;
    double entropy = 0;
    double tokens = 0;
    for (int64_t t = 0; t < b->num_tokens; t++) {
        if (!is_counted(b, t)) {
            continue;
        }
        ref_scores(b->router, b->z + t * n, s, &lse);
        squares += lse == -INFINITY ? 0 : lse * lse;
        ref_normalized(b->router, s, s);
        for (int32_t i = 0; i < n; i++) {
            entropy -= s[i] > 0 ? s[i] * log(s[i]) : 0;
        }
        tokens++;
    }
    free(s);
    if (tokens == 0) {
        return;
    }
    loss[MOE_LOSS_Z] = squares / tokens;
    loss[MOE_LOSS_ENTROPY] = entropy / tokens;
    loss[MOE_LOSS_ENTROPY_Z] = -entropy / tokens / n;
}

/* variance (N - 1) and CV^2 of x [n] */
static double variance(const double *x, int32_t n, double *squared_variation) {
    double mean = 0, sum = 0;
    for (int32_t i = 0; i < n; i++) {
        mean += x[i] / n;
    }
    for (int32_t i = 0; i < n; i++) {
        sum += (x[i] - mean) * (x[i] - mean);
    }
    sum = n > 1 ? sum / (n - 1) : 0;
    *squared_variation = mean != 0 ? sum / (mean * mean) : 0;
    return sum;
}

/* Adds to x [N] what token t adds to the importance (of weights) or to Tutel's smooth load of each
 * expert. */
static void add_token_sums(const ref_batch *b,
                           int64_t t,
                           const int32_t *chosen,
                           double *importance,
                           double *load) {
    const moe_router *r = b->router;
    int32_t n = r->num_experts, count = 0;
    const double *z = b->z + t * n;
    double *s = malloc((size_t)(n + r->top_k) * sizeof *s), *weight = s + n, lse;
    while (count < r->top_k && chosen[count] >= 0) {
        count++;
    }
    ref_scores(r, z, s, &lse);
    weigh(r, s, chosen, count, weight);
    for (int32_t k = 0; k < count; k++) {
        importance[chosen[k]] += weight[k];
    }
    for (int32_t i = 0; i < n && count > 0 && r->noise > 0; i++) {
        load[i] += 0.5 * (1 + erf((s[i] - z[chosen[count - 1]]) / (r->noise * sqrt(2))));
    }
    free(s);
}

/* importance, load and usage variance of one scope; p [N] its mean scores. */
static void variation_losses(const ref_batch *b,
                             const ref_counts *all,
                             int32_t scope,
                             const double *p,
                             double *loss) {
    int32_t n = b->router->num_experts;
    double *x = calloc(3 * (size_t)n, sizeof *x);
    double *smooth = x + n;
    double *count = smooth + n;
    double selections = 0;
    double ignored;
    for (int64_t t = 0; t < b->num_tokens; t++) {
        if (b->scope[t] == scope && is_counted(b, t)) {
            add_token_sums(b, t, all[0].chosen + t * b->router->top_k, x, smooth);
        }
    }
    for (int32_t i = 0; i < n; i++) {
        count[i] = (double)all[scope].expert[i];
        selections += count[i];
    }
    variance(b->importance_of == MOE_IMPORTANCE_SCORES ? p : x, n, &loss[MOE_LOSS_IMPORTANCE]);
    variance(b->router->load_form == MOE_LOAD_TUTEL ? smooth : count, n, &loss[MOE_LOSS_LOAD]);
    for (int32_t i = 0; i < n && selections > 0; i++) {
        count[i] /= selections;
    }
    loss[MOE_LOSS_USAGE_VARIANCE] = variance(count, n, &ignored);
    free(x);
}

static double experts_on(const ref_batch *b, int32_t d) {
    double count = 0;
    for (int32_t i = 0; i < b->router->num_experts; i++) {
        count += b->device[i] == d;
    }
    return count;
}

/* N F_i: by first choices. */
static double first_frequency(const ref_batch *b, const ref_counts *c, int32_t i) {
    double total = 0;
    for (int32_t j = 0; j < b->router->num_experts; j++) {
        total += (double)c->first[j];
    }
    return total > 0 ? b->router->num_experts * (double)c->first[i] / total : 0;
}

static void scope_losses(const ref_batch *b,
                         const ref_counts *all,
                         int32_t scope,
                         double loss[MOE_NUM_LOSSES]) {
    const ref_counts *c = &all[scope];
    int32_t n = b->router->num_experts;
    double *p = malloc((size_t)(2 * n + 2 * b->devices) * sizeof *p);
    double *f = p + n;
    double *f_device = f + n;
    double *f_comm = f_device + b->devices;
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        loss[l] = 0;
    }
    frequencies(b, c, f, f_device, f_comm);
    mean_scores(b, scope, c->tokens, p);
    variation_losses(b, all, scope, p, loss);
    for (int32_t i = 0; i < n; i++) {
        loss[MOE_LOSS_EXPERT] += f[i] * p[i];
        loss[MOE_LOSS_SWITCH] += first_frequency(b, c, i) * p[i];
        loss[MOE_LOSS_MIXTRAL] += n * ((double)c->expert[i] / (double)c->tokens) * p[i];
    }
    loss[MOE_LOSS_GSHARD] = loss[MOE_LOSS_SWITCH];
    for (int32_t d = 0; d < b->devices; d++) {
        double p_device = 0;
        for (int32_t i = 0; i < n; i++) {
            p_device += b->device[i] == d ? p[i] : 0;
        }
        if (b->device_p == MOE_DEVICE_P_MEAN) {
            p_device /= experts_on(b, d);
        }
        loss[MOE_LOSS_DEVICE] += f_device[d] * p_device;
        loss[MOE_LOSS_COMM] += f_comm[d] * p_device;
    }
    free(p);
}

static int32_t scopes_with_tokens(const ref_batch *b, const ref_counts *counts) {
    int32_t used = 0;
    for (int32_t i = 0; i < b->num_scopes; i++) {
        used += counts[i].tokens > 0;
    }
    return used;
}

void ref_losses(const ref_batch *b, const ref_counts *counts, double loss[MOE_NUM_LOSSES]) {
    int32_t used = scopes_with_tokens(b, counts);
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        loss[l] = 0;
    }
    for (int32_t i = 0; i < b->num_scopes; i++) {
        double of_scope[MOE_NUM_LOSSES];
        if (counts[i].tokens == 0) {
            continue;
        }
        scope_losses(b, counts, i, of_scope);
        for (int l = 0; l < MOE_NUM_LOSSES; l++) {
            loss[l] += of_scope[l] / used;
        }
    }
    token_means(b, loss);
}

static double derivative(const moe_router *r, double z) {
    double sigmoid = 1 / (1 + exp(-z));
    if (z == -INFINITY) {
        return 0;
    }
    switch (r->score_func) {
    case MOE_SCORE_SIGMOID:
        return sigmoid / (1 + exp(z));
    case MOE_SCORE_SQRTSOFTPLUS:
        return sigmoid / (2 * sqrt(log1p(exp(z))));
    case MOE_SCORE_SOFTMAX: /* those that sum to 1 have a gradient of their own */
    case MOE_SCORE_SOFTMAX_TOPK:
        break;
    }
    return NAN;
}

/* a_i = alpha1 f_i + alpha2 f'_d(i) + alpha3 f''_d(i) + the other forms. */
static void coefficients(const ref_batch *b, const ref_counts *c, const double *alpha, double *a) {
    double *f_device = malloc(2 * (size_t)b->devices * sizeof *f_device),
           *f_comm = f_device + b->devices;
    frequencies(b, c, a, f_device, f_comm);
    for (int32_t i = 0; i < b->router->num_experts; i++) {
        int32_t d = b->device[i];
        double share = b->device_p == MOE_DEVICE_P_MEAN ? experts_on(b, d) : 1;
        a[i] = alpha[MOE_LOSS_EXPERT] * a[i] +
               (alpha[MOE_LOSS_SWITCH] + alpha[MOE_LOSS_GSHARD]) * first_frequency(b, c, i) +
               alpha[MOE_LOSS_MIXTRAL] * b->router->num_experts * (double)c->expert[i] /
                   (double)c->tokens +
               (alpha[MOE_LOSS_DEVICE] * f_device[d] + alpha[MOE_LOSS_COMM] * f_comm[d]) / share;
    }
    free(f_device);
}

static void token_gradient(const moe_router *r,
                           const double *z,
                           const double *a,
                           double alpha_z,
                           double divisor,
                           double counted,
                           double *dz) {
    int32_t n = r->num_experts;
    double *s = malloc(2 * (size_t)n * sizeof *s);
    double *normalized = s + n;
    double lse;
    double sum = 0;
    double mean = 0;
    ref_scores(r, z, s, &lse);
    ref_normalized(r, s, normalized);
    for (int32_t i = 0; i < n; i++) {
        sum += s[i];
        mean += a[i] * normalized[i];
    }
    for (int32_t i = 0; i < n && lse != -INFINITY; i++) {
        double slope = softmax_family(r) ? s[i] : derivative(r, z[i]) / sum;
        dz[i] += slope * (a[i] - mean) / divisor + alpha_z * 2 * lse * exp(z[i] - lse) / counted;
    }
    free(s);
}

void ref_dlogits(const ref_batch *b,
                 const ref_counts *counts,
                 const double alpha[MOE_NUM_LOSSES],
                 double *dlogits) {
    int32_t n = b->router->num_experts, used = scopes_with_tokens(b, counts);
    double *a = malloc((size_t)n * sizeof *a), counted = 0;
    for (int32_t i = 0; i < b->num_scopes; i++) {
        counted += (double)counts[i].tokens;
    }
    for (int32_t i = 0; i < b->num_scopes; i++) {
        if (counts[i].tokens == 0) {
            continue;
        }
        coefficients(b, &counts[i], alpha, a);
        for (int64_t t = 0; t < b->num_tokens; t++) {
            if (b->scope[t] == i && is_counted(b, t)) {
                token_gradient(b->router, b->z + t * n, a, alpha[MOE_LOSS_Z],
                               (double)counts[i].tokens * used, counted, dlogits + t * n);
            }
        }
    }
    free(a);
}
