/* show_losses.c: the token's share of the losses, where it comes from, and the gradient that the
 * token gets. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "explain/show_internal.h"

/* --- shares --- */

static const moe_table share_table = {80, {{41, 11}, {59, 9}}};

static void print_share(const moe_screen *s, const moe_explained_layer *l, int loss) {
    const moe_explained_loss *x = &l->loss[loss];
    double tokens = (double)l->counted_tokens * x->layers;
    bool known = isfinite(x->share) && isfinite(x->batch);
    char share[2][16] = {"-", "-"};
    if (known) {
        snprintf(share[0], sizeof share[0], "%.3e", x->share);
    }
    if (known && x->alpha != 0) {
        snprintf(share[1], sizeof share[1], "%.3e", x->share * x->alpha);
    }
    moe_screen_row(s, &share_table, "  %-15s %11s %11s %10s %6s %8g %11s\n", moe_loss_titles[loss],
                   moe_format_number(x->batch, 6).s, share[0],
                   known ? moe_format_number(x->share * tokens, 4).s : "-",
                   known && x->batch != 0 ? moe_format_number(x->share * tokens / x->batch, 2).s
                                          : "-",
                   x->alpha, share[1]);
}

typedef struct term { /* a product f s' of an expert, or f' (sum of s') of a device */
    double f, score;
    int32_t id;
} term;

static int larger_first(const void *a, const void *b) {
    const term *x = a, *y = b;
    double one = x->f * x->score, other = y->f * y->score;
    if (one != other) {
        return one < other ? 1 : -1;
    }
    return x->id - y->id;
}

/* Prints the largest terms of `units` equal blocks of experts (devices, or experts themselves) and
 * the sum of all terms. */
static void print_terms(const moe_screen *s,
                        const moe_explained_layer *l,
                        int loss,
                        int32_t units,
                        const char *unit,
                        const char *formula) {
    int32_t size = l->num_experts / units, shown = units < 3 ? units : 3;
    const double *f = l->coefficient + (int64_t)loss * l->num_experts;
    char text[512] = "";
    size_t length = 0;
    double sum = 0;
    term *t = moe_alloc_zero(units, sizeof *t, "explanation");
    for (int32_t i = 0; i < l->num_experts; i++) {
        t[i / size].id = i / size;
        t[i / size].f = f[i];
        t[i / size].score += l->normalized[i];
        sum += f[i] * l->normalized[i];
    }
    qsort(t, (size_t)units, sizeof *t, larger_first);
    for (int32_t i = 0; i < shown; i++) {
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%s\tx\t%s\t(%s\t%d)",
                                   i ? " + " : "", moe_explain_show_number(t[i].f).s,
                                   moe_explain_show_number(t[i].score).s, unit, t[i].id);
    }
    moe_screen_wrapped(
        s, 4, "", "%s: %s = (%s%s) / %s = %s / %s", moe_loss_titles[loss], formula, text,
        shown < units ? " + ..." : "", moe_format_glued(moe_format_count(llround(l->divisor))).s,
        moe_explain_show_number(sum).s, moe_format_glued(moe_format_count(llround(l->divisor))).s);
    moe_free(t);
}

static bool is_shown(const moe_explained_layer *l, int loss) {
    return loss <= MOE_LOSS_Z || l->loss[loss].alpha != 0;
}

