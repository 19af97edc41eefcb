/* restart.c: gathers the blobs of a checkpoint from the parts of a run. */
#include "run/restart.h"

#include <math.h>
#include <stdio.h>

/* --- the state of the layers beside their parameters --- */

enum { OF_LAYER = 4 };

/* Appends what a layer has, if it has that. */
static void add_of_layer(moe_layer_state *s,
                         int32_t depth,
                         const char *what,
                         void *data,
                         int64_t bytes,
                         int64_t columns) {
    char *name = s->name[s->num];
    if (!data) {
        return;
    }
    snprintf(name, sizeof s->name[0], "layer%d.%s", depth, what);
    s->blob[s->num] = moe_blob_of(name, data, bytes);
    s->blob[s->num++].columns = columns;
}

moe_layer_state moe_layer_state_of(const moe_layer *layers, int32_t num, const moe_config *c) {
    moe_layer_state s = {0};
    s.blob = moe_alloc(OF_LAYER * (int64_t)num, sizeof *s.blob, "state of the layers");
    s.name = moe_alloc(OF_LAYER * (int64_t)num, sizeof *s.name, "state of the layers");
    for (int32_t l = 0; l < num; l++) {
        const moe_ffn *f = &layers[l].experts;
        const int64_t bytes = f->width * f->hidden * (int64_t)sizeof(real);
        add_of_layer(&s, layers[l].depth, "bias", layers[l].bias,
                     c->model.num_experts * (int64_t)sizeof(double), 0);
        if (moe_ffn_type_of(f->type)->adapters) {
            add_of_layer(&s, layers[l].depth, "experts.base.w1", f->w1, bytes, f->hidden);
            add_of_layer(&s, layers[l].depth, "experts.base.w2", f->w2, bytes, f->width);
            add_of_layer(&s, layers[l].depth, "experts.base.w3", f->w3, bytes, f->hidden);
        }
    }
    return s;
}

void moe_layer_state_free(moe_layer_state *s) {
    moe_free(s->blob);
    moe_free(s->name);
}

/* --- together --- */

typedef struct state {
    moe_layer_state layers;
    moe_blob *blob; /* results, placement, those of the layers, fingerprint */
    int num;
    uint64_t text; /* checksum of the text */
} state;

static state state_of(const moe_restart *r, int64_t step) {
    const moe_input *in = r->input;
    state s = {.text = in->text ? moe_checksum(in->text, in->text_length) : 0};
    s.layers = moe_layer_state_of(r->layers, moe_config_moe_layers(r->config), r->config);
    s.blob = moe_alloc(MOE_RESULTS_BLOBS + MOE_REBALANCE_BLOBS + s.layers.num + 1, sizeof *s.blob,
                       "checkpoint");
    moe_results_history(r->comm, r->results, r->config, step, s.blob);
    s.num = MOE_RESULTS_BLOBS;
    s.num += moe_rebalance_blobs(r->rebalance, step, s.blob + s.num);
    for (int i = 0; i < s.layers.num; i++) {
        s.blob[s.num++] = s.layers.blob[i];
    }
    return s;
}

static void state_free(state *s) {
    moe_layer_state_free(&s->layers);
    moe_free(s->blob);
}

/* The last blob points into *s: it is added where s stays put. */
static void add_fingerprint(state *s, uint64_t *text) {
    s->blob[s->num++] = moe_blob_of("text checksum", text, sizeof *text);
}

/* Collective. */
static int write_after(const moe_restart *r, int64_t step, moe_status *st) {
    moe_rebalance_gather(r->rebalance, step);
    state s = state_of(r, step);
    add_fingerprint(&s, &s.text);
    moe_checkpoint_write(r->comm, r->results->folder, r->config, step, r->parameters, s.blob, s.num,
                         st);
    state_free(&s);
    return st->code;
}

int moe_restart_write(const moe_restart *r, int64_t step, moe_status *st) {
    int64_t every = r->config->train.checkpoint_every;
    if (every == 0 || step % every != 0) {
        return MOE_OK;
    }
    return moe_results_sync(r->comm, r->results, st) ? st->code : write_after(r, step, st);
}

int moe_restart_write_final(const moe_restart *r, moe_status *st) {
    return write_after(r, r->config->run.steps, st);
}

