/* placements_source.c: the steps that --placements looks at: a forward run whose choices are
 * gathered on rank 0, or the loads of a file. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/gemm.h"
#include "base/npy.h"
#include "output/format.h"
#include "predict/memory.h"
#include "run/placements_internal.h"
#include "world/topology.h"

/* Sums of loads over all steps and experts stay finite. */
#define LARGEST_LOAD 1e30

/* --- loads from a file --- */

/* Whether the file has the shape [layers,N] or [steps,layers,N]. */
static int check_shape(const moe_config *c, const moe_npy_header *h, moe_status *st) {
    const int n = h->num_dims;
    if ((n != 2 && n != 3) || h->count == 0 || h->shape[n - 1] != c->model.num_experts) {
        char shape[128] = "";
        for (int i = 0; i < n; i++) {
            const size_t used = strlen(shape);
            snprintf(shape + used, sizeof shape - used, "%s%lld", i ? "," : "",
                     (long long)h->shape[i]);
        }
        return moe_fail(st, MOE_USER,
                        "placement.load: '%.200s' has the shape [%s], and [layers,N] or "
                        "[steps,layers,N] with N = model.num_experts = %d is expected",
                        c->placement.load, shape, c->model.num_experts);
    }
    if (h->shape[n - 2] > 4096) {
        return moe_fail(st, MOE_USER, "placement.load: '%.200s' has %lld layers, at most 4096 are",
                        c->placement.load, (long long)h->shape[n - 2]);
    }
    return MOE_OK;
}

static int take_loads(moe_step_source *s,
                      const moe_npy_header *h,
                      const void *data,
                      moe_status *st) {
    const int32_t n = s->config->model.num_experts;
    s->layers = (int32_t)h->shape[h->num_dims - 2];
    s->steps = h->num_dims == 3 ? h->shape[0] : 1;
    s->file_load = moe_alloc(h->count, sizeof *s->file_load, "loads");
    for (int64_t i = 0; i < h->count; i++) {
        s->file_load[i] = moe_npy_f64(h, data, i);
        if (!(s->file_load[i] >= 0 && s->file_load[i] <= LARGEST_LOAD)) {
            return moe_fail(st, MOE_USER,
                            "placement.load: '%.200s', step %lld, layer %lld, expert %lld: %g is "
                            "no load, allowed are numbers from 0 to 1e30",
                            s->config->placement.load, (long long)(i / n / s->layers),
                            (long long)(i / n % s->layers), (long long)(i % n), s->file_load[i]);
        }
    }
    return MOE_OK;
}

static int open_file(moe_step_source *s, moe_status *st) {
    if (s->comm->rank == 0) {
        moe_npy_header h;
        moe_status inner = {0};
        void *data = NULL;
        if (moe_npy_read(s->config->placement.load, &h, &data, &inner) != MOE_OK) {
            moe_fail(st, inner.code, "placement.load: %s", inner.message);
        } else if (check_shape(s->config, &h, st) == MOE_OK) {
            take_loads(s, &h, data, st);
        }
        moe_free(data);
    }
    if (moe_comm_agree(s->comm, st) == MOE_OK) {
        moe_comm_bcast(s->comm, &s->layers, sizeof s->layers, 0);
        moe_comm_bcast(s->comm, &s->steps, sizeof s->steps, 0);
    }
    return st->code;
}

/* --- a forward run --- */

static int64_t num_tokens(const moe_step_source *s) {
    return s->input.num_tokens_global
               ? s->input.num_tokens_global
               : s->config->cluster.devices * s->config->data.tokens_per_device;
}

/* Choices are gathered with as many columns as a token may choose experts. */
static int32_t columns(const moe_step_source *s) {
    return moe_config_most_experts(s->config);
}