void moe_explain_show_losses(const moe_screen *s,
                             const moe_config *c,
                             const moe_explained_layer *l) {
    char of[40] = "";
    fputc('\n', s->out);
    if (c->balance.global_batch == MOE_GLOBAL_STEP) {
        snprintf(of, sizeof of, ", on the mean over %d micro-batches", c->train.accumulate);
    }
    moe_screen_wrapped(s, 2, "",
                       "its share of the losses (scope %s): the shares of all %s counted tokens "
                       "add up to the batch's value%s",
                       moe_config_enum_name(MOE_KEY(balance, scope), c->balance.scope),
                       moe_format_glued(moe_format_count(l->counted_tokens)).s, of);
    moe_screen_row(s, &share_table, "  %-15s %11s %11s %10s %6s %8s %11s\n", "", "batch", "share",
                   "share x T", "ratio", "alpha", "alpha share");
    for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
        if (is_shown(l, loss)) {
            print_share(s, l, loss);
        }
    }
    const enum moe_loss form = moe_balance_form(&c->balance);
    if (l->loss[form].layers > 1) {
        moe_screen_wrapped(s, 4, "",
                           "%s is of all %d layers together: there the shares of the tokens "
                           "in all layers add up, and T counts them all",
                           moe_loss_titles[form], l->loss[form].layers);
    }
    if (!l->counted) {
        return;
    }
    bool divided = !moe_config_scores_sum_to_one(c);
    moe_screen_wrapped(s, 2, "", "where they come from, s' = %s and f counting the %s",
                       divided ? "s / sum of the token's s" : "s",
                       c->balance.scope == MOE_SCOPE_GLOBAL   ? "batch"
                       : c->balance.scope == MOE_SCOPE_DEVICE ? "device's tokens"
                                                              : "sequence");
    print_terms(s, l, MOE_LOSS_EXPERT, l->num_experts, "expert", "sum of f s' / T");
    /* Elsewhere than in blocks an expert's coefficient is that of its replicas' devices together.
     */
    const bool blocks = moe_config_in_blocks(c);
    const int32_t units = blocks ? c->cluster.devices : l->num_experts;
    const char *unit = blocks ? "device" : "expert";
    print_terms(s, l, MOE_LOSS_DEVICE, units, unit,
                blocks ? "sum of f' s' / T, s' by device" : "sum of f' s' / T");
    print_terms(s, l, MOE_LOSS_COMM, units, unit, "sum of f'' s' / T");
    if (l->has_logits) {
        moe_screen_wrapped(s, 4, "", "z: lse^2 / T, lse = log of the sum of exp(z) = %s",
                           moe_explain_show_number(l->lse).s);
    }
    for (int loss = MOE_LOSS_Z + 1; loss < MOE_NUM_LOSSES; loss++) {
        if (is_shown(l, loss) && isnan(l->loss[loss].share)) {
            moe_screen_wrapped(
                s, 4, "",
                "%s: a variation over experts, not a sum over tokens: a token has no share",
                moe_loss_titles[loss]);
        }
    }
}

/* --- gradients --- */

enum { MOST_ROWS = 12, OTHERS = 2, MOST_COLUMNS = 4 };

enum { OTHER_LOSSES = -1 };

/* Each loss with a coefficient gets a column as long as there are columns; where they do not
 * suffice, the last one is for all other losses. Returns how many columns there are. */
static int columns_of(const moe_explained_layer *l, int column[MOST_COLUMNS]) {
    int count = 0, most = l->has_task ? MOST_COLUMNS - 1 : MOST_COLUMNS;
    for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
        if (l->loss[loss].alpha == 0) {
            continue;
        }
        if (count < most) {
            column[count++] = loss;
        } else {
            column[most - 1] = OTHER_LOSSES;
        }
    }
    return count;
}

static double in_column(const moe_explained_layer *l,
                        const int *column,
                        int i,
                        int columns,
                        int32_t expert) {
    if (column[i] != OTHER_LOSSES) {
        return l->gradient[(int64_t)column[i] * l->num_experts + expert];
    }
    double sum = 0;
    for (int loss = 0; loss < MOE_NUM_LOSSES; loss++) {
        bool shown = false;
        for (int j = 0; j < columns; j++) {
            shown |= column[j] == loss;
        }
        if (!shown) {
            sum += l->gradient[(int64_t)loss * l->num_experts + expert];
        }
    }
    return sum;
}

/* The power of 1000 that brings the largest of the numbers shown to 1 .. 1000, and its name. */
static double scale_of(const moe_explained_layer *l,
                       const int32_t *expert,
                       int32_t count,
                       moe_formatted *name) {
    double most = 0, scale = 1;
    int power = 0;
    for (int32_t i = 0; i < count; i++) {
        most = fmax(most, fabs(l->has_task ? l->total_gradient[expert[i]]
                                           : l->balance_gradient[expert[i]]));
    }
    for (; most > 0 && most * scale < 1 && power < 15; power += 3) {
        scale *= 1e3;
    }
    snprintf(name->s, sizeof name->s, "1e%d", power);
    return scale;
}

/* The table of the gradients. A narrow terminal does without the columns of the losses. */
static moe_table gradient_table(const moe_explained_layer *l, int columns) {
    moe_table t = {.width = 8 + 10 * (columns + (l->has_task ? 3 : 1)) + 8};
    for (int i = 0; i < columns; i++) {
        t.least[i].at = 8 + 10 * i;
        t.least[i].width = 10;
    }
    return t;
}

