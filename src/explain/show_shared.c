/* show_shared.c: what the parts of an explanation on the screen have in common: numbers in few
 * columns, and the choice of the experts that get a line. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "explain/show_internal.h"

moe_formatted moe_explain_show_number(double v) {
    moe_formatted text;
    if (isnan(v)) {
        snprintf(text.s, sizeof text.s, "-");
    } else if (isinf(v)) {
        snprintf(text.s, sizeof text.s, v < 0 ? "-inf" : "inf");
    } else if (v != 0 && (fabs(v) < 1e-3 || fabs(v) >= 1e5)) {
        snprintf(text.s, sizeof text.s, "%.1e", v);
    } else {
        snprintf(text.s, sizeof text.s, "%.*f", fabs(v) < 10 ? 4 : fabs(v) < 1000 ? 2 : 0, v);
    }
    return text;
}

int32_t moe_explain_show_choice_of(const moe_explained_layer *l, int32_t expert) {
    for (int32_t k = 0; k < l->num_choices; k++) {
        if (l->choice[k].expert == expert) {
            return k;
        }
    }
    return -1;
}

typedef struct ranked {
    double value;
    int32_t expert;
    bool chosen;
} ranked;

static int falling(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->value != y->value) {
        return x->value < y->value ? 1 : -1;
    }
    return (x->expert > y->expert) - (x->expert < y->expert);
}

static int chosen_first(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    return x->chosen != y->chosen ? (x->chosen ? -1 : 1) : falling(a, b);
}

int32_t moe_explain_show_top(const moe_explained_layer *l, int32_t most, int32_t *expert) {
    int32_t n = l->num_experts, count = n < most ? n : most;
    ranked *all = moe_alloc(n, sizeof *all, "explanation");
    for (int32_t i = 0; i < n; i++) {
        all[i] = (ranked){l->selection[i], i, moe_explain_show_choice_of(l, i) >= 0};
    }
    qsort(all, (size_t)n, sizeof *all, chosen_first);
    qsort(all, (size_t)count, sizeof *all, falling);
    for (int32_t i = 0; i < count; i++) {
        expert[i] = all[i].expert;
    }
    moe_free(all);
    return count;
}
