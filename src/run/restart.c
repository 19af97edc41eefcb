/* restart.c: gathers the blobs of a checkpoint from the parts of a run. */
#include "run/restart.h"

#include <stdio.h>

typedef struct state {
    moe_blob *blob;   /* results, fingerprint, one bias per layer */
    char (*name)[32]; /* of the biases */
    int num;
    uint64_t text; /* checksum of the text */
} state;

static state state_of(const moe_restart *r, int64_t step) {
    state s = {.text = r->input->text ? moe_checksum(r->input->text, r->input->text_length) : 0};
    int32_t layers = r->config->model.num_layers;
    s.blob = moe_alloc(MOE_RESULTS_BLOBS + 1 + layers, sizeof *s.blob, "checkpoint");
    s.name = moe_alloc(layers, sizeof *s.name, "checkpoint");
    moe_results_history(r->comm, r->results, r->config, step, s.blob);
    s.num = MOE_RESULTS_BLOBS;
    for (int32_t l = 0; l < layers; l++) {
        if (!r->layers[l].bias) {
            continue;
        }
        snprintf(s.name[l], sizeof s.name[l], "layer%d.bias", l);
        s.blob[s.num++] = (moe_blob){s.name[l], r->layers[l].bias,
                                     r->config->model.num_experts * (int64_t)sizeof(double)};
    }
    return s;
}

static void state_free(state *s) {
    moe_free(s->blob);
    moe_free(s->name);
}

/* The last blob points into *s: it is added where s stays put. */
static void add_fingerprint(state *s, uint64_t *text) {
    s->blob[s->num++] = (moe_blob){"text checksum", text, sizeof *text};
}

int moe_restart_write(const moe_restart *r, int64_t step, moe_status *st) {
    int64_t every = r->config->train.checkpoint_every;
    if (every == 0 || step % every != 0) {
        return MOE_OK;
    }
    if (moe_results_sync(r->comm, r->results, st)) {
        return st->code;
    }
    state s = state_of(r, step);
    add_fingerprint(&s, &s.text);
    moe_checkpoint_write(r->comm, r->results->folder, r->config, step, r->parameters, s.blob, s.num,
                         st);
    state_free(&s);
    return st->code;
}

int moe_restart_read(const moe_restart *r,
                     const moe_checkpoint *from,
                     const char *folder,
                     moe_status *st) {
    uint64_t text;
    state s = state_of(r, from->step);
    add_fingerprint(&s, &text);
    if (moe_checkpoint_read(r->comm, from->path, r->parameters, s.blob, s.num, st) == MOE_OK &&
        text != s.text) {
        moe_fail(st, MOE_USER,
                 "%s was made with another text than %s is now (their checksums differ)",
                 from->path, r->config->data.path);
    }
    if (moe_comm_agree(r->comm, st) == MOE_OK) {
        moe_results_reopen(r->comm, r->config, folder, from->step, r->results, st);
    }
    state_free(&s);
    return st->code;
}
