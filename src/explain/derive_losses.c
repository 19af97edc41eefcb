/* derive_losses.c: the losses as sum_i f_i P_i with the largest terms written out: of each layer in
 * the three scopes, then over the layers. */
#include "explain/derive_losses.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/exact.h"
#include "explain/derive_internal.h"
#include "measure/figures.h"
#include "output/format.h"

/* --- one loss of one cell --- */

static bool is_sum(int loss) {
    return moe_loss_rows[loss].kind == MOE_LOSS_OVER_EXPERTS ||
           moe_loss_rows[loss].kind == MOE_LOSS_OVER_DEVICES;
}

static bool is_by_device(int loss) {
    return moe_loss_rows[loss].kind == MOE_LOSS_OVER_DEVICES;
}

static int64_t total(const int64_t *x, int64_t n) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += x[i];
    }
    return sum;
}

/* The product f P of an expert or a device. */
typedef struct term {
    double f, p;
    int32_t id;
} term;

static int larger_first(const void *a, const void *b) {
    const term *x = a, *y = b;
    double one = x->f * x->p, other = y->f * y->p;
    if (one != other) {
        return one < other ? 1 : -1;
    }
    return x->id - y->id;
}

static term device_term(const moe_derive_job *job, int64_t *cell, int loss, int32_t d) {
    const moe_device_term t =
        moe_balance_device_term(job->balance, job->placement, &job->scopes->global, cell, d);
    return (term){.f = loss == MOE_LOSS_DEVICE ? t.device_f : t.comm_f, .p = t.score, .id = d};
}

/* Computes the terms of a loss in a cell, largest first, and returns their sum. terms [N or D] gets
 * *count of them. */
static double terms_of(const moe_derive_job *job,
                       int64_t *cell,
                       int loss,
                       term *terms,
                       int32_t *count) {
    const moe_stats *s = &job->scopes->global; /* used for its shape only */
    int32_t n = s->num_experts, units = is_by_device(loss) ? s->devices : n;
    double sum = 0, *a = moe_alloc(MOE_COEFFICIENTS * (int64_t)n, sizeof *a, "derivation");
    moe_balance one = *job->balance;
    memset(one.alpha, 0, sizeof one.alpha);
    one.alpha[loss] = 1;
    moe_balance_coefficients(&one, job->placement, s, cell, a);
    for (int32_t i = 0; i < units; i++) {
        terms[i] = is_by_device(loss)
                       ? device_term(job, cell, loss, i)
                       : (term){.f = a[i], .p = moe_balance_mean_score(s, cell, i), .id = i};
        sum += terms[i].f * terms[i].p;
    }
    qsort(terms, (size_t)units, sizeof *terms, larger_first);
    *count = units;
    moe_free(a);
    return sum;
}

/* The value of a loss in a cell with tokens. */
static double value_of(const moe_derive_job *job, int64_t *cell, int loss, term *terms) {
    const moe_stats *s = &job->scopes->global;
    double tokens = (double)cell[MOE_STAT_TOKENS], mean, variance;
    int32_t count;
    if (is_sum(loss)) {
        return terms_of(job, cell, loss, terms, &count);
    }
    switch (loss) {
    case MOE_LOSS_Z:
        return moe_exact_value(cell + MOE_STAT_Z) / tokens;
    case MOE_LOSS_ENTROPY:
        return moe_exact_value(cell + MOE_STAT_ENTROPY) / tokens;
    case MOE_LOSS_ENTROPY_Z:
        return -moe_exact_value(cell + MOE_STAT_ENTROPY) / tokens / s->num_experts;
    default:
        MOE_ASSERT(moe_loss_rows[loss].kind == MOE_LOSS_VARIATION);
        moe_balance_variation(job->balance, s, cell, (enum moe_loss)loss, &mean, &variance);
        if (loss == MOE_LOSS_USAGE_VARIANCE) {
            mean = (double)total(moe_stats_counts(s, cell), s->num_experts);
        }
        return mean != 0 ? variance / (mean * mean) : 0;
    }
}

