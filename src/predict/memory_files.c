/* memory_files.c: the bytes of what a run has read, and on rank 0 of what it keeps to be written.
 */
#include <math.h>

#include "base/alloc.h"
#include "predict/internal.h"

/* --- what was read --- */

/* Of each step recorded logits [L,T,N] (counted as double), or routing [L,T,K] with weights and
 * scores [L,T,N], and a byte of mask for each token; the text; and the biases [L,N]. */
int64_t moe_memory_input(const moe_config *c, int64_t tokens) {
    const int64_t n = c->model.num_experts, layers = moe_config_moe_layers(c);
    const int64_t rows = mul3(c->run.steps, layers, tokens);
    const int64_t scores = mul3(rows, n, DOUBLE);
    const int64_t bias = c->router.bias_file[0] ? mul3(layers, n, DOUBLE) : 0;
    const int64_t more = add(c->data.mask[0] ? mul(c->run.steps, tokens) : 0, bias);
    if (c->data.source == MOE_SOURCE_LOGITS) {
        return add(scores, more);
    }
    if (c->data.source == MOE_SOURCE_ROUTING) {
        const int64_t each = INT + (c->data.weights[0] ? REAL : 0);
        return add(add(mul3(rows, c->router.top_k, each), c->data.scores[0] ? scores : 0), more);
    }
    return add(c->data.source == MOE_SOURCE_TEXT ? tokens : 0, more);
}

/* --- what rank 0 keeps for the files of results --- */

/* The loads [L,N] of all steps, in a vector that grows by half when it is full and is copied then
 * (its reserve is not touched); and the device matrices of some steps (matrix_history.h), which
 * double. */
int64_t moe_memory_histories(const moe_config *c) {
    const double words = (double)moe_config_moe_layers(c) * c->model.num_experts;
    const double steps = (double)c->run.steps;
    double room = 0, before = 0;
    for (double needed = 1; needed <= steps; needed = room + 1) {
        before = room;
        room = needed > 16 ? floor(1.5 * needed) : 16;
    }
    const double cells = (double)moe_config_moe_layers(c) * c->cluster.devices * c->cluster.devices;
    const double fit = fmin(fmin(steps, 32), floor((16 << 20) / (WORD * cells)));
    const double matrices_bytes = 1.5 * cells * WORD * (fit > 0 ? exp2(ceil(log2(fit))) : 0);
    return moe_memory_whole(fmax(steps, 2 * before) * words * WORD + matrices_bytes);
}