static void print_gradient(const moe_screen *s,
                           const moe_explained_layer *l,
                           const moe_table *table,
                           const int *column,
                           int columns,
                           int32_t expert,
                           double scale) {
    char line[128];
    int length = snprintf(line, sizeof line, "  %6d", expert);
    for (int i = 0; i < columns; i++) {
        length +=
            snprintf(line + length, sizeof line - (size_t)length, " %9s",
                     moe_explain_show_number(scale * in_column(l, column, i, columns, expert)).s);
    }
    length += snprintf(line + length, sizeof line - (size_t)length, " %9s",
                       moe_explain_show_number(scale * l->balance_gradient[expert]).s);
    if (l->has_task) {
        snprintf(line + length, sizeof line - (size_t)length, " %9s %9s",
                 moe_explain_show_number(scale * l->task_gradient[expert]).s,
                 moe_explain_show_number(scale * l->total_gradient[expert]).s);
    }
    moe_screen_row(s, table, "%s%s\n", line,
                   moe_explain_show_choice_of(l, expert) >= 0 ? "  chosen" : "");
}

static void print_table(const moe_screen *s,
                        const moe_explained_layer *l,
                        const int32_t *expert,
                        int32_t count,
                        double scale) {
    int column[MOST_COLUMNS], columns = columns_of(l, column);
    moe_table table = gradient_table(l, columns);
    char heads[64] = "";
    for (int i = 0, length = 0; i < columns; i++) {
        length += snprintf(heads + length, sizeof heads - (size_t)length, " %9.9s",
                           column[i] == OTHER_LOSSES ? "others"
                           : column[i] == MOE_LOSS_Z || column[i] == MOE_LOSS_COMM
                               ? moe_loss_names[column[i]]
                               : moe_loss_titles[column[i]]);
    }
    moe_screen_row(s, &table, "  %6s%s %9s%s\n", "expert", heads, "balance",
                   l->has_task ? "      task     total" : "");
    for (int32_t i = 0; i < count; i++) {
        print_gradient(s, l, &table, column, columns, expert[i], scale);
    }
    if (count < l->num_experts) {
        fprintf(s->out, "  and %d more experts\n", l->num_experts - count);
    }
}

static void print_task(const moe_screen *s,
                       const moe_explained_layer *l,
                       double scale,
                       const char *scale_name) {
    char text[1024] = "";
    size_t length = 0;
    for (int32_t k = 0; k < l->num_choices && length + 48 < sizeof text; k++) {
        length += (size_t)snprintf(
            text + length, sizeof text - length, "%s%s\t(expert\t%d)", k ? ", " : "",
            moe_explain_show_number(scale * l->choice[k].weight_gradient).s, l->choice[k].expert);
    }
    moe_screen_wrapped(s, 2, "",
                       "task, L being its loss: |dL/dy| = %s; through the weights dL/dg = <dL/dy, "
                       "FFN(u)> = %s; all x %s",
                       moe_explain_show_number(scale * l->gradient_norm).s, text, scale_name);
}

void moe_explain_show_gradients(const moe_screen *s,
                                const moe_config *c,
                                const moe_explained_layer *l) {
    int32_t most = l->num_choices + OTHERS < MOST_ROWS ? l->num_choices + OTHERS : MOST_ROWS;
    int column[MOST_COLUMNS];
    double left_out =
        l->has_task ? 0 : moe_balance_alpha_all_layers(&c->balance, moe_config_moe_layers(c));
    fputc('\n', s->out);
    if (left_out != 0) {
        moe_screen_wrapped(s, 2, "",
                           "%s of all layers together (alpha %g) is not in what follows: it "
                           "is known after the last layer only; training (run.mode = "
                           "train) shows it",
                           moe_loss_titles[moe_balance_form(&c->balance)], left_out);
    }
    if (!l->has_task && columns_of(l, column) == 0) {
        moe_screen_wrapped(s, 2, "",
                           "the gradient of its logits is 0: no %sbalance loss has a coefficient",
                           left_out != 0 ? "other " : "");
        return;
    }
    int32_t *expert = moe_alloc(most, sizeof *expert, "explanation"),
            count = moe_explain_show_top(l, most, expert);
    moe_formatted name;
    double scale = scale_of(l, expert, count, &name);
    moe_screen_wrapped(s, 2, "",
                       "the gradient of its logits, x %s, alpha included: where it is positive, a "
                       "step lowers the logit",
                       name.s);
    print_table(s, l, expert, count, scale);
    if (l->has_task) {
        print_task(s, l, scale, name.s);
    }
    moe_free(expert);
}