/* Writes "f_40 P_40 + ... = 5.67 x 0.0124 + ...; f_40 = 128 x 34 / 768". */
static void write_terms(const moe_derive_job *job,
                        int64_t *cell,
                        int loss,
                        term *terms,
                        moe_pieces *p) {
    const moe_stats *s = &job->scopes->global;
    int32_t count;
    int64_t tokens = cell[MOE_STAT_TOKENS];
    int64_t selections = total(moe_stats_counts(s, cell), s->num_experts);
    double sum = terms_of(job, cell, loss, terms, &count);
    for (int32_t i = 0; i < count && i < 3; i++) {
        moe_pieces_add(p, "%s%.4f\tx\t%.5f\t(%s\t%d)", i ? " + " : "", terms[i].f, terms[i].p,
                       is_by_device(loss) ? "device" : "expert", terms[i].id);
    }
    if (count > 3) {
        moe_pieces_add(p, " + ... (%d terms)", count);
    }
    moe_pieces_add(p, " = %.6f", sum);
    int32_t first = terms[0].id;
    if (loss == MOE_LOSS_EXPERT) {
        moe_pieces_add(p, "; f_%d = %d\tx\t%lld\t/\t%lld", first, s->num_experts,
                       (long long)moe_stats_counts(s, cell)[first], (long long)selections);
    }
    if (loss == MOE_LOSS_DEVICE) {
        int64_t most =
            moe_balance_device_term(job->balance, job->placement, s, cell, first).selections;
        moe_pieces_add(p, "; f'_%d = %d\tx\t%lld\t/\t%lld", first, s->devices, (long long)most,
                       (long long)selections);
    }
    if (loss == MOE_LOSS_COMM && job->balance->comm_count == MOE_COUNT_TOKENS) {
        moe_pieces_add(p, "; f''_%d = %d\tx\t%lld\ttokens\t/\t(%d\tx\t%lld)", first, s->devices,
                       (long long)moe_stats_device_tokens(s, cell)[first], job->balance->comm_limit,
                       (long long)tokens);
    }
}

static void write_value(const moe_derive_job *job,
                        int64_t *cell,
                        int loss,
                        term *terms,
                        moe_pieces *p) {
    const moe_stats *s = &job->scopes->global;
    double tokens = (double)cell[MOE_STAT_TOKENS], mean, variance;
    if (is_sum(loss)) {
        write_terms(job, cell, loss, terms, p);
    } else if (loss == MOE_LOSS_Z) {
        moe_pieces_add(p, "%.6g / %.0f", moe_exact_value(cell + MOE_STAT_Z), tokens);
    } else if (loss == MOE_LOSS_ENTROPY) {
        moe_pieces_add(p, "%.6g / %.0f", moe_exact_value(cell + MOE_STAT_ENTROPY), tokens);
    } else if (loss == MOE_LOSS_ENTROPY_Z) {
        moe_pieces_add(p, "-%.6g / %.0f / %d", moe_exact_value(cell + MOE_STAT_ENTROPY), tokens,
                       s->num_experts);
    } else {
        moe_balance_variation(job->balance, s, cell, (enum moe_loss)loss, &mean, &variance);
        if (loss == MOE_LOSS_USAGE_VARIANCE) {
            mean = (double)total(moe_stats_counts(s, cell), s->num_experts);
        }
        moe_pieces_add(p, "%.6g / %.6g^2", variance, mean);
    }
}

/* --- all cells of a scope --- */

/* The values of the losses in every sequence or device that counts, in their order, on every rank.
 */
typedef struct units {
    double *value; /* [count][MOE_NUM_LOSSES] */
    int64_t count;
} units;

static bool counts_here(const moe_derive_job *job, enum moe_scope scope, int64_t i) {
    const moe_stats *s =
        scope == MOE_SCOPE_SEQUENCE ? &job->scopes->sequence : &job->scopes->device;
    if (moe_stats_cell(s, i)[MOE_STAT_TOKENS] == 0) {
        return false;
    }
    return scope == MOE_SCOPE_DEVICE ||
           moe_scopes_owns(job->batch, job->scopes->first_sequence + i);
}

/* Collective. Gathers the units of a scope from all ranks. */
static units gather_units(const moe_derive_job *job, enum moe_scope scope, term *terms) {
    const moe_stats *s =
        scope == MOE_SCOPE_SEQUENCE ? &job->scopes->sequence : &job->scopes->device;
    double *own = moe_alloc(s->num_cells * MOE_NUM_LOSSES, sizeof *own, "derivation"), *to = own;
    int64_t *bytes = moe_alloc(job->comm->size, sizeof *bytes, "derivation"),
            *of_one = moe_alloc(job->comm->size, sizeof *of_one, "derivation");
    for (int64_t i = 0; i < s->num_cells; i++) {
        for (int loss = 0; counts_here(job, scope, i) && loss < MOE_NUM_LOSSES; loss++) {
            *to++ = moe_balance_defined(job->balance, (enum moe_loss)loss)
                        ? value_of(job, moe_stats_cell(s, i), loss, terms)
                        : NAN;
        }
    }
    for (int q = 0; q < job->comm->size; q++) {
        of_one[q] = sizeof(int64_t);
    }
    int64_t mine = (to - own) * (int64_t)sizeof *own;
    moe_comm_allgatherv(job->comm, &mine, bytes, of_one);
    units u = {.count = total(bytes, job->comm->size) / (int64_t)sizeof(double[MOE_NUM_LOSSES])};
    u.value = moe_alloc(u.count * MOE_NUM_LOSSES, sizeof *u.value, "derivation");
    moe_comm_allgatherv(job->comm, own, u.value, bytes);
    moe_free(own);
    moe_free(bytes);
    moe_free(of_one);
    return u;
}