static int check_memory(const moe_step_source *s, moe_status *st) {
    const int64_t available = moe_memory_available(), n = s->config->model.num_experts;
    const double choices = 8.0 * s->layers * (double)num_tokens(s) * columns(s);
    const double needed =
        (double)moe_memory_estimate(s->config, &(moe_memory_given){.num_tokens = num_tokens(s)})
            .total +
        choices + 8.0 * s->layers * (double)n * (double)n;
    if (available >= 0 && needed > (double)available / s->comm->local_size) {
        moe_fail(st, MOE_USER,
                 "--placements needs about %s on each of %d ranks of this host, and %s are "
                 "available: lower data.tokens_per_device or model.num_layers",
                 moe_format_bytes((int64_t)fmin(needed, 0x1p62)).s, s->comm->local_size,
                 moe_format_bytes(available).s);
    }
    return moe_comm_agree(s->comm, st);
}

/* The first token of rank q, or of all ranks before it. */
static int64_t first_token(const moe_step_source *s, int q) {
    const int32_t devices = s->config->cluster.devices;
    return moe_batch_token_begin(num_tokens(s), devices, devices / s->comm->size * q);
}

static void make_room(moe_step_source *s) {
    const int64_t tokens = num_tokens(s), k = columns(s);
    const int64_t kept = s->comm->rank == 0 ? s->layers : 1;
    s->all = moe_alloc(kept * tokens * k, sizeof *s->all, "choices");
    s->expert = moe_alloc(kept * tokens * k, sizeof *s->expert, "choices");
    s->home = moe_alloc(tokens, sizeof *s->home, "choices");
    s->choices = moe_alloc_zero(s->layers, sizeof *s->choices, "choices");
    s->bytes = moe_alloc(s->comm->size, sizeof *s->bytes, "choices");
    for (int q = 0; q < s->comm->size; q++) {
        s->bytes[q] = (first_token(s, q + 1) - first_token(s, q)) * k * (int64_t)sizeof *s->all;
    }
}

static int open_run(moe_step_source *s, moe_status *st) {
    moe_config *c = s->config;
    moe_topology topology;
    c->run.mode = MOE_MODE_FORWARD;
    moe_gemm_init();
    moe_topology_init(s->comm, c->run.threads, &topology);
    if (c->model.compute == MOE_COMPUTE_BF16 && moe_gemm_require_bf16(st)) {
        return st->code;
    }
    if (c->model.load[0]) {
        return moe_fail(st, MOE_USER,
                        "model.load: --placements works on keyed weights or on data.source = "
                        "logits or routing, not on loaded weights");
    }
    if (moe_input_read(s->comm, c, &s->input, st) ||
        moe_input_check(&s->input, c, num_tokens(s), st) || check_memory(s, st)) {
        return st->code;
    }
    s->layers = moe_config_moe_layers(c);
    s->has_tokens = true;
    s->halves = c->run.steps == 1 && c->placement.fit == 0 && c->placement.score == 0;
    s->steps = s->halves ? 2 : c->run.steps;
    moe_input_layout(&s->input, c, s->comm, num_tokens(s), &s->batch);
    moe_context_init(&s->context, s->comm, c, &s->batch, &s->input, &s->scratch);
    moe_stack_init(&s->stack, &s->context, moe_memory_kept_layers(c), false);
    moe_stack_turn_weights(&s->stack);
    moe_step_metrics_init(&s->metrics, s->layers, c->model.num_experts, c->cluster.devices);
    make_room(s);
    return MOE_OK;
}

/* --- a step --- */

/* Keeps the tokens of the half that is looked at, in their order. */
static void take_half(moe_step_source *s, int32_t layer) {
    const int64_t tokens = num_tokens(s), k = columns(s);
    const int32_t *all = s->all + layer * tokens * k;
    int32_t *expert = s->expert + layer * tokens * k;
    int64_t kept = 0;
    for (int32_t d = 0; d < s->config->cluster.devices; d++) {
        const int64_t begin = moe_batch_token_begin(tokens, s->config->cluster.devices, d);
        const int64_t end = moe_batch_token_begin(tokens, s->config->cluster.devices, d + 1);
        const int64_t middle = begin + (end - begin + 1) / 2;
        const int64_t from = s->halves && s->half == 1 ? middle : begin;
        const int64_t to = s->halves && s->half == 0 ? middle : end;
        memcpy(expert + kept * k, all + from * k, (size_t)((to - from) * k) * sizeof *all);
        for (int64_t t = from; t < to; t++) {
            s->home[kept++] = d;
        }
    }
    s->choices[layer] =
        (moe_choices){.num_tokens = kept, .k = (int32_t)k, .expert = expert, .home = s->home};
}

