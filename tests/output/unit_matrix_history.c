/* unit_matrix_history.c: which steps' matrices are kept, against the definition, and that what is
 * kept are these steps' matrices, after any number of steps and when a run goes on from there. */
#include "base/alloc.h"
#include "check.h"
#include "made_record.h"
#include "output/matrix_history.h"

enum { LAYERS = 2, DEVICES = 4, CELLS = DEVICES * DEVICES, STEPS = 300 };

/* From the definition: the first power of two that leaves at most `most` multiples below steps. */
static int64_t stride_of(int64_t steps, int64_t most) {
    for (int64_t stride = 1;; stride *= 2) {
        int64_t count = 0;
        for (int64_t s = 0; s < steps; s += stride) {
            count++;
        }
        if (count <= most) {
            return stride;
        }
    }
}

static void check_steps(int32_t layers, int32_t devices, int64_t steps, int64_t most) {
    int64_t step[MOE_MATRICES + 1];
    int64_t stride;
    int64_t kept = moe_matrix_history_kept(layers, devices, steps, &stride);
    int64_t listed = moe_matrix_history_steps(layers, devices, steps, step);
    int64_t wanted = stride_of(steps, most);
    CHECK_EQ(stride, wanted);
    CHECK(kept <= most && kept * layers * devices * devices * 8 <= MOE_MATRICES_BYTES);
    CHECK(2 * kept >= most || steps <= most); /* no more is left out than doubling the stride must
                                               */
    bool right = step[listed - 1] == steps - 1;
    for (int64_t i = 0; i < kept; i++) {
        right = right && step[i] == i * wanted;
    }
    CHECK_MSG(right && listed <= kept + 1, "%d layers, %d devices, %lld steps", layers, devices,
              (long long)steps);
}

static void make_step(moe_step_metrics *r, int64_t step) {
    int64_t cell[CELLS];
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < CELLS; i++) {
            cell[i] = 1000000 * l + 1000 * i + step;
        }
        moe_sparse_from_array(&r->layer[l].matrix, cell, DEVICES, DEVICES);
    }
}

static void check_kept(const moe_matrix_history *m, int64_t steps) {
    int64_t stride, kept = moe_matrix_history_kept(LAYERS, DEVICES, steps, &stride);
    bool right = true;
    for (int64_t k = 0; k < kept; k++) {
        for (int l = 0; l < LAYERS; l++) {
            for (int i = 0; i < CELLS; i++) {
                right = right && m->rows[(k * LAYERS + l) * CELLS + i] ==
                                     1000000 * l + 1000 * i + k * stride;
            }
        }
    }
    CHECK_MSG(right, "after %lld steps", (long long)steps);
}

/* Goes on with what was kept after `cut` steps. */
static void check_going_on(int64_t cut) {
    moe_step_metrics r;
    moe_matrix_history before = {NULL, 0}, after = {NULL, 0};
    moe_step_metrics_init(&r, LAYERS, 8, DEVICES);
    for (int64_t step = 0; step < STEPS; step++) {
        if (step == cut) {
            int64_t stride, kept = moe_matrix_history_kept(LAYERS, DEVICES, cut, &stride);
            moe_matrix_history_reserve(&after, LAYERS, DEVICES, cut);
            if (kept > 0) {
                memcpy(after.rows, before.rows,
                       (size_t)(kept * LAYERS * CELLS) * sizeof *after.rows);
            }
        }
        make_step(&r, step);
        moe_matrix_history_add(step < cut ? &before : &after, &r, step);
        if (step >= cut || step % 7 == 0) {
            check_kept(step < cut ? &before : &after, step + 1);
        }
    }
    moe_matrix_history_free(&before);
    moe_matrix_history_free(&after);
    moe_step_metrics_free(&r);
}

int main(void) {
    for (int64_t steps = 1; steps < 200; steps++) {
        RUN(check_steps, LAYERS, DEVICES, steps, MOE_MATRICES);
    }
    RUN(check_steps, 1, 1, 1000000, MOE_MATRICES);
    check_steps(1, 256, 7, MOE_MATRICES); /* half a MiB each: just fits */
    check_steps(5, 256, 100, 6);          /* 2.5 MiB each */
    check_steps(1, 1448, 100, 1);         /* all but one step's bytes: the first and the last */
    int64_t step[MOE_MATRICES + 1], stride;
    CHECK(moe_matrix_history_kept(1, 1449, 100, &stride) == 0 &&
          moe_matrix_history_steps(1, 1449, 100, step) == 0);
    for (int64_t cut = 0; cut < STEPS; cut += 37) {
        RUN(check_going_on, cut);
    }
    return check_verdict();
}