static double mean_of_units(const units *u, int loss) {
    double sum = 0;
    for (int64_t i = 0; i < u->count; i++) {
        sum += u->value[i * MOE_NUM_LOSSES + loss];
    }
    return u->count ? sum / (double)u->count : 0;
}

static bool is_mean_over_tokens(int loss) {
    return moe_loss_rows[loss].kind == MOE_LOSS_MEAN_OVER_TOKENS;
}

static const char *scope_unit(enum moe_scope scope) {
    return moe_config_enum_name(MOE_KEY(balance, scope), (int)scope);
}

/* The first sequence or device of rank 0 that counts; -1: there is none. */
static int64_t first_unit(const moe_derive_job *job, enum moe_scope scope) {
    const moe_stats *s =
        scope == MOE_SCOPE_SEQUENCE ? &job->scopes->sequence : &job->scopes->device;
    for (int64_t i = 0; i < s->num_cells; i++) {
        if (counts_here(job, scope, i)) {
            return i;
        }
    }
    return -1;
}

/* Writes "sequence 0: ...; mean of 1.65, 1.70, ... (64 sequences)". */
static void write_unit_mean(const moe_derive_job *job,
                            enum moe_scope scope,
                            const units *u,
                            int loss,
                            bool in_full,
                            term *terms,
                            moe_pieces *p) {
    int64_t first = first_unit(job, scope);
    const moe_stats *s =
        scope == MOE_SCOPE_SEQUENCE ? &job->scopes->sequence : &job->scopes->device;
    if (in_full && first >= 0) {
        moe_pieces_add(p, "%s %lld: ", scope_unit(scope),
                       (long long)(scope == MOE_SCOPE_SEQUENCE ? job->scopes->first_sequence + first
                                                               : job->batch->first_device + first));
        write_value(job, moe_stats_cell(s, first), loss, terms, p);
        moe_pieces_add(p, "; ");
    }
    moe_pieces_add(p, "mean of ");
    for (int64_t i = 0; i < u->count && i < 4; i++) {
        moe_pieces_add(p, "%s%.6g", i ? ", " : "", u->value[i * MOE_NUM_LOSSES + loss]);
    }
    moe_pieces_add(p, "%s (%lld %s%s)", u->count > 4 ? ", ..." : "", (long long)u->count,
                   scope_unit(scope), u->count == 1 ? "" : "s");
}

static void add_loss(moe_derivation *d,
                     const moe_derive_job *job,
                     const moe_layer_metrics *metrics,
                     enum moe_scope scope,
                     const units *u,
                     int loss,
                     term *terms) {
    bool trains = scope == job->config->balance.scope,
         whole = scope == MOE_SCOPE_GLOBAL || is_mean_over_tokens(loss);
    moe_pieces p = {.length = 0};
    char name[64], formula[200];
    int64_t *global = job->scopes->global.cell;
    double value = !whole                    ? mean_of_units(u, loss)
                   : global[MOE_STAT_TOKENS] ? value_of(job, global, loss, terms)
                                             : 0;
    if (!whole) {
        write_unit_mean(job, scope, u, loss, trains, terms, &p);
    } else if (global[MOE_STAT_TOKENS]) {
        write_value(job, global, loss, terms, &p);
    }
    snprintf(name, sizeof name, "%s%s%s", moe_loss_rows[loss].name, trains ? "" : ", scope ",
             trains ? "" : scope_unit(scope));
    snprintf(formula, sizeof formula, "%s%s%s%s", whole ? "" : "mean over ",
             whole ? "" : scope_unit(scope), whole ? "" : "s of ", moe_loss_rows[loss].formula);
    moe_derivation_add(d, MOE_DERIVED_LOSSES, job->layer, name,
                       (moe_derived_numbers){value, metrics->loss_by_scope[scope][loss]}, formula,
                       "%s", p.text);
}

/* --- at balance --- */