/* Collective. Gathers what the layer's router chose, before dropping. */
static int after_layer(void *self,
                       const moe_stack *stack,
                       int32_t l,
                       moe_step_metrics *metrics,
                       moe_status *st) {
    moe_step_source *s = self;
    const moe_routing *r = &moe_stack_activations(stack, l)->routing;
    const int64_t k = columns(s);
    (void)metrics;
    int32_t *mine = moe_alloc(r->num_tokens * k, sizeof *mine, "choices");
    for (int64_t t = 0; t < r->num_tokens; t++) {
        const int64_t begin = r->row_offset[t], count = r->row_offset[t + 1] - begin;
        for (int64_t i = 0; i < k; i++) {
            mine[t * k + i] = i < count ? r->expert[begin + i] : -1;
        }
    }
    const int32_t at = s->comm->rank == 0 ? l : 0;
    moe_comm_allgatherv(s->comm, mine, s->all + at * num_tokens(s) * k, s->bytes);
    moe_free(mine);
    return st->code;
}

static int make_run_step(moe_step_source *s, int64_t step, moe_status *st) {
    const moe_observer observer = {.self = s, .after_layer = after_layer};
    const int64_t n = s->config->model.num_experts, at = s->halves ? 0 : step;
    s->half = step;
    s->context.step = at;
    moe_step_metrics_clear(&s->metrics);
    s->metrics.step = at;
    moe_input_begin_step(&s->input, s->comm, at, &s->batch);
    moe_input_vectors(&s->input, s->config, at, &s->batch, moe_stack_input(&s->stack));
    if (moe_stack_forward(&s->stack, &observer, &s->metrics, st) != MOE_OK) {
        return st->code;
    }
    for (int32_t l = 0; l < s->layers && s->comm->rank == 0; l++) {
        take_half(s, l);
        moe_choices_count(&s->choices[l], (int32_t)n, s->load + l * n, NULL);
    }
    return MOE_OK;
}

int moe_step_source_make(moe_step_source *s, int64_t step, moe_status *st) {
    if (s->has_tokens) {
        return make_run_step(s, step, st);
    }
    if (s->comm->rank == 0) {
        const int64_t size = (int64_t)s->layers * s->config->model.num_experts;
        memcpy(s->load, s->file_load + step * size, (size_t)size * sizeof *s->load);
    }
    return MOE_OK;
}

/* --- open and free --- */

int moe_step_source_open(moe_step_source *s, const moe_comm *comm, moe_config *c, moe_status *st) {
    *s = (moe_step_source){.comm = comm, .config = c};
    if ((moe_config_has_loads_only(c) ? open_file : open_run)(s, st) == MOE_OK) {
        s->load = moe_alloc((int64_t)s->layers * c->model.num_experts, sizeof *s->load, "loads");
    }
    return st->code;
}

void moe_step_source_free(moe_step_source *s) {
    moe_free(s->load);
    moe_free(s->choices);
    moe_free(s->file_load);
    moe_free(s->all);
    moe_free(s->expert);
    moe_free(s->home);
    moe_free(s->bytes);
    if (s->has_tokens) {
        moe_step_metrics_free(&s->metrics);
        moe_stack_free(&s->stack);
        moe_context_free(&s->context);
        moe_batch_free(&s->batch);
        moe_scratch_free(&s->scratch);
    }
    moe_input_free(&s->input);
}
