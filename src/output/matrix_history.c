/* matrix_history.c: decides which steps' matrices are kept, and keeps them. */
#include "output/matrix_history.h"

#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

static int64_t cells(int32_t layers, int32_t devices) {
    return (int64_t)layers * devices * devices;
}

static int64_t div_up(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

int64_t moe_matrix_history_kept(int32_t layers, int32_t devices, int64_t steps, int64_t *stride) {
    int64_t fit = MOE_MATRICES_BYTES / (int64_t)sizeof(int64_t) / cells(layers, devices),
            most = fit < MOE_MATRICES ? fit : MOE_MATRICES;
    *stride = 1;
    if (most == 0) {
        return 0;
    }
    while (div_up(steps, *stride) > most) {
        *stride *= 2;
    }
    return div_up(steps, *stride);
}

int64_t moe_matrix_history_steps(int32_t layers,
                                 int32_t devices,
                                 int64_t steps,
                                 int64_t step[MOE_MATRICES + 1]) {
    int64_t stride, kept = moe_matrix_history_kept(layers, devices, steps, &stride);
    for (int64_t i = 0; i < kept; i++) {
        step[i] = i * stride;
    }
    if (kept == 0 || step[kept - 1] == steps - 1) {
        return kept;
    }
    step[kept] = steps - 1;
    return kept + 1;
}

void moe_matrix_history_reserve(moe_matrix_history *m,
                                int32_t layers,
                                int32_t devices,
                                int64_t steps) {
    int64_t stride, kept = moe_matrix_history_kept(layers, devices, steps, &stride);
    moe_reserve(&m->rows, &m->capacity, kept * cells(layers, devices), sizeof *m->rows,
                "device matrices of some steps");
}

/* Makes the memory fit one more step than the `there` steps in it, which stay. */
static void widen(moe_matrix_history *m, int64_t there, int64_t size) {
    moe_matrix_history wider = {NULL, 0};
    if ((there + 1) * size <= m->capacity) {
        return;
    }
    moe_reserve(&wider.rows, &wider.capacity, (there > 0 ? 2 * there : 1) * size,
                sizeof *wider.rows, "device matrices of some steps");
    if (there > 0) {
        memcpy(wider.rows, m->rows, (size_t)(there * size) * sizeof *m->rows);
    }
    moe_matrix_history_free(m);
    *m = wider;
}

void moe_matrix_history_add(moe_matrix_history *m, const moe_step_metrics *step, int64_t steps) {
    int64_t size = cells(step->num_layers, step->devices), before, stride,
            there = moe_matrix_history_kept(step->num_layers, step->devices, steps, &before);
    if (moe_matrix_history_kept(step->num_layers, step->devices, steps + 1, &stride) == 0) {
        return;
    }
    for (int64_t i = 1; stride != before && 2 * i < there; i++) {
        memcpy(m->rows + i * size, m->rows + 2 * i * size, (size_t)size * sizeof *m->rows);
    }
    if (steps % stride != 0) {
        return;
    }
    int64_t at = steps / stride, layer = size / step->num_layers;
    widen(m, at, size);
    for (int32_t l = 0; l < step->num_layers; l++) {
        moe_sparse_to_array(&step->layer[l].matrix, m->rows + at * size + l * layer, step->devices,
                            step->devices);
    }
}

void moe_matrix_history_free(moe_matrix_history *m) {
    moe_free(m->rows);
    *m = (moe_matrix_history){0};
}
