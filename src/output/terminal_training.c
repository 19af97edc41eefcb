/* report_training.c: training at the beginning and in the middle of a run: what is learned and how,
 * and the table by step. */
#include <math.h>

#include "output/terminal.h"
#include "output/terminal_internal.h"

enum { LABEL = 11 };

/* --- header
 * --------------------------------------------------------------------------------------------------------------------------------
 */

static bool is_text(const moe_config *c) {
    return c->data.source == MOE_SOURCE_TEXT;
}

static void print_task(const moe_screen *s, const moe_config *c, const moe_training_facts *f) {
    char entropy[64] = "";
    if (f->unigram_entropy > 0) {
        snprintf(entropy, sizeof entropy, "; unigram entropy %.3f nats (%.3f bits)",
                 f->unigram_entropy, f->unigram_entropy / M_LN2);
    }
    if (is_text(c)) {
        moe_screen_wrapped(
            s, LABEL, "task",
            "next byte of a text: %s bytes in %d domain%s, context %d, %g\t%% held out%s",
            moe_format_count(f->text_bytes).s, f->domains, f->domains == 1 ? "" : "s",
            c->train.context, 100 * c->train.validation_share, entropy);
    } else {
        moe_screen_wrapped(s, LABEL, "task",
                           "regression: each of %d synthetic topics has its own linear target; "
                           "loss = mean squared error",
                           c->data.num_topics);
    }
}

static void print_optimizer(const moe_screen *s, const moe_config *c) {
    char clip[48] = "", accumulate[64] = "";
    if (c->train.clip_norm > 0) {
        snprintf(clip, sizeof clip, ", gradient norm clipped at %g", c->train.clip_norm);
    }
    if (c->train.accumulate > 1) {
        snprintf(accumulate, sizeof accumulate, ", %d micro-batches a step", c->train.accumulate);
    }
    moe_screen_wrapped(
        s, LABEL, "training",
        "%s steps of %s, learning rate %g, warm-up %s steps, then %s, weight decay %g%s%s",
        moe_format_count(c->run.steps).s,
        moe_config_enum_name(MOE_KEY(train, optimizer), c->train.optimizer), c->train.learning_rate,
        moe_format_count(c->train.warmup_steps).s,
        moe_config_enum_name(MOE_KEY(train, schedule), c->train.schedule), c->train.weight_decay,
        clip, accumulate);
}

static void print_memory(const moe_screen *s, const moe_config *c, const moe_memory *m) {
    const struct {
        const char *what;
        int64_t bytes;
    } part[] = {{"weights", m->weights},           {"gradients", m->gradients},
                {"optimiser state", m->optimizer}, {"activations", m->activations},
                {"exchange", m->exchange},         {"the rest", m->statistics + m->input}};
    char text[512] = "";
    size_t length = 0;
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        length +=
            (size_t)snprintf(text + length, sizeof text - length, "%s%s %s", i ? ", " : "",
                             part[i].what, moe_format_glued(moe_format_bytes(part[i].bytes)).s);
    }
    moe_screen_wrapped(s, LABEL, "", "on each rank: %s%s", text,
                       c->train.recompute ? "; the experts' hidden vectors are computed again"
                                          : "");
}

void moe_terminal_training(const moe_screen *s,
                           const moe_config *c,
                           const moe_training_facts *facts,
                           const moe_memory *memory) {
    if (s->quiet) {
        return;
    }
    print_task(s, c, facts);
    print_optimizer(s, c);
    moe_screen_wrapped(s, LABEL, "parameters",
                       "%s: %s of the experts (each on one device), %s replicated on every device",
                       moe_format_count(facts->expert_parameters + facts->replicated_parameters).s,
                       moe_format_count(facts->expert_parameters).s,
                       moe_format_count(facts->replicated_parameters).s);
    print_memory(s, c, memory);
    fflush(s->out);
}

/* --- table by step
 * -------------------------------------------------------------------------------------------------------------------------
 */

moe_formatted moe_terminal_short(double value, int decimals) {
    moe_formatted text = moe_format_number(value, decimals);
    if (fabs(value) >= 100) {
        text = moe_format_number(value, decimals > 2 ? decimals - 2 : 0);
    }
    if (fabs(value) >= 1e3) {
        text = moe_format_number(value, 0);
    }
    if (isfinite(value) && fabs(value) >= 1e6) {
        snprintf(text.s, sizeof text.s, "%.1e", value);
    }
    return text;
}

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

/* Columns that a narrow terminal does without, least important first. */
static const int least[] = {BITS, NORM, BALANCE, COMM, DEVICE, EXPERT};

static bool is_shown(const moe_screen *s, const moe_config *c, int column) {
    int width = -1;
    for (int i = 0; i < NUM_COLUMNS; i++) {
        width += i == BITS && !is_text(c) ? 0 : columns[i].width + 1;
    }
    if (column == BITS && !is_text(c)) {
        return false;
    }
    for (size_t i = is_text(c) ? 0 : 1; i < sizeof least / sizeof least[0] && width > s->columns;
         i++) {
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
        print_cell(s, c, i, i == TASK && is_text(c) ? "nats" : columns[i].bottom);
    }
}

void moe_terminal_training_row(moe_screen *s, const moe_config *c, const moe_step_metrics *r) {
    double f[MOE_NUM_FIGURES];
    moe_formatted cell[NUM_COLUMNS];
    moe_training_history_figures(r, f);
    snprintf(cell[STEP].s, sizeof cell[STEP].s, "%lld", (long long)r->step);
    cell[TASK] = moe_terminal_short(r->task_loss, 4);
    cell[BITS] = moe_terminal_short(r->task_loss / M_LN2, 3);
    cell[VALIDATION] = moe_terminal_short(s->validation, 4);
    cell[EXPERT] = moe_terminal_short(f[MOE_FIGURE_RAW + MOE_LOSS_EXPERT], 3);
    cell[DEVICE] = moe_terminal_short(f[MOE_FIGURE_RAW + MOE_LOSS_DEVICE], 3);
    cell[COMM] = moe_terminal_short(f[MOE_FIGURE_RAW + MOE_LOSS_COMM], 3);
    cell[BALANCE] = moe_terminal_short(f[MOE_FIGURE_BALANCE_LOSS], 5);
    cell[EXPERT_MAXVIO] = moe_terminal_short(f[MOE_FIGURE_EXPERT_MAXVIO], 3);
    cell[DEVICE_MAXVIO] = moe_terminal_short(f[MOE_FIGURE_DEVICE_MAXVIO], 3);
    cell[SENT] = moe_format_bytes((int64_t)f[MOE_FIGURE_SENT_BYTES]);
    cell[NORM] = moe_terminal_short(r->gradient_norm, 3);
    cell[TIME] = moe_format_seconds(r->seconds);
    if (isnan(s->validation)) {
        cell[VALIDATION].s[0] = '\0';
    }
    for (int i = 0; i < NUM_COLUMNS; i++) {
        print_cell(s, c, i, cell[i].s);
    }
    s->validation = NAN;
}
