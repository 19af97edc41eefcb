/* internal.h: the state of a run, which the files of this folder share. */
#ifndef MOESIM_RUN_INTERNAL_H
#define MOESIM_RUN_INTERNAL_H

#include "data/prompts.h"
#include "explain/explain.h"
#include "generate/generator.h"
#include "model/stack.h"
#include "output/results.h"
#include "output/terminal.h"
#include "predict/memory.h"
#include "run/model_files.h"
#include "run/rebalance.h"
#include "run/restart.h"
#include "run/run.h"
#include "train/train.h"
#include "world/topology.h"

typedef struct moe_run_state {
    const moe_comm *comm;
    moe_config *config;
    const moe_run_options *options;
    double start; /* moe_comm_time when the steps began */

    /* what the run works on */
    moe_topology topology;       /* of this rank */
    moe_topology *topologies;    /* of all ranks */
    moe_memory memory;           /* what was estimated */
    moe_input input;             /* the files of [data] */
    moe_model_files model_files; /* the files of model.load */
    moe_batch batch;
    moe_scratch scratch; /* working memory of the steps */
    moe_context context;
    moe_scopes all_layers;
    moe_stack stack;
    moe_training training; /* run.mode = train only */
    moe_prompts prompts;   /* run.mode = generate only, as is the next */
    moe_generator generator;
    moe_rebalance rebalance;

    /* what looks on, and what it saw */
    moe_observer observer;
    bool last_step;
    double writing_seconds; /* of this step, spent on result files */
    moe_payload_error fp32; /* the last step with fp32, where payloads round */
    moe_explainer explainer;
    moe_routing *routing; /* [layers] of the last step, with output.routing */
    moe_timeline timeline;
    moe_step_metrics metrics;

    moe_results results;
    moe_screen screen;
} moe_run_state;

/* Local. Whether the run trains. */
static inline bool moe_run_trains(const moe_run_state *r) {
    return r->config->run.mode == MOE_MODE_TRAIN;
}

/* --- prepare.c --- */

/* Collective. Reads and checks every file, refuses what cannot fit into memory, makes the model and
 * opens the folder of results. With options->check_only it stops before anything large is made,
 * with options->model_only before the folder of results.
 * A failure is agreed by all ranks. */
int moe_run_prepare(moe_run_state *r, moe_status *st);

/* Local. What training must carry over a restart. */
moe_restart moe_run_restart(moe_run_state *r);

/* Local. Frees everything that moe_run_prepare and the steps made. */
void moe_run_free(moe_run_state *r);

/* --- generate.c --- */

/* Collective. Reads the prompts, and settles how many bytes are added: generate.max_new_tokens, and
 * with it run.steps. MOE_USER, agreed by all ranks, where a sequence has no room for them. */
int moe_run_read_prompts(moe_run_state *r, moe_status *st);

/* Local, pure. The tokens of prefill, padding included. */
int64_t moe_run_prompt_tokens(const moe_run_state *r);

/* Collective. Makes what generates, and reads the checkpoint of options->model into the model. */
int moe_run_load_model(moe_run_state *r, moe_status *st);

/* Collective. Step 0 is prefill; every later one decodes a token of each sequence. */
int moe_run_generate_step(moe_run_state *r, int64_t step, moe_status *st);

/* Collective. Writes generated.txt and shows what is told at the end. */
void moe_run_generated(moe_run_state *r, double seconds, moe_status *writing);

/* --- observe.c --- */

/* Local. Who looks on while the layers run: the tally, the explanation, the check of sinkhorn, and
 * the writers of result files. */
moe_observer moe_run_observer(moe_run_state *r);

#endif
