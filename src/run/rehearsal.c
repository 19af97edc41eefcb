/* rehearsal.c: a small forward run, of which only the counts of rows are kept; vectors do not
 * travel. A model that is small enough is run as it is for some steps, and learns where the run
 * trains: what experts do moves the choices of later layers, and what is learned those of later
 * steps. */
#include "run/rehearsal.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "capacity/capacity.h"
#include "model/stack.h"
#include "predict/expected.h"
#include "run/rebalance.h"
#include "tally/tally.h"
#include "train/train.h"

enum {
    MOST_DRAWS = 8,
    MOST_TOKENS = 1 << 14,   /* of all ranks, where they can be chosen */
    MOST_RECORDED = 1 << 22, /* of a recording, in all layers of a step */
    MOST_PRODUCTS = 1 << 30, /* of all gates, for all tokens */
    MOST_WEIGHTS = 1 << 24,  /* of all gates */
    MOST_VISITS = 1 << 18,   /* of tokens in layers and steps, where the model is run as it is */
    LEAST_BYTES = 4 << 20,   /* of a rank that depend on the load, for which that is worth it */
    MOST_CELLS = 1 << 20,    /* of statistics: devices of a rank x experts x layers, of all draws */
    LEAST_OF_EXPERT = 16     /* selections for which the rounding of a capacity says little */
};

typedef struct rehearsal {
    const moe_comm *comm;
    moe_config config; /* of the small run */
    moe_input *input;
    const moe_model_files *files;
    bool as_it_is;          /* nothing is left out of the model */
    double kept, kept_rows; /* the share that a capacity keeps which the small run has not */
    bool shares; /* the layers share their buffers: the most of any counts, else their mean */
    moe_batch batch;
    moe_scratch scratch;
    moe_context context;
    moe_scopes all_layers;
    moe_stack stack;
    moe_step_metrics metrics;
    moe_training training;     /* where the model is run as it is */
    moe_parameters parameters; /* elsewhere: of the task, */
    moe_task task;             /* which makes the vectors of text that is learned */
    moe_rebalance rebalance;
    moe_memory_load *seen; /* [layers] the most of any draw */
} rehearsal;

static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* --- a smaller configuration --- */

/* Logits or a routing were read from a file, for all tokens. */
static bool has_recording(const moe_config *c) {
    return c->data.source == MOE_SOURCE_LOGITS || c->data.source == MOE_SOURCE_ROUTING;
}

static bool trains(const moe_config *c) {
    return c->run.mode == MOE_MODE_TRAIN;
}

static int64_t draws_of_step(const moe_config *c) {
    return trains(c) ? c->train.accumulate : 1;
}

/* Their number is not a matter of choice. */
static bool has_given_tokens(const moe_config *c) {
    return has_recording(c) || c->model.load[0];
}

/* What decides who goes where stays; what is computed with the vectors is left out. */
static void simplify(moe_config *c) {
    c->model.num_layers = moe_config_moe_layers(c);
    c->model.first_dense_layers = 0;
    c->model.num_shared_experts = 0;
    c->model.attention = MOE_ATTENTION_NONE;
    c->model.expert_type = MOE_EXPERT_IDENTITY;
    c->model.compute = MOE_COMPUTE_FP32;
    c->exchange.payload = c->exchange.combine_payload = MOE_PAYLOAD_FP32;
    c->exchange.transport = MOE_TRANSPORT_ALLTOALLV;
    c->placement.rebalance_every = 0;
    if (has_recording(c)) {
        c->model.hidden_size = 1; /* nobody looks at the vectors */
    } else {
        const double gate = (double)c->model.num_experts * c->model.hidden_size;
        c->model.num_layers = (int32_t)fmin(c->model.num_layers, floor(MOST_WEIGHTS / gate));
    }
}

static bool counts_sequences(const moe_config *c) {
    return c->capacity.policy == MOE_CAPACITY_SEQUENCE;
}

/* Tokens of a device that are looked at. A capacity of sequences counts whole ones. */
static int64_t sample_size(const moe_config *c) {
    const double gates = (double)c->model.num_layers * c->model.num_experts * c->model.hidden_size;
    const int64_t length = c->data.sequence_length;
    const int64_t most =
        max64(1, (int64_t)(fmin(MOST_TOKENS, MOST_PRODUCTS / gates) / c->cluster.devices));
    return counts_sequences(c) && length > 0 && length <= most ? most / length * length : most;
}

