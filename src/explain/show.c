/* show.c: the token itself, its scores as bars, and its groups; then the parts of the other files.
 */
#include "explain/show.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "explain/show_internal.h"
#include "output/chart.h"
#include "router/groups.h"
#include "router/scores.h"

enum { MOST_BARS = 16, OTHERS = 4 };

/* --- the token --- */

/* Prints the token in its text, with as much around it as the line holds. */
static void print_text(const moe_screen *s, const moe_explanation *e) {
    char byte[2 * MOE_EXPLAINED_BYTES + 1][5], own[5];
    int middle = MOE_EXPLAINED_BYTES;
    int begin = middle;
    int end = middle + 1;
    int left = s->width - (int)strlen("  text       \"[]\"");
    for (int i = 0; i <= 2 * middle; i++) {
        if (e->byte[i] >= 0) {
            moe_explanation_byte(e->byte[i], byte[i]);
        }
    }
    left -= moe_explanation_byte(e->byte[middle], own);
    for (int reach = 1; reach <= middle; reach++) { /* one byte on either side in turn */
        for (int side = -1; side <= 1; side += 2) {
            int at = middle + side * reach, length = e->byte[at] < 0 ? 0 : (int)strlen(byte[at]);
            bool next = side < 0 ? at == begin - 1 : at == end;
            if (!next || length == 0 || length > left) {
                continue;
            }
            left -= length;
            begin = side < 0 ? at : begin;
            end = side < 0 ? end : at + 1;
        }
    }
    fputs("  text       \"", s->out);
    for (int i = begin; i < middle; i++) {
        fputs(byte[i], s->out);
    }
    fprintf(s->out, "%s[%s]%s", moe_screen_paint(s, MOE_BOLD), own, moe_screen_paint(s, MOE_PLAIN));
    for (int i = middle + 1; i < end; i++) {
        fputs(byte[i], s->out);
    }
    fputs("\"\n", s->out);
}

static void print_token(const moe_screen *s, const moe_explanation *e) {
    moe_screen_heading(s, "Token %s of %s, step %lld", moe_format_count(e->token).s,
                       moe_format_count(e->num_tokens).s, (long long)e->step);
    if (e->has_text) {
        print_text(s, e);
    }
    moe_screen_wrapped(s, 13, "  home", "device %d (rank %d); sequence %s, place %s in it",
                       e->device, e->rank, moe_format_count(e->sequence).s,
                       moe_format_count(e->position).s);
    if (e->micro_batches > 1) {
        fprintf(s->out, "  the last of the %lld micro-batches of the step\n",
                (long long)e->micro_batches);
    }
    if (!e->layer[0].counted) {
        moe_screen_wrapped(s, 2, "",
                           e->drops_padding
                               ? "padding that is dropped: it is not routed, and y is 0"
                               : "padding: it is sent like any other, but no loss counts it");
    }
}

/* --- scores --- */

static bool has_added(const moe_explained_layer *l) {
    for (int32_t i = 0; i < l->num_experts; i++) {
        if (l->added[i] != 0) {
            return true;
        }
    }
    return false;
}

enum { SCORES_WIDTH = 2 + 6 + 5 + 9 + 9, MARK_WIDTH = 13, ADDED_WIDTH = 18, LEAST_BAR = 10 };

/* Which columns are shown: with a bias, a narrow screen has neither logit nor bias. */
typedef struct bar_columns {
    bool logit, added;
    int bar;
} bar_columns;

static bar_columns columns_of(const moe_screen *s, bool added) {
    int left = s->width - SCORES_WIDTH - 1 - MARK_WIDTH - (added ? ADDED_WIDTH : 0);
    bool narrow = added && left < LEAST_BAR;
    return (bar_columns){!narrow, added, left + (narrow ? 18 : 0)};
}

static void print_bar_line(const moe_screen *s,
                           const moe_config *c,
                           const moe_explained_layer *l,
                           int32_t expert,
                           double top,
                           bar_columns columns) {
    int32_t choice = moe_explain_show_choice_of(l, expert), n = l->num_experts;
    bool refused = l->num_groups && l->admitted[expert / (n / l->num_groups)] == 0;
    const char *mark = choice >= 0 ? (l->choice[choice].server < 0 ? " dropped" : " chosen")
                       : refused   ? " not admitted"
                                   : "";
    fprintf(s->out, "%s  %6d %4d",
            moe_screen_paint(s, choice >= 0 ? MOE_BOLD
                                : refused   ? MOE_DIM
                                            : MOE_PLAIN),
            expert, expert / (n / c->cluster.devices));
    if (columns.logit) {
        fprintf(s->out, " %8s", l->has_logits ? moe_explain_show_number(l->logit[expert]).s : "-");
    }
    fprintf(s->out, " %8s", moe_explain_show_number(l->score[expert]).s);
    if (columns.added && columns.logit) {
        fprintf(s->out, " %8s", moe_explain_show_number(l->added[expert]).s);
    }
    if (columns.added) {
        fprintf(s->out, " %8s", moe_explain_show_number(l->selection[expert]).s);
    }
    fputc(' ', s->out);
    moe_chart_bar(s, top > 0 ? l->score[expert] / top : 0, columns.bar);
    fprintf(s->out, "%s%s\n", mark, moe_screen_paint(s, MOE_PLAIN));
}

