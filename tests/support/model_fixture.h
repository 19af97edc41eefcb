/* model_fixture.h: a model that is ready to run, made from settings: what run/prepare.c makes for a
 * run, without files, folder or screen. For tests of layers, stacks and training. */
#ifndef MOESIM_TESTS_MODEL_FIXTURE_H
#define MOESIM_TESTS_MODEL_FIXTURE_H

#include "model/stack.h"
#include "predict/memory.h"
#include "settings.h"
#include "tally/tally.h"
#include "train/train.h"

typedef struct model_fixture {
    moe_config c;
    moe_input input; /* the test may fill it in before model_fixture_make */
    moe_batch batch;
    moe_scratch scratch;
    moe_context context;
    moe_scopes all_layers;
    moe_stack stack;
    moe_training training; /* with run.mode = train */
    moe_observer tally;
    moe_step_metrics metrics;
} model_fixture;

static inline bool model_fixture_trains(const model_fixture *f) {
    return f->c.run.mode == MOE_MODE_TRAIN;
}

/* Local. Makes the model of f->c, which is resolved, with num_tokens tokens (0: as the settings
 * say). Activations are kept as a run keeps them; a training step is tallied. */
static inline void model_fixture_make(model_fixture *f, const moe_comm *comm, int64_t num_tokens) {
    const moe_config *c = &f->c;
    int64_t tokens = num_tokens ? num_tokens : c->cluster.devices * c->data.tokens_per_device;
    moe_batch_layout(&f->batch, tokens, c->data.sequence_length, c->cluster.devices, comm->rank,
                     comm->size);
    moe_context_init(&f->context, comm, c, &f->batch, &f->input, &f->scratch);
    if (moe_balance_has_all_layers(&c->balance)) {
        f->context.all_layers = &f->all_layers;
    }
    moe_stack_init(&f->stack, &f->context, moe_memory_kept_layers(c), model_fixture_trains(f));
    moe_step_metrics_init(&f->metrics, moe_config_moe_layers(c), c->model.num_experts,
                          c->cluster.devices);
    f->tally = (moe_observer){.after_layer = moe_tally_after_layer};
    if (model_fixture_trains(f)) {
        moe_training_init(&f->training, &f->stack, &f->batch);
        f->training.observer = &f->tally;
    }
}

/* Local. The same from settings: `common`, then `words` (settings.h). */
static inline void model_fixture_init(model_fixture *f,
                                      const moe_comm *comm,
                                      const char *common,
                                      const char *words,
                                      int64_t num_tokens) {
    *f = (model_fixture){0};
    settings_resolve(&f->c, common, words, comm->size);
    model_fixture_make(f, comm, num_tokens);
}

/* Collective. One training step. */
static inline int model_fixture_train(model_fixture *f, int64_t step, moe_status *st) {
    moe_step_metrics_clear(&f->metrics);
    f->metrics.step = f->context.step = step;
    return moe_training_step(&f->training, step, &f->metrics, st);
}

static inline void model_fixture_free(model_fixture *f) {
    moe_training_free(&f->training);
    moe_stack_free(&f->stack);
    moe_scopes_free(&f->all_layers);
    moe_step_metrics_free(&f->metrics);
    moe_context_free(&f->context);
    moe_batch_free(&f->batch);
    moe_scratch_free(&f->scratch);
}

#endif