/* Keeps the number of sequences, each of which may have a topic of its own, and shortens them;
 * where they are short already, there will be fewer of them. A capacity in pairs shrinks too. */
static void shrink(moe_config *c, int64_t tokens) {
    const int64_t all = c->data.tokens_per_device, length = c->data.sequence_length;
    const double share = (double)tokens / (double)all;
    if (tokens >= all) {
        return;
    }
    c->data.tokens_per_device = tokens;
    if (length > 0 && (length > tokens || !counts_sequences(c))) {
        c->data.sequence_length = max64(1, (int64_t)floor((double)length * share + 0.5));
    }
    const double pool = counts_sequences(c) && length > 0
                            ? (double)c->data.sequence_length / (double)length
                            : share;
    c->capacity.expert_capacity = (int32_t)ceil(c->capacity.expert_capacity * pool);
    c->capacity.min_capacity = (int32_t)floor(c->capacity.min_capacity * pool);
}

/* A capacity of few pairs is mostly rounding and chance: it is left out of a sample in which it
 * would be one of fewer than in the run, and what it keeps is taken from its formula. */
static void leave_out_capacity(rehearsal *r, const moe_config *whole) {
    moe_config *c = &r->config;
    const int64_t length = whole->data.sequence_length;
    const int64_t in_run = whole->data.tokens_per_device * whole->cluster.devices;
    const moe_sequences sequences = {.num = length > 0 ? (in_run + length - 1) / length : 1,
                                     .length = length > 0 && length < in_run ? length : in_run};
    const bool same = counts_sequences(c)
                          ? c->data.sequence_length == length
                          : c->data.tokens_per_device == whole->data.tokens_per_device;
    const double of_expert =
        (double)c->router.top_k / c->model.num_experts *
        (double)(counts_sequences(c) ? c->data.sequence_length : c->data.tokens_per_device);
    if (c->capacity.policy == MOE_CAPACITY_NONE || same || of_expert >= LEAST_OF_EXPERT) {
        return;
    }
    const double k = moe_expected_choices(whole, whole->data.tokens_per_device);
    r->kept = moe_expected_kept(whole, &sequences, in_run, k);
    r->kept_rows = moe_expected_reach(whole, k * r->kept) / moe_expected_reach(whole, k);
    c->capacity.policy = MOE_CAPACITY_NONE;
}

/* Cells of statistics of a draw, which take the time where many devices are folded onto a rank. */
static double cells_of(const moe_config *c) {
    return (double)c->cluster.devices / c->ranks * c->model.num_experts * moe_config_moe_layers(c);
}

/* --- the model as it is --- */

/* Whether a later choice depends on what experts, attention or training do; and whether choices
 * decide where anything is. */
static bool has_consequences(const moe_config *c) {
    const bool moves = c->ranks > 1 || c->capacity.policy != MOE_CAPACITY_NONE ||
                       c->router.method == MOE_METHOD_TOP_P;
    return moves && !moe_config_ignores_scores(c) &&
           (trains(c) || c->model.num_layers > 1 || c->model.attention != MOE_ATTENTION_NONE);
}

/* Multiplications that take some tenths of a second. */
static const double MOST_OF_MODEL = 0x1p32;

/* Multiplications of a step, forward and backward: a token meets the parameters of its experts and
 * all others, and in attention half of its sequence, once for its key and once for its value. */
static double products_of_step(const moe_config *c, double tokens) {
    const moe_parameter_counts p = moe_memory_parameters(c);
    const double length =
        (double)(c->data.sequence_length > 0 ? c->data.sequence_length : c->data.tokens_per_device);
    const double attention = c->model.attention == MOE_ATTENTION_NONE
                                 ? 0
                                 : length * c->model.num_layers * c->model.hidden_size;
    const double of_token = (double)p.expert / c->model.num_experts *
                                moe_expected_choices(c, c->data.tokens_per_device) +
                            (double)p.replicated + attention;
    return tokens * of_token * (trains(c) ? 3 : 1);
}

