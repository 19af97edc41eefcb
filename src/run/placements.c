/* placements.c: moesim --placements: every balancer decides by a first window of steps and is
 * judged on a later one. */
#include "run/placements.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "config/refuse.h"
#include "measure/drift.h"
#include "output/results.h"
#include "run/placements_internal.h"

/* --- what is refused --- */

static int check_window(const moe_config *c,
                        enum moe_key_id key,
                        int64_t window,
                        int64_t steps,
                        moe_status *st) {
    if (window > steps) {
        return moe_refuse_key(c, key, st, "the run has %lld step%s, and a window is part of it",
                              (long long)steps, steps == 1 ? "" : "s");
    }
    return MOE_OK;
}

/* Without a wish the first half of the steps fits and the rest is judged; a single step is both. */
static int choose_windows(moe_comparison *x, moe_status *st) {
    const moe_placement_config *p = &x->config->placement;
    const int64_t steps = x->source.steps;
    if (check_window(x->config, MOE_KEY(placement, fit), p->fit, steps, st) ||
        check_window(x->config, MOE_KEY(placement, score), p->score, steps, st)) {
        return st->code;
    }
    const int64_t left = steps - p->score;
    x->fit = p->fit > 0 ? p->fit : left > 0 ? (p->score > 0 ? left : (steps + 1) / 2) : steps;
    x->score = p->score > 0 ? p->score : steps > x->fit ? steps - x->fit : steps;
    return MOE_OK;
}

/* --- problems --- */

static moe_balancer_problem problem_of(const moe_comparison *x,
                                       const double *load,
                                       const double *pairs) {
    const moe_config *c = x->config;
    return (moe_balancer_problem){.num_experts = c->model.num_experts,
                                  .devices = c->cluster.devices,
                                  .nodes = c->cluster.devices / c->cluster.devices_per_node,
                                  .groups = c->router.num_groups,
                                  .slots_per_device =
                                      (c->model.num_experts + c->placement.redundant_experts) /
                                      c->cluster.devices,
                                  .load = load,
                                  .pairs = pairs};
}

static moe_balancer_problem fitted(const moe_comparison *x, int32_t layer) {
    const int64_t n = x->config->model.num_experts;
    return problem_of(x, x->load + layer * n, x->pairs ? x->pairs + layer * n * n : NULL);
}

/* --- deciding --- */

static void decide(moe_comparison *x, moe_candidate *candidate) {
    const double begin = moe_comm_time();
    for (int32_t l = 0; l < x->source.layers; l++) {
        const moe_balancer_problem p = fitted(x, l);
        moe_balancer_place(candidate->balancer, &p, &candidate->answer[l]);
    }
    candidate->decide_seconds = moe_comm_time() - begin;
    for (int32_t l = 0; l < x->source.layers; l++) {
        candidate->wasted += moe_balancer_wasted(&candidate->answer[l], x->config->cluster.devices);
    }
}

static void decide_all(moe_comparison *x) {
    const int32_t layers = x->source.layers;
    x->candidate = moe_alloc_zero(moe_num_balancers, sizeof *x->candidate, "placements");
    x->num_candidates = moe_num_balancers;
    for (int i = 0; i < x->num_candidates; i++) {
        moe_candidate *candidate = &x->candidate[i];
        moe_status st = {0};
        candidate->balancer = &moe_balancers[i];
        candidate->answer = moe_alloc_zero(layers, sizeof *candidate->answer, "placements");
        candidate->layer_max = moe_alloc_zero(layers, sizeof *candidate->layer_max, "placements");
        candidate->step_max = moe_alloc_zero(x->score, sizeof *candidate->step_max, "placements");
        candidate->step_predicted =
            moe_alloc_zero(x->score, sizeof *candidate->step_predicted, "placements");
        for (int32_t l = 0; l < layers && st.code == MOE_OK; l++) {
            const moe_balancer_problem p = fitted(x, l);
            moe_balancer_check(candidate->balancer, &p, &st);
        }
        snprintf(candidate->reason, sizeof candidate->reason, "%s", st.message);
        if (st.code == MOE_OK) {
            decide(x, candidate);
        }
    }
    const moe_balancer_problem p = fitted(x, 0);
    moe_balancer_place(moe_balancer_find("block"), &p, &x->blocks);
}

/* --- judging --- */

static bool has(const moe_balancer_answer *a, int32_t device, int32_t expert) {
    for (int32_t i = 0; i < a->slots_per_device; i++) {
        if (a->expert[device * a->slots_per_device + i] == expert) {
            return true;
        }
    }
    return false;
}