static void add_ideals(moe_derivation *d,
                       const moe_derive_job *job,
                       const moe_layer_metrics *metrics) {
    const moe_stats *s = &job->scopes->global;
    int64_t *cell = s->cell;
    int64_t tokens = cell[MOE_STAT_TOKENS];
    int64_t selections = total(moe_stats_counts(s, cell), s->num_experts);
    int64_t sent = job->balance->comm_count == MOE_COUNT_SELECTIONS
                       ? selections
                       : total(moe_stats_device_tokens(s, cell), s->devices);
    double share =
        job->balance->device_p == MOE_DEVICE_P_MEAN ? 1.0 / job->placement->slots_per_device : 1;
    if (tokens == 0) {
        return;
    }
    moe_derivation_add(d, MOE_DERIVED_LOSSES, job->layer, "expert loss at balance",
                       (moe_derived_numbers){1, metrics->ideal[MOE_LOSS_EXPERT]},
                       "all f_i = 1, and the P_i add up to 1", "1");
    moe_derivation_add(d, MOE_DERIVED_LOSSES, job->layer, "device loss at balance",
                       (moe_derived_numbers){share, metrics->ideal[MOE_LOSS_DEVICE]},
                       "all f'_d = 1, and the P'_d add up to 1 (device_p = mean: D / N)", "%g",
                       share);
    moe_derivation_add(
        d, MOE_DERIVED_LOSSES, job->layer, "communication loss at balance",
        (moe_derived_numbers){share * (double)sent / (double)tokens / job->balance->comm_limit,
                              metrics->ideal[MOE_LOSS_COMM]},
        "all f''_d = (what is sent / T) / M, and the P'_d add up to 1", "(%s / %s) / %d%s",
        moe_format_count(sent).s, moe_format_count(tokens).s, job->balance->comm_limit,
        share != 1 ? " x D / N" : "");
    moe_derivation_add(d, MOE_DERIVED_LOSSES, job->layer, "mixtral loss at balance",
                       (moe_derived_numbers){(double)selections / (double)tokens,
                                             metrics->ideal[MOE_LOSS_MIXTRAL]},
                       "S / T", "%s / %s", moe_format_count(selections).s,
                       moe_format_count(tokens).s);
    moe_derivation_add(d, MOE_DERIVED_LOSSES, job->layer, "entropy at balance",
                       (moe_derived_numbers){log(s->num_experts), metrics->ideal[MOE_LOSS_ENTROPY]},
                       "log N", "log %d", s->num_experts);
}

/* --- with coefficients, and over the layers --- */

static void add_total(moe_derivation *d,
                      const moe_derive_job *job,
                      const moe_layer_metrics *metrics) {
    moe_pieces p = {.length = 0};
    double sum = 0;
    if (isnan(metrics->total)) {
        return; /* a loss with a coefficient needs what was not recorded */
    }
    for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
        double alpha = job->balance->alpha[loss];
        if (alpha == 0) {
            continue;
        }
        moe_pieces_add(&p, "%s%g\tx\t%.6f\t(%s)", p.length ? " + " : "", alpha,
                       metrics->loss_raw[loss], moe_loss_names[loss]);
        sum += alpha * metrics->loss_raw[loss];
    }
    moe_derivation_add(d, MOE_DERIVED_LOSSES, job->layer, "total",
                       (moe_derived_numbers){sum, metrics->total}, "sum of alpha x loss", "%s",
                       p.length ? p.text : "no loss has a coefficient");
}

/* Marks the items from `first` on as those of one of several micro-batches, of which the last one
 * is shown, and adds up the losses for their mean. */
static void note_micro_batch(moe_derivation *d,
                             const moe_derive_job *job,
                             const moe_layer_metrics *metrics,
                             int32_t first) {
    int32_t of = job->config->train.accumulate, layers = moe_config_moe_layers(job->config);
    if (job->config->run.mode != MOE_MODE_TRAIN || of == 1) {
        return;
    }
    if (!d->micro) {
        d->micro = moe_alloc_zero((int64_t)layers * MOE_NUM_LOSSES, sizeof *d->micro, "derivation");
    }
    for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
        d->micro[job->layer * MOE_NUM_LOSSES + loss] += metrics->loss_raw[loss];
    }
    for (int32_t i = first; i < d->count; i++) {
        d->item[i].micro_batch = job->micro_batch;
        d->item[i].aside |= job->micro_batch + 1 < of;
    }
}

