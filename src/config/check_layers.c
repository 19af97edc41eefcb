/* check_layers.c: what the dense layers, and a layer from files, need of the other keys. */
#include "config/check.h"
#include "config/refuse.h"

/* The folder of model.load holds one layer and its input. */
static int check_loaded(const moe_config *c, moe_status *st) {
    const enum moe_key_id load = MOE_KEY(model, load);
    const moe_pair_rule rules[] = {
        {c->model.num_layers > 1, MOE_KEY(model, num_layers), load,
         "the folder holds the weights of one layer: num_layers = 1"},
        {c->run.mode == MOE_MODE_TRAIN, MOE_KEY(run, mode), load,
         "the folder holds the input of one layer and no target to learn: mode = forward"},
        {c->data.source == MOE_SOURCE_TEXT, MOE_KEY(data, source), load,
         "the folder holds the input, x.npy, in place of the text's vectors"},
    };
    return c->model.load[0] ? moe_refuse_pairs(c, rules, sizeof rules / sizeof rules[0], st)
                            : MOE_OK;
}

int moe_check_layers(const moe_config *c, moe_status *st) {
    const moe_model_config *m = &c->model;
    const enum moe_key_id dense = MOE_KEY(model, first_dense_layers);
    const double weights = 3.0 * m->first_dense_layers * m->intermediate_size * m->hidden_size;
    if (check_loaded(c, st) != MOE_OK || m->first_dense_layers == 0) {
        return st->code;
    }
    if (m->first_dense_layers >= m->num_layers) {
        return moe_refuse_key(
            c, moe_refuse_written(c, dense, MOE_KEY(model, num_layers)), st,
            "at least one layer has experts: model.first_dense_layers has to be below "
            "model.num_layers, which counts all layers (here %d and %d)",
            m->first_dense_layers, m->num_layers);
    }
    if (c->data.source == MOE_SOURCE_LOGITS || c->data.source == MOE_SOURCE_ROUTING) {
        return moe_refuse_pair(
            c, dense, MOE_KEY(data, source),
            "a recording holds MoE layers and no vectors that a dense layer "
            "could change: source = synthetic or text, or first_dense_layers = 0",
            st);
    }
    if (weights >= 0x1p50) {
        return moe_refuse_key(c, MOE_KEY(model, intermediate_size), st,
                              "times hidden_size = %d and first_dense_layers = %d it has to stay "
                              "below 2^50 weights",
                              m->hidden_size, m->first_dense_layers);
    }
    return MOE_OK;
}