/* Copies that are not where blocks have them; of weights that are fetched, those that serve. */
static int64_t count_moved(const moe_comparison *x,
                           const moe_balancer *b,
                           const moe_balancer_answer *a) {
    int64_t moved = 0;
    for (int32_t s = 0; s < a->slots; s++) {
        const bool used = b->timing != MOE_BALANCER_PLANS || a->served[s] > 0;
        moved += used && !has(&x->blocks, s / a->slots_per_device, a->expert[s]);
    }
    return moved;
}

/* What the balancer decides for the loads of this step. */
static const moe_balancer_answer *answer_for(moe_comparison *x,
                                             moe_candidate *candidate,
                                             int32_t layer,
                                             const moe_balancer_problem *p) {
    const moe_balancer *b = candidate->balancer;
    moe_balancer_answer *a = b->timing == MOE_BALANCER_PLANS ? &x->plan : &candidate->answer[layer];
    const double begin = moe_comm_time();
    if (b->timing == MOE_BALANCER_PLANS) {
        moe_balancer_place(b, p, a);
    } else {
        moe_balancer_split(b, p, a);
    }
    candidate->step_seconds += b->timing == MOE_BALANCER_FIXED ? 0 : moe_comm_time() - begin;
    return a;
}

static void add_rows(moe_candidate *candidate, const moe_serve_figures *f) {
    candidate->rows.selections += f->selections;
    candidate->rows.rows += f->rows;
    candidate->rows.cross_device_rows += f->cross_device_rows;
    candidate->rows.cross_node_rows += f->cross_node_rows;
    candidate->rows.cross_node_tokens += f->cross_node_tokens;
    candidate->receiver_max += f->receiver_max_over_mean;
    candidate->receiver_worst = fmax(candidate->receiver_worst, f->receiver_max_over_mean);
}

static void add_cost(moe_candidate *candidate, int64_t i, moe_placed_cost cost) {
    candidate->cost.seconds += cost.seconds;
    candidate->cost.balanced += cost.balanced;
    candidate->cost.bytes += cost.bytes;
    candidate->step_predicted[i] += cost.seconds;
}

/* Busiest device / mean, from the loads that the slots are to serve. */
static double planned_max(const moe_balancer_answer *a, const moe_balancer_problem *p) {
    double *load = moe_alloc(p->devices, sizeof *load, "placements"), sum = 0;
    const double most = moe_balancer_device_load(a, p->devices, load);
    for (int32_t d = 0; d < p->devices; d++) {
        sum += load[d];
    }
    moe_free(load);
    return sum > 0 ? most * p->devices / sum : 1;
}

static void add_max(moe_comparison *x,
                    moe_candidate *candidate,
                    int64_t i,
                    int32_t layer,
                    double most) {
    candidate->layer_max[layer] += most;
    candidate->step_max[i] += most;
    if (most > candidate->worst) {
        candidate->worst = most;
        candidate->worst_step = x->source.steps - x->score + i;
        candidate->worst_layer = layer;
    }
}

/* Step i of the score window. */
static void judge_layer(moe_comparison *x, moe_candidate *candidate, int64_t i, int32_t layer) {
    const int64_t n = x->config->model.num_experts;
    const moe_balancer_problem p =
        problem_of(x, x->source.load + layer * n, fitted(x, layer).pairs);
    const moe_balancer_answer *a = answer_for(x, candidate, layer, &p);
    double most = planned_max(a, &p);
    if (x->source.has_tokens) {
        const moe_choices *choices = &x->source.choices[layer];
        moe_serve_choices(&p, a, candidate->balancer->timing != MOE_BALANCER_FIXED, choices,
                          x->slot);
        const moe_serve_figures figures = moe_serve_measure(&p, a, choices, x->slot);
        add_rows(candidate, &figures);
        add_cost(candidate, i, moe_comparison_cost(x, a, choices, x->slot));
        most = figures.device_max_over_mean;
    }
    add_max(x, candidate, i, layer, most);
    candidate->moved += count_moved(x, candidate->balancer, a);
}

static void judge_step(moe_comparison *x, int64_t i) {
    x->drift[i] =
        moe_drift(x->load, x->source.load, x->source.layers, x->config->model.num_experts);
    for (int k = 0; k < x->num_candidates; k++) {
        for (int32_t l = 0; l < x->source.layers && !x->candidate[k].reason[0]; l++) {
            judge_layer(x, &x->candidate[k], i, l);
        }
    }
}

/* --- together --- */