static void print_scores(const moe_screen *s, const moe_config *c, const moe_explained_layer *l) {
    int32_t most = l->num_choices + OTHERS > MOST_BARS ? l->num_choices + OTHERS : MOST_BARS;
    int32_t *expert = moe_alloc(most, sizeof *expert, "explanation"),
            count = moe_explain_show_top(l, most, expert);
    bool added = l->has_logits && has_added(l);
    double top = 0;
    for (int32_t i = 0; i < l->num_experts; i++) {
        top = fmax(top, l->score[i]);
    }
    if (l->has_logits) {
        moe_screen_wrapped(
            s, 2, "", "scores: %s%s%s", moe_score_functions[c->router.score_func].formula,
            added ? "; ranked by " : "",
            !added                                    ? ""
            : c->router.method == MOE_METHOD_SINKHORN ? "z + log of sinkhorn's factor"
                                                      : "s + bias; the weights are made from s");
    }
    bool sinkhorn = c->router.method == MOE_METHOD_SINKHORN;
    bar_columns columns = columns_of(s, added);
    fprintf(s->out, "  %6s %4s%s %8s", "expert", "dev", columns.logit ? "  logit z" : "",
            "score s");
    if (added && columns.logit) {
        fprintf(s->out, " %8s", sinkhorn ? "log f" : "bias");
    }
    fprintf(s->out, added ? " %8s\n" : "%s\n", !added ? "" : sinkhorn ? "z + logf" : "s + b");
    for (int32_t i = 0; i < count; i++) {
        print_bar_line(s, c, l, expert[i], top, columns);
    }
    if (count < l->num_experts) {
        fprintf(s->out, "  and %d more experts with less\n", l->num_experts - count);
    }
    moe_free(expert);
}

/* --- groups --- */

static void print_groups(const moe_screen *s, const moe_config *c, const moe_explained_layer *l) {
    bool devices = moe_config_groups_are_devices(c);
    double top = -INFINITY, low = INFINITY;
    if (!l->num_groups) {
        return;
    }
    fputc('\n', s->out);
    moe_screen_wrapped(s, 2, "", "%s: %s; the best %d of %d are admitted%s",
                       devices ? "device limit" : "group limit",
                       moe_group_limits[c->router.group_limit].rule, c->router.topk_group,
                       l->num_groups, devices ? " (a group is a device)" : "");
    for (int32_t g = 0; g < l->num_groups; g++) {
        if (!isfinite(l->group_score[g])) {
            continue;
        }
        top = fmax(top, l->group_score[g]);
        low = fmin(low, l->group_score[g]);
    }
    low = fmin(low, 0);
    for (int32_t g = 0; g < l->num_groups && l->num_groups <= 32; g++) {
        bool in = l->admitted[g] == 1;
        fprintf(s->out, "%s  %6s %4d %17s ", moe_screen_paint(s, in ? MOE_BOLD : MOE_DIM),
                devices ? "device" : "group", g, moe_explain_show_number(l->group_score[g]).s);
        moe_chart_bar(s, top > low ? (l->group_score[g] - low) / (top - low) : 0,
                      s->width - 2 - 6 - 5 - 18 - 1 - 13);
        fprintf(s->out, " %s%s\n", in ? "admitted" : "", moe_screen_paint(s, MOE_PLAIN));
    }
    if (l->num_groups > 32) {
        char list[1024] = "";
        size_t length = 0;
        for (int32_t g = 0; g < l->num_groups && length + 48 < sizeof list; g++) {
            if (l->admitted[g] == 1) {
                length += (size_t)snprintf(list + length, sizeof list - length, "%s%d\t(%s)",
                                           length ? ", " : "", g,
                                           moe_explain_show_number(l->group_score[g]).s);
            }
        }
        moe_screen_wrapped(s, 2, "", "admitted: %s", list);
    }
}

/* --- together --- */

static void print_layer(const moe_screen *s,
                        const moe_config *c,
                        const moe_explanation *e,
                        int32_t index) {
    const moe_explained_layer *l = &e->layer[index];
    if (e->num_layers > 1) {
        moe_screen_heading(s, "Layer %d", index);
    }
    if (l->bad) {
        moe_screen_wrapped(s, 2, "", "its logits hold NaN or Inf: no expert is chosen");
        return;
    }
    if (e->num_layers == 1) {
        fputc('\n', s->out);
    }
    if (l->has_scores) {
        print_scores(s, c, l);
    } else {
        moe_screen_wrapped(s, 2, "",
                           "the routing was recorded without scores (data.scores): scores, groups, "
                           "shares of the losses and gradients "
                           "cannot be shown, for all of them are made from scores");
    }
    if (l->has_logits) {
        print_groups(s, c, l);
    }
    moe_explain_show_choices(s, c, l);
    moe_explain_show_rows(s, c, e, l);
    moe_explain_show_outputs(s, c, l);
    if (l->has_scores) {
        moe_explain_show_losses(s, c, l);
    }
    if (l->has_logits) {
        moe_explain_show_gradients(s, c, l);
    }
}

void moe_explain_show(const moe_screen *s, const moe_config *c, const moe_explanation *e) {
    if (s->quiet || e->seen < e->num_layers) {
        return;
    }
    print_token(s, e);
    for (int32_t i = 0; i < e->num_layers; i++) {
        print_layer(s, c, e, i);
    }
    fputc('\n', s->out);
    moe_screen_wrapped(s, 2, "",
                       "all of it, for every expert: explain.json in the folder of the results, "
                       "and in its report");
    fflush(s->out);
}