/* Whole steps of the model as it is that can be made in the time that a rehearsal may take. */
static double quick_steps(const moe_config *c, int64_t tokens) {
    const double of_step = (double)tokens * (double)draws_of_step(c);
    return floor(fmin(MOST_VISITS / (of_step * c->model.num_layers),
                      MOST_OF_MODEL / products_of_step(c, of_step)));
}

/* Whether that is time for two steps, or for the only one; where little depends on the load, they
 * are not worth it. */
static bool runs_as_it_is(const moe_config *c, int64_t tokens) {
    if (has_given_tokens(c) || moe_config_generates(c) || !has_consequences(c) ||
        quick_steps(c, tokens) < fmin(2, (double)c->run.steps)) {
        return false;
    }
    const moe_memory m = moe_memory_estimate(c, &(moe_memory_given){.num_tokens = tokens});
    return m.activations + m.exchange >= LEAST_BYTES;
}

/* Rows go by MPI_Alltoallv and at once, which changes no choice. */
static void keep(moe_config *c) {
    c->exchange.transport = MOE_TRANSPORT_ALLTOALLV;
    c->exchange.chunks = 1;
    c->placement.rebalance_every = 0;
}

/* Whether this can be rehearsed in the room that there is. */
static bool is_possible(const moe_config *c, int64_t tokens, int64_t room) {
    const moe_memory_given given = {.num_tokens = tokens};
    moe_status st = {0};
    if (moe_config_generates(c) || moe_config_moe_layers(c) < 1 || cells_of(c) > MOST_CELLS) {
        return false;
    }
    const double products = (double)tokens * c->model.num_experts * c->model.hidden_size;
    if (has_recording(c) ? tokens > MOST_RECORDED / c->model.num_layers
                         : c->model.load[0] && products > MOST_PRODUCTS) {
        return false;
    }
    const moe_memory needed = moe_memory_estimate(c, &given);
    const int64_t length = c->data.sequence_length;
    const int64_t learned = needed.gradients + needed.optimizer;
    return needed.activations + needed.exchange + needed.statistics + needed.weights + learned <=
               room &&
           moe_capacity_check(c, tokens, length > 0 && length < tokens ? length : tokens, &st) ==
               MOE_OK;
}

/* --- the small run --- */

static int open_run(rehearsal *r, int64_t tokens, moe_status *st) {
    const moe_config *c = &r->config;
    if (has_given_tokens(c)) {
        moe_input_layout(r->input, c, r->comm, tokens, &r->batch);
    } else {
        moe_batch_layout(&r->batch, tokens, c->data.sequence_length, c->cluster.devices,
                         r->comm->rank, r->comm->size);
    }
    moe_context_init(&r->context, r->comm, c, &r->batch, r->input, &r->scratch);
    r->context.counts_only = !r->as_it_is;
    if (moe_balance_has_all_layers(&c->balance)) {
        r->context.all_layers = &r->all_layers;
    }
    const bool learns = r->as_it_is && trains(c);
    moe_stack_init(&r->stack, &r->context, learns ? moe_memory_kept_layers(c) : 1, learns);
    moe_step_metrics_init(&r->metrics, moe_config_moe_layers(c), c->model.num_experts,
                          c->cluster.devices);
    if (learns) {
        moe_training_init(&r->training, &r->stack, &r->batch);
    }
    moe_rebalance_init(&r->rebalance, &r->stack, learns ? &r->training : NULL);
    if (!learns && trains(c) && c->data.source == MOE_SOURCE_TEXT) {
        moe_parameters_init(&r->parameters, r->batch.devices, r->batch.num_local_devices);
        r->parameters.values_only = true;
        moe_task_init(&r->task, c, r->input, &r->batch, &r->parameters);
    }
    r->seen = moe_alloc_zero(moe_config_moe_layers(c), sizeof *r->seen, "rehearsal");
    return c->model.load[0] ? moe_model_files_gate(&r->context, &r->stack.layer[0], st) : MOE_OK;
}