static void add_fit_step(moe_comparison *x) {
    const int64_t n = x->config->model.num_experts, layers = x->source.layers;
    double *unused = moe_alloc(n, sizeof *unused, "loads");
    for (int64_t i = 0; i < layers * n; i++) {
        x->load[i] += x->source.load[i];
    }
    for (int32_t l = 0; l < layers && x->source.has_tokens; l++) {
        moe_choices_count(&x->source.choices[l], (int32_t)n, unused, x->pairs + l * n * n);
    }
    moe_free(unused);
}

static void make_room(moe_comparison *x) {
    const int64_t n = x->config->model.num_experts, layers = x->source.layers;
    x->load = moe_alloc_zero(layers * n, sizeof *x->load, "loads");
    x->drift = moe_alloc_zero(x->score, sizeof *x->drift, "loads");
    if (x->source.has_tokens) {
        x->pairs = moe_alloc_zero(layers * n * n, sizeof *x->pairs, "pairs of experts");
        x->slot = moe_alloc(x->source.batch.num_tokens_global * moe_config_most_experts(x->config),
                            sizeof *x->slot, "choices");
    }
}

/* Collective. Both windows; the steps of the second one are made again where they overlap. */
static int compare(moe_comparison *x, const moe_comm *comm, moe_status *st) {
    if (comm->rank == 0) {
        make_room(x);
    }
    for (int64_t step = 0; step < x->fit && st->code == MOE_OK; step++) {
        if (moe_step_source_make(&x->source, step, st) == MOE_OK && comm->rank == 0) {
            add_fit_step(x);
        }
    }
    if (st->code == MOE_OK && comm->rank == 0) {
        decide_all(x);
    }
    for (int64_t i = 0; i < x->score && st->code == MOE_OK; i++) {
        const int64_t step = x->source.steps - x->score + i;
        if (moe_step_source_make(&x->source, step, st) == MOE_OK && comm->rank == 0) {
            judge_step(x, i);
        }
    }
    return st->code;
}

/* Collective. The folder of results, without the metrics of a run. */
static int open_folder(const moe_comm *comm,
                       const moe_config *c,
                       const moe_run_options *options,
                       char folder[MOE_PATH_MAX],
                       moe_status *st) {
    moe_results results;
    char path[MOE_PATH_MAX + 32];
    if (moe_results_open(comm, c, options->out, options->force, &results, st) != MOE_OK) {
        return st->code;
    }
    snprintf(folder, MOE_PATH_MAX, "%s", results.folder);
    moe_results_free(&results);
    if (comm->rank == 0) {
        snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
        unlink(path);
        snprintf(path, sizeof path, "%s/placements", folder);
        struct stat what;
        if (mkdir(path, 0777) != 0 && (stat(path, &what) != 0 || !S_ISDIR(what.st_mode))) {
            moe_fail(st, MOE_USER, "--out: the folder '%s' cannot be made: %m", path);
        }
    }
    return moe_comm_agree(comm, st);
}

static int compare_and_write(moe_comparison *x,
                             const moe_comm *comm,
                             const moe_run_options *options,
                             moe_status *st) {
    char folder[MOE_PATH_MAX];
    if (open_folder(comm, x->config, options, folder, st) != MOE_OK ||
        compare(x, comm, st) != MOE_OK) {
        return st->code;
    }
    if (comm->rank == 0) {
        moe_comparison_write(x, folder, st);
        if (!options->quiet && st->code == MOE_OK) {
            moe_comparison_print(x, folder);
        }
    }
    return moe_comm_agree(comm, st);
}

static void free_comparison(moe_comparison *x) {
    for (int i = 0; i < x->num_candidates; i++) {
        for (int32_t l = 0; l < x->source.layers; l++) {
            moe_balancer_answer_free(&x->candidate[i].answer[l]);
        }
        moe_free(x->candidate[i].answer);
        moe_free(x->candidate[i].layer_max);
        moe_free(x->candidate[i].step_max);
        moe_free(x->candidate[i].step_predicted);
    }
    moe_free(x->candidate);
    moe_free(x->load);
    moe_free(x->drift);
    moe_free(x->pairs);
    moe_free(x->slot);
    moe_balancer_answer_free(&x->blocks);
    moe_balancer_answer_free(&x->plan);
    moe_step_source_free(&x->source);
}

int moe_placements(const moe_comm *comm,
                   moe_config *c,
                   const moe_run_options *options,
                   moe_status *st) {
    moe_comparison x = {.config = c};
    if (moe_step_source_open(&x.source, comm, c, st) == MOE_OK &&
        choose_windows(&x, st) == MOE_OK) {
        if (!options->check_only) {
            compare_and_write(&x, comm, options, st);
        } else if (comm->rank == 0) {
            moe_config_print(c, stdout);
        }
    }
    free_comparison(&x);
    return st->code;
}
