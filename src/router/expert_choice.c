/* expert_choice.c: experts choose tokens (Zhou et al. 2022, arXiv 2202.09368). Each takes the
 * T K / N tokens with its highest scores, so that the load is exactly balanced and tokens have
 * different numbers of experts. T are the routed tokens of one device, so that no device has to see
 * another's scores. */
#include <math.h>

#include "base/scratch.h"
#include "router/devices.h"
#include "router/scores.h"

/* The value at place `rank` (0 = largest) of x [n] in falling order; x is reordered (Hoare's
 * selection). */
static double ranked_value(double *x, int64_t n, int64_t rank) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        double pivot = x[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot) {
                i++;
            }
            while (x[j] < pivot) {
                j--;
            }
            if (i > j) {
                break;
            }
            double swap = x[i];
            x[i++] = x[j];
            x[j--] = swap;
        }
        if (rank <= j) {
            high = j;
        } else if (rank >= i) {
            low = i;
        } else {
            break;
        }
    }
    return x[rank];
}

/* T K / N, rounded to the nearest; at least 1, at most T. */
static int64_t tokens_of_expert(const moe_router *r, int64_t tokens) {
    int64_t n = r->num_experts, count = (2 * tokens * r->top_k + n) / (2 * n);
    return count < 1 ? 1 : count > tokens ? tokens : count;
}

/* Expert i takes the `count` best of s [T,N]. A score of -1 marks a token that it cannot have. */
static void take_tokens(const double *s,
                        int64_t tokens,
                        int32_t n,
                        int32_t i,
                        int64_t count,
                        double *column,
                        uint8_t *chosen) {
    for (int64_t t = 0; t < tokens; t++) {
        column[t] = s[t * n + i];
    }
    double last = ranked_value(column, tokens, count - 1);
    int64_t above = 0;
    for (int64_t t = 0; t < tokens; t++) {
        above += s[t * n + i] > last;
    }
    for (int64_t t = 0, equal = count - above; t < tokens; t++) {
        double v = s[t * n + i];
        bool taken = v >= 0 && (v > last || (v == last && equal > 0));
        equal -= taken && v == last;
        chosen[t * n + i] = taken;
    }
}

/* s [T,N], -1 where the expert is disabled for the token, or the token is bad or not routed. */
static void fill_scores(const moe_router *r,
                        moe_logits logits,
                        const uint8_t *routed,
                        int64_t begin,
                        int64_t tokens,
                        double *s) {
    int32_t n = r->num_experts;
#pragma omp parallel
    {
        double *z = moe_scratch_take(r->scratch, n, sizeof *z, "expert choice");
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            bool bad = (routed && !routed[begin + t]) ||
                       moe_scores_read_logits(logits, begin + t, n, z) & MOE_ROW_BAD;
            if (!bad) {
                moe_scores_fill(r, z, s + t * n, NULL);
            }
            for (int32_t i = 0; i < n; i++) {
                if (bad || z[i] == -INFINITY) {
                    s[t * n + i] = -1;
                }
            }
        }
        moe_scratch_give(r->scratch, z);
    }
}

void moe_expert_choice_takes(const moe_router *r,
                             moe_logits logits,
                             const uint8_t *routed,
                             int64_t begin,
                             int64_t end,
                             uint8_t *chosen) {
    int64_t tokens = end - begin, some = moe_device_routed(routed, begin, end);
    if (some == 0) {
        return;
    }
    int64_t count = tokens_of_expert(r, some);
    double *s = moe_scratch_take(r->scratch, tokens * r->num_experts, sizeof *s, "expert choice");
    fill_scores(r, logits, routed, begin, tokens, s);
#pragma omp parallel
    {
        double *column = moe_scratch_take(r->scratch, tokens, sizeof *column, "expert choice");
#pragma omp for schedule(static)
        for (int32_t i = 0; i < r->num_experts; i++) {
            take_tokens(s, tokens, r->num_experts, i, count, column, chosen);
        }
        moe_scratch_give(r->scratch, column);
    }
    moe_scratch_give(r->scratch, s);
}