static void close_run(rehearsal *r) {
    moe_free(r->seen);
    moe_rebalance_free(&r->rebalance);
    moe_training_free(&r->training);
    if (r->task.kind) {
        moe_task_free(&r->task);
        moe_parameters_free(&r->parameters);
    }
    moe_step_metrics_free(&r->metrics);
    moe_stack_free(&r->stack);
    moe_scopes_free(&r->all_layers);
    moe_context_free(&r->context);
    moe_batch_free(&r->batch);
    moe_scratch_free(&r->scratch);
}

/* What a layer sent and received, for each token of this rank. */
static moe_memory_load load_of(const rehearsal *r, const moe_activations *a) {
    const int hops = moe_row_format_hops(a->plan.mode);
    const moe_plan *last = moe_exchange_plan_of(&a->exchange, &a->plan, hops - 1);
    const moe_inbox *in = &a->exchange.inbox;
    const int64_t own = in->own_end - in->own_begin, slots = (int64_t)in->num_local * in->slots;
    const double token = 1 / (double)max64(1, a->plan.num_tokens);
    const double pair = token * r->kept, row = token * r->kept_rows;
    int64_t fullest = 0;
    for (int64_t s = 0; s < slots; s++) {
        fullest = max64(fullest, in->slot_offset[s + 1] - in->slot_offset[s]);
    }
    return (moe_memory_load){
        .selections = (double)a->routing.num_selections * token,
        .sent = (double)a->plan.num_pairs * pair,
        .rows = (double)last->num_rows * row,
        .remote = (double)(last->num_rows - own) * row,
        .first = hops > 1 ? (double)a->exchange.relay->first.inbox.num_rows * row : 0,
        .in_pairs = (double)in->num_pairs * pair,
        .in_rows = (double)in->num_rows * row,
        .in_remote = (double)(in->num_rows - own) * row,
        .of_slot = (double)fullest * pair};
}

/* sum[i] becomes the larger of both, or their sum. */
static void gather(moe_memory_load *all, const moe_memory_load *one, bool sums) {
    double into[MOE_MEMORY_FIGURES], from[MOE_MEMORY_FIGURES];
    memcpy(into, all, sizeof into);
    memcpy(from, one, sizeof from);
    for (int i = 0; i < MOE_MEMORY_FIGURES; i++) {
        into[i] = sums ? into[i] + from[i] : fmax(into[i], from[i]);
    }
    memcpy(all, into, sizeof into);
}

static int after_layer(void *self,
                       const moe_stack *stack,
                       int32_t l,
                       moe_step_metrics *metrics,
                       moe_status *st) {
    rehearsal *r = self;
    const moe_activations *a = moe_stack_activations(stack, l);
    const moe_memory_load load = load_of(r, a);
    gather(&r->seen[l], &load, false);
    moe_rebalance_see(&r->rebalance, -1, l, &a->routing);
    return moe_tally_after_layer(NULL, stack, l, metrics, st);
}

static void make_vectors(rehearsal *r, int64_t step, real *x) {
    if (r->files->x) {
        moe_model_files_input(r->files, &r->batch, r->config.model.hidden_size, x);
    } else {
        moe_input_vectors(r->input, &r->config, step, &r->batch, x);
    }
}

/* The task that makes the input vectors; NULL: they are those of a forward run. */
static moe_task *task_of(rehearsal *r) {
    return r->training.stack ? &r->training.task : r->task.kind ? &r->task : NULL;
}

/* A step, or a micro-batch of one, forward. */
static int run_draw(rehearsal *r, int64_t draw, bool learns, moe_status *st) {
    const moe_observer observer = {.self = r, .after_layer = after_layer};
    const moe_config *c = &r->config;
    const int64_t step = draw / draws_of_step(c);
    r->context.step = step;
    r->context.draw = draw;
    r->context.trains = learns;
    moe_step_metrics_clear(&r->metrics);
    r->metrics.step = step;
    if (task_of(r)) {
        moe_task_input(task_of(r), &r->batch, r->context.draw, MOE_SPLIT_TRAIN,
                       moe_stack_input(&r->stack));
    } else {
        moe_input_begin_step(r->input, r->comm, step, &r->batch);
        make_vectors(r, trains(c) ? draw : step, moe_stack_input(&r->stack));
    }
    return moe_stack_forward(&r->stack, &observer, &r->metrics, st);
}

/* Collective. Before the first step experts may be placed by its load; this pass, like those of a
 * validation, is without the noise of training. */