void moe_derive_losses(moe_derivation *d,
                       const moe_derive_job *job,
                       const moe_layer_metrics *metrics) {
    term *terms = moe_alloc(job->scopes->global.num_experts, sizeof *terms, "derivation");
    units u[MOE_NUM_SCOPES] = {{0}};
    for (int scope = 0; scope < MOE_SCOPE_GLOBAL; scope++) {
        u[scope] = gather_units(job, (enum moe_scope)scope, terms);
    }
    int trained = job->config->balance.scope, first = d->count;
    for (int loss = 0; loss < MOE_NUM_LOSSES && job->comm->rank == 0; loss++) {
        if (!moe_balance_defined(job->balance, (enum moe_loss)loss)) {
            continue;
        }
        add_loss(d, job, metrics, (enum moe_scope)trained, &u[trained], loss, terms);
        for (int scope = 0; scope < MOE_NUM_SCOPES && loss < MOE_LOSS_Z; scope++) {
            if (scope != trained) {
                add_loss(d, job, metrics, (enum moe_scope)scope, &u[scope], loss, terms);
            }
        }
    }
    if (job->comm->rank == 0 && job->balance->has_scores) {
        add_ideals(d, job, metrics);
        add_total(d, job, metrics);
    }
    note_micro_batch(d, job, metrics, first);
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        moe_free(u[scope].value);
    }
    moe_free(terms);
}

static void add_micro_batch_means(moe_derivation *d,
                                  const moe_config *c,
                                  const moe_step_metrics *m) {
    for (int32_t l = 0; d->micro && l < m->num_layers; l++) {
        for (int i = 0; i < MOE_NUM_LOSSES; i++) {
            char name[64];
            double sum = d->micro[l * MOE_NUM_LOSSES + i];
            if (isnan(sum)) {
                continue;
            }
            snprintf(name, sizeof name, "%s, mean over micro-batches", moe_loss_rows[i].name);
            moe_derivation_add(
                d, MOE_DERIVED_LOSSES, l, name,
                (moe_derived_numbers){sum / c->train.accumulate, m->layer[l].loss_raw[i]},
                "sum over micro-batches / micro-batches", "%.6f / %d", sum, c->train.accumulate);
        }
    }
}

static void add_layer_means(moe_derivation *d, const moe_step_metrics *m, const moe_figures *f) {
    for (int i = 0; i < MOE_NUM_LOSSES && m->num_layers > 1; i++) {
        char name[64];
        moe_pieces p = {.length = 0};
        double sum = 0;
        if (isnan(f->raw[i])) {
            continue;
        }
        for (int32_t l = 0; l < m->num_layers; l++) {
            sum += m->layer[l].loss_raw[i];
            if (l < 6) {
                moe_pieces_add(&p, "%s%.6f", l ? " + " : "(", m->layer[l].loss_raw[i]);
            }
        }
        snprintf(name, sizeof name, "%s, mean over layers", moe_loss_rows[i].name);
        moe_derivation_add(d, MOE_DERIVED_LOSSES, -1, name,
                           (moe_derived_numbers){sum / m->num_layers, f->raw[i]},
                           "sum over layers / layers", "%s%s) / %d", p.text,
                           m->num_layers > 6 ? " + ..." : "", m->num_layers);
    }
}

/* The total of the table is a mean over layers, and the loss over all layers once. */
static void add_step_total(moe_derivation *d, const moe_step_metrics *m, const moe_figures *f) {
    double sum = 0;
    moe_pieces p = {.length = 0};
    if (m->num_layers == 1 || isnan(f->total)) {
        return; /* one layer, or a loss that a recording does not allow to compute */
    }
    for (int32_t l = 0; l < m->num_layers; l++) {
        sum += m->layer[l].total;
        if (l < 6) {
            moe_pieces_add(&p, "%s%.6g", l ? " + " : "(", m->layer[l].total);
        }
    }
    moe_pieces_add(&p, "%s) / %d", m->num_layers > 6 ? " + ..." : "", m->num_layers);
    if (m->all_layers.loss != 0) {
        moe_pieces_add(&p, " + %.6g of all layers together", m->all_layers.loss);
    }
    moe_derivation_add(d, MOE_DERIVED_LOSSES, -1, "total, mean over layers",
                       (moe_derived_numbers){sum / m->num_layers + m->all_layers.loss, f->total},
                       "sum over layers / layers", "%s", p.text);
}

void moe_derive_losses_over_layers(moe_derivation *d,
                                   const moe_config *c,
                                   const moe_step_metrics *m,
                                   const moe_figures *f) {
    add_micro_batch_means(d, c, m);
    add_layer_means(d, m, f);
    add_step_total(d, m, f);
}
