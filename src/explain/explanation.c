/* explanation.c: the memory of an explanation. */
#include "explain/explanation.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

void moe_explanation_init(moe_explanation *e, int64_t token, int32_t num_layers) {
    *e = (moe_explanation){.token = token, .num_layers = num_layers};
    e->layer = moe_alloc_zero(num_layers, sizeof *e->layer, "explanation");
}

void moe_explanation_free(moe_explanation *e) {
    for (int32_t i = 0; e->layer && i < e->num_layers; i++) {
        moe_block_free(&e->layer[i].block);
    }
    moe_free(e->layer);
    *e = (moe_explanation){.token = -1};
}

int64_t moe_explained_words(const moe_explained_layer *l) {
    return (int64_t)l->num_experts * (8 + 2 * MOE_NUM_LOSSES) + 2 * (int64_t)l->num_groups;
}

void moe_explained_reserve(moe_explained_layer *l) {
    int64_t n = l->num_experts, words = moe_explained_words(l);
    const moe_block_array table[] = {
        MOE_ARRAY(l->choice, l->num_choices),
        MOE_ARRAY(l->row, l->num_rows),
        MOE_ARRAY(l->numbers, words),
    };
    moe_block_reserve(&l->block, table, MOE_ARRAYS(table), "explanation");
    memset(l->block.memory, 0, (size_t)l->block.capacity);
    for (int64_t i = 0; i < words; i++) {
        l->numbers[i] = NAN;
    }
    double **of_experts[] = {&l->logit,         &l->score,         &l->normalized,
                             &l->added,         &l->selection,     &l->balance_gradient,
                             &l->task_gradient, &l->total_gradient};
    double *next = l->numbers;
    for (size_t i = 0; i < sizeof of_experts / sizeof of_experts[0]; i++, next += n) {
        *of_experts[i] = next;
    }
    l->coefficient = next;
    l->gradient = l->coefficient + MOE_NUM_LOSSES * n;
    l->group_score = l->gradient + MOE_NUM_LOSSES * n;
    l->admitted = l->group_score + l->num_groups;
}

int moe_explanation_byte(int64_t byte, char text[5]) {
    const char *const named[] = {['\n'] = "\\n", ['\t'] = "\\t", ['\r'] = "\\r", ['\\'] = "\\\\"};
    if (byte < (int64_t)(sizeof named / sizeof named[0]) && named[byte]) {
        return snprintf(text, 5, "%s", named[byte]);
    }
    return snprintf(text, 5, byte >= 32 && byte < 127 ? "%c" : "\\x%02x", (int)byte);
}