static int look_ahead(rehearsal *r, moe_status *st) {
    const bool validates = trains(&r->config) && r->config.train.validation_every > 0;
    if ((r->rebalance.balancer || validates) && run_draw(r, 0, false, st) == MOE_OK &&
        r->rebalance.balancer) {
        moe_rebalance_take(&r->rebalance, 0, &r->metrics);
        moe_rebalance_now(&r->rebalance, 1);
    }
    return st->code;
}

/* Collective. A step of training, all of it. */
static int learn(rehearsal *r, int64_t step, moe_status *st) {
    const moe_observer observer = {.self = r, .after_layer = after_layer};
    r->context.step = step;
    moe_step_metrics_clear(&r->metrics);
    r->metrics.step = step;
    r->training.observer = &observer;
    return moe_training_step(&r->training, step, &r->metrics, st);
}

/* Draws that are looked at: steps where the model learns, elsewhere micro-batches. */
static int64_t num_draws(const rehearsal *r) {
    const moe_config *c = &r->config;
    const double of_step = (double)draws_of_step(c);
    const double most = fmin(MOST_DRAWS, ceil(MOST_CELLS / cells_of(c)));
    const double steps =
        fmin((double)c->run.steps,
             r->as_it_is ? quick_steps(c, r->batch.num_tokens_global) : (double)c->run.steps);
    return (int64_t)(r->training.stack ? fmin(steps, ceil(most / of_step))
                                       : fmin(steps * of_step, most));
}

/* Collective. */
static int run_draws(rehearsal *r, moe_status *st) {
    look_ahead(r, st);
    for (int64_t i = 0; i < num_draws(r) && st->code == MOE_OK; i++) {
        if (r->training.stack) {
            learn(r, i, st);
        } else {
            run_draw(r, i, trains(&r->config), st);
        }
    }
    return st->code;
}

/* Of this rank, in a layer: where the layers share their buffers, each is as large as any needs. */
static moe_memory_load together(const rehearsal *r) {
    moe_memory_load all = {0};
    double figure[MOE_MEMORY_FIGURES];
    for (int32_t l = 0; l < r->stack.num_layers; l++) {
        gather(&all, &r->seen[l], !r->shares);
    }
    memcpy(figure, &all, sizeof figure);
    for (int i = 0; i < MOE_MEMORY_FIGURES && !r->shares; i++) {
        figure[i] /= r->stack.num_layers;
    }
    memcpy(&all, figure, sizeof all);
    return all;
}

static void exchange_loads(const rehearsal *r, moe_memory_load *load) {
    const moe_memory_load own = together(r);
    int64_t *bytes = moe_alloc(r->comm->size, sizeof *bytes, "rehearsal");
    for (int q = 0; q < r->comm->size; q++) {
        bytes[q] = sizeof own;
    }
    moe_comm_allgatherv(r->comm, &own, load, bytes);
    moe_free(bytes);
}

bool moe_rehearse(const moe_comm *comm,
                  const moe_config *c,
                  moe_input *in,
                  const moe_model_files *files,
                  int64_t tokens,
                  int64_t room,
                  moe_memory_load *load) {
    rehearsal r = {
        .comm = comm, .config = *c, .input = in, .files = files, .kept = 1, .kept_rows = 1};
    moe_status st = {0};
    r.as_it_is = runs_as_it_is(c, tokens);
    (r.as_it_is ? keep : simplify)(&r.config);
    if (!r.as_it_is && r.config.model.num_layers > 0 && !has_given_tokens(c)) {
        shrink(&r.config, sample_size(&r.config));
        leave_out_capacity(&r, c);
        tokens = r.config.data.tokens_per_device * r.config.cluster.devices;
    }
    int64_t refused = !is_possible(&r.config, tokens, room);
    moe_comm_max_i64(comm, &refused, 1);
    if (refused) {
        return false;
    }
    r.shares = moe_memory_kept_layers(c) == 1;
    if (open_run(&r, tokens, &st) == MOE_OK) {
        run_draws(&r, &st);
    }
    const bool done = moe_comm_agree(comm, &st) == MOE_OK;
    if (done) {
        exchange_loads(&r, load);
    }
    close_run(&r);
    return done;
}
