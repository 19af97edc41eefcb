/* terminal_training_steps.c: the table by step of a training run. */
#include <math.h>

#include "output/format.h"
#include "output/terminal_internal.h"
#include "output/training_history.h"

enum {
    STEP,
    TASK,
    BITS,
    VALIDATION,
    EXPERT,
    DEVICE,
    COMM,
    BALANCE,
    EXPERT_MAXVIO,
    DEVICE_MAXVIO,
    SENT,
    NORM,
    TIME,
    NUM_COLUMNS
};
static const struct {
    const char *top, *bottom;
    int width;
} columns[NUM_COLUMNS] = {
    [STEP] = {"step", "", 6},
    [TASK] = {"task", "loss", 7},
    [BITS] = {"bits/", "byte", 6},
    [VALIDATION] = {"valid.", "loss", 7},
    [EXPERT] = {"expert", "raw", 6},
    [DEVICE] = {"device", "raw", 6},
    [COMM] = {"comm", "raw", 6},
    [BALANCE] = {"balance", "x alpha", 8},
    [EXPERT_MAXVIO] = {"expert", "MaxVio", 6},
    [DEVICE_MAXVIO] = {"device", "MaxVio", 6},
    [SENT] = {"sent to", "others", 9},
    [NORM] = {"grad.", "norm", 7},
    [TIME] = {"", "time", 7},
};

/* The columns that a narrow terminal does without, the least important one first. */
static const int least[] = {BITS, NORM, BALANCE, COMM, DEVICE, EXPERT};

static bool is_shown(const moe_screen *s, const moe_config *c, int column) {
    int width = -1;
    for (int i = 0; i < NUM_COLUMNS; i++) {
        width += i == BITS && !moe_terminal_is_text(c) ? 0 : columns[i].width + 1;
    }
    if (column == BITS && !moe_terminal_is_text(c)) {
        return false;
    }
    for (size_t i = moe_terminal_is_text(c) ? 0 : 1;
         i < sizeof least / sizeof least[0] && width > s->columns; i++) {
        if (least[i] == column) {
            return false;
        }
        width -= columns[least[i]].width + 1;
    }
    return true;
}

static void print_cell(const moe_screen *s, const moe_config *c, int column, const char *text) {
    if (!is_shown(s, c, column)) {
        return;
    }
    fprintf(s->out, "%s%*s%s", column == 0 ? "" : " ", columns[column].width, text,
            column + 1 == NUM_COLUMNS ? "\n" : "");
}

void moe_terminal_training_heads(const moe_screen *s, const moe_config *c) {
    fprintf(s->out, "\n%s", moe_screen_paint(s, MOE_BOLD));
    for (int i = 0; i < NUM_COLUMNS; i++) {
        print_cell(s, c, i, columns[i].top);
    }
    fputs(moe_screen_paint(s, MOE_PLAIN), s->out);
    for (int i = 0; i < NUM_COLUMNS; i++) {
        print_cell(s, c, i, i == TASK && moe_terminal_is_text(c) ? "nats" : columns[i].bottom);
    }
}

void moe_terminal_training_row(moe_screen *s, const moe_config *c, const moe_step_metrics *m) {
    double f[MOE_NUM_FIGURES];
    moe_formatted cell[NUM_COLUMNS];
    moe_training_history_figures(m, f);
    snprintf(cell[STEP].s, sizeof cell[STEP].s, "%lld", (long long)m->step);
    cell[TASK] = moe_format_short(m->task_loss, 4);
    cell[BITS] = moe_format_short(m->task_loss / M_LN2, 3);
    cell[VALIDATION] = moe_format_short(m->validation_loss, 4);
    cell[EXPERT] = moe_format_short(f[MOE_FIGURE_RAW + MOE_LOSS_EXPERT], 3);
    cell[DEVICE] = moe_format_short(f[MOE_FIGURE_RAW + MOE_LOSS_DEVICE], 3);
    cell[COMM] = moe_format_short(f[MOE_FIGURE_RAW + MOE_LOSS_COMM], 3);
    cell[BALANCE] = moe_format_short(f[MOE_FIGURE_BALANCE_LOSS], 5);
    cell[EXPERT_MAXVIO] = moe_format_short(f[MOE_FIGURE_EXPERT_MAXVIO], 3);
    cell[DEVICE_MAXVIO] = moe_format_short(f[MOE_FIGURE_DEVICE_MAXVIO], 3);
    cell[SENT] = moe_format_bytes((int64_t)f[MOE_FIGURE_SENT_BYTES]);
    cell[NORM] = moe_format_short(m->gradient_norm, 3);
    cell[TIME] = moe_format_seconds(m->seconds);
    if (isnan(m->validation_loss)) {
        cell[VALIDATION].s[0] = '\0';
    }
    for (int i = 0; i < NUM_COLUMNS; i++) {
        print_cell(s, c, i, cell[i].s);
    }
}