/* Every step left a load of each expert in the file, so that a number of steps that asks for more
 * than the file has is refused before memory is taken for it. */
static int check_step(const moe_restart *r, const moe_checkpoint *from, moe_status *st) {
    int64_t bytes = (int64_t)sizeof(int64_t) * moe_config_moe_layers(r->config);
    if (from->step > r->config->run.steps ||
        __builtin_mul_overflow(bytes, r->config->model.num_experts, &bytes) ||
        __builtin_mul_overflow(bytes, from->step, &bytes) || bytes > from->bytes) {
        return moe_fail(st, MOE_USER,
                        "the checkpoint '%s' is damaged: it cannot have been made after %lld of "
                        "%lld steps",
                        from->path, (long long)from->step, (long long)r->config->run.steps);
    }
    if (from->step == r->config->run.steps) {
        return moe_fail(st, MOE_USER,
                        "the checkpoint '%s' was made after the last of %lld steps, whose results "
                        "are not there: with --set run.steps=... the run goes on from it",
                        from->path, (long long)from->step);
    }
    return MOE_OK;
}

static int check_biases(const moe_restart *r, const moe_checkpoint *from, moe_status *st) {
    for (int32_t l = 0; l < moe_config_moe_layers(r->config); l++) {
        for (int32_t e = 0; r->layers[l].bias && e < r->config->model.num_experts; e++) {
            if (!isfinite(r->layers[l].bias[e])) {
                return moe_fail(st, MOE_USER,
                                "the checkpoint '%s' is damaged: the bias of expert %d in layer %d "
                                "is not finite",
                                from->path, e, l);
            }
        }
    }
    return MOE_OK;
}

/* Everything but the parameters, whose numbers are checked as they are read. */
static int check_state(const moe_restart *r,
                       const moe_checkpoint *from,
                       const state *s,
                       uint64_t text,
                       moe_status *st) {
    if (text != s->text) {
        return moe_fail(st, MOE_USER,
                        "%s was made with another text than %s is now (their checksums differ)",
                        from->path, r->config->data.path);
    }
    if (check_biases(r, from, st) != MOE_OK ||
        moe_rebalance_check(r->rebalance, from->path, st) != MOE_OK) {
        return st->code;
    }
    return moe_results_check_history(r->results, s->blob, from->step, from->path, st);
}

/* Where the experts are has to be known before they are read. */
static int read_placement(const moe_restart *r, const moe_checkpoint *from, moe_status *st) {
    moe_blob blob[MOE_REBALANCE_BLOBS];
    if (moe_rebalance_blobs(r->rebalance, from->step, blob) == 0) {
        return MOE_OK;
    }
    if (moe_checkpoint_read_blob(r->comm, from->path, &blob[0], st) == MOE_OK) {
        moe_rebalance_restore(r->rebalance, from->path, st);
    }
    return moe_comm_agree(r->comm, st);
}

int moe_restart_read(const moe_restart *r,
                     const moe_checkpoint *from,
                     const char *folder,
                     moe_status *st) {
    uint64_t text = 0;
    if (check_step(r, from, st) != MOE_OK) {
        return st->code;
    }
    state s = state_of(r, from->step);
    add_fingerprint(&s, &text);
    if (read_placement(r, from, st) == MOE_OK &&
        moe_checkpoint_read(r->comm, from->path, r->parameters, s.blob, s.num, st) == MOE_OK) {
        check_state(r, from, &s, text, st);
    }
    if (moe_comm_agree(r->comm, st) == MOE_OK) {
        moe_results_reopen(r->comm, r->config, folder, from->step, r->results, st);
    }
    state_free(&s);
    return st->code;
}

int moe_restart_read_model(const moe_restart *r, const moe_checkpoint *from, moe_status *st) {
    moe_layer_state layers =
        moe_layer_state_of(r->layers, moe_config_moe_layers(r->config), r->config);
    if (read_placement(r, from, st) == MOE_OK &&
        moe_checkpoint_read_model(r->comm, from->path, r->parameters, layers.blob, layers.num,
                                  st) == MOE_OK) {
        check_biases(r, from, st);
    }
    moe_layer_state_free(&layers);
    return moe_comm_agree(r->comm, st);
}
