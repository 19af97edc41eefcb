/* terminal_outcome.c: how training ended: quality, balance and traffic of the first step beside the
 * mean of the last ones, and a sentence on whether the loss fell. Nothing here hides a loss that
 * rose. */
#include <math.h>

#include "output/terminal.h"
#include "output/terminal_internal.h"

/* A narrow terminal does without the note, then without the group. */
static const moe_table outcome_table = {82, {{67, 15}, {2, 9}}};

static void print_line(const moe_screen *s,
                       const char *group,
                       const char *what,
                       const char *first,
                       const char *last,
                       const char *note) {
    moe_screen_row(s, &outcome_table, "  %-8s %-32s %10s %12s%s%s\n", group, what, first, last,
                   note[0] ? "  " : "", note);
}

static void print_number(const moe_screen *s,
                         const char *group,
                         const char *what,
                         const moe_training_history *h,
                         int figure,
                         double unit,
                         int decimals) {
    moe_formatted first = moe_format_short(moe_training_history_first(h, figure) / unit, decimals),
                  last = moe_format_short(moe_training_history_mean(h, figure) / unit, decimals);
    print_line(s, group, what, first.s, last.s, "");
}

static void print_bytes(const moe_screen *s,
                        const char *group,
                        const char *what,
                        const moe_training_history *h,
                        int figure) {
    moe_formatted first = moe_format_bytes(llround(moe_training_history_first(h, figure))),
                  last = moe_format_bytes(llround(moe_training_history_mean(h, figure)));
    print_line(s, group, what, first.s, last.s, "");
}

/* The first and the last validation, and behind them the best one where that is another. */
static void print_validation(const moe_screen *s, const moe_config *c, const moe_validations *v) {
    char best[48] = "";
    if (v->count == 0) {
        return;
    }
    if (v->best_step < v->last_step) {
        snprintf(best, sizeof best, "best %s", moe_format_short(v->best, 4).s);
    }
    print_line(s, "",
               moe_terminal_is_text(c) ? "validation (first, last), nats"
                                       : "validation loss (first, last)",
               moe_format_short(v->first, 4).s, moe_format_short(v->last, 4).s, best);
}

static void print_quality(const moe_screen *s, const moe_config *c, const moe_training_history *h) {
    print_number(s, "quality", moe_terminal_is_text(c) ? "lm loss, nats" : "task loss", h,
                 MOE_FIGURE_TASK_LOSS, 1, 4);
    if (moe_terminal_is_text(c)) {
        print_number(s, "", "bits per byte", h, MOE_FIGURE_TASK_LOSS, M_LN2, 4);
    }
    print_validation(s, c, &h->validation);
    print_number(s, "", "gradient norm", h, MOE_FIGURE_GRADIENT_NORM, 1, 4);
}

static void print_balance(const moe_screen *s, const moe_training_history *h) {
    print_number(s, "balance", "MaxVio of the experts' load", h, MOE_FIGURE_EXPERT_MAXVIO, 1, 3);
    print_number(s, "", "MaxVio of the devices' load", h, MOE_FIGURE_DEVICE_MAXVIO, 1, 3);
    print_number(s, "", "MaxVio of the rows received", h, MOE_FIGURE_RECEIVED_MAXVIO, 1, 3);
    print_number(s, "", "expert loss, raw", h, MOE_FIGURE_RAW + MOE_LOSS_EXPERT, 1, 4);
    print_number(s, "", "device loss, raw", h, MOE_FIGURE_RAW + MOE_LOSS_DEVICE, 1, 4);
    print_number(s, "", "communication loss, raw", h, MOE_FIGURE_RAW + MOE_LOSS_COMM, 1, 4);
    print_number(s, "", "balance losses x alpha", h, MOE_FIGURE_BALANCE_LOSS, 1, 6);
}

/* Prints "lm loss 5.55 -> 1.61 nats (2.32 bits per byte); unigram entropy 3.20; expert MaxVio 2.90
 * -> 0.71; ...". */
static void print_sentence(const moe_screen *s,
                           const moe_config *c,
                           const moe_training_history *h,
                           const moe_training_facts *f) {
    char quality[160], bits[64] = "", entropy[48] = "";
    double first = moe_training_history_first(h, MOE_FIGURE_TASK_LOSS),
           last = moe_training_history_mean(h, MOE_FIGURE_TASK_LOSS);
    snprintf(quality, sizeof quality, "%s %s -> %s",
             moe_terminal_is_text(c) ? "lm loss" : "task loss", moe_format_short(first, 3).s,
             moe_format_short(last, 3).s);
    if (f->unigram_entropy > 0) {
        snprintf(entropy, sizeof entropy, "; unigram entropy %.3f", f->unigram_entropy);
    }
    if (moe_terminal_is_text(c)) {
        snprintf(bits, sizeof bits, " nats (%s bits per byte)",
                 moe_format_short(last / M_LN2, 3).s);
    }
    moe_screen_wrapped(
        s, 2, "",
        "%s%s%s; expert MaxVio %s -> %s; device MaxVio %s -> %s; dispatch to others %s -> %s",
        quality, bits, entropy,
        moe_format_short(moe_training_history_first(h, MOE_FIGURE_EXPERT_MAXVIO), 2).s,
        moe_format_short(moe_training_history_mean(h, MOE_FIGURE_EXPERT_MAXVIO), 2).s,
        moe_format_short(moe_training_history_first(h, MOE_FIGURE_DEVICE_MAXVIO), 2).s,
        moe_format_short(moe_training_history_mean(h, MOE_FIGURE_DEVICE_MAXVIO), 2).s,
        moe_format_glued(
            moe_format_bytes(llround(moe_training_history_first(h, MOE_FIGURE_DISPATCH_BYTES))))
            .s,
        moe_format_glued(
            moe_format_bytes(llround(moe_training_history_mean(h, MOE_FIGURE_DISPATCH_BYTES))))
            .s);
}

static void print_verdict(const moe_screen *s,
                          const moe_config *c,
                          const moe_training_history *h,
                          const moe_training_facts *f) {
    char text[320];
    double lr = c->train.learning_rate;
    double first = moe_training_history_first(h, MOE_FIGURE_TASK_LOSS);
    double last = moe_training_history_mean(h, MOE_FIGURE_TASK_LOSS);
    bool rose = moe_training_history_rose(h), diverged = moe_training_history_diverged(h, f);
    if (!isfinite(last)) {
        snprintf(
            text, sizeof text,
            "the loss is no finite number any more: train.learning_rate\t=\t%g may be too high",
            lr);
    } else if (rose) {
        snprintf(text, sizeof text,
                 "the loss rose from %s to %s: train.learning_rate\t=\t%g may be too high",
                 moe_format_short(first, 4).s, moe_format_short(last, 4).s, lr);
    } else if (diverged) {
        snprintf(text, sizeof text,
                 "the loss was at %s nats and is above the text's unigram entropy, %.4f: "
                 "train.learning_rate\t=\t%g may be too high",
                 moe_format_short(h->lowest, 4).s, f->unigram_entropy, lr);
    } else if (moe_training_history_above_unigram(h, f)) {
        snprintf(text, sizeof text,
                 "the loss is still above the text's unigram entropy, %.4f: run.steps = %lld may "
                 "be too few",
                 f->unigram_entropy, (long long)c->run.steps);
    } else {
        return;
    }
    fputs(moe_screen_paint(s, rose || diverged ? MOE_RED : MOE_YELLOW), s->out);
    moe_screen_wrapped(s, 2, "", "%s", text);
    fputs(moe_screen_paint(s, MOE_PLAIN), s->out);
}

void moe_terminal_outcome(const moe_screen *s,
                          const moe_config *c,
                          const moe_training_history *h,
                          const moe_training_facts *facts) {
    char last[32];
    int64_t window = moe_training_history_window(h);
    if (s->quiet || window == 0) {
        return;
    }
    moe_terminal_erase_line(s);
    moe_screen_heading(s, "Training: %lld step%s, the first beside the mean of the last %lld",
                       (long long)h->steps, h->steps == 1 ? "" : "s", (long long)window);
    snprintf(last, sizeof last, "mean last %lld", (long long)window);
    print_line(s, "", "", "first", last, "");
    print_quality(s, c, h);
    print_balance(s, h);
    print_bytes(s, "traffic", "dispatch to other devices", h, MOE_FIGURE_DISPATCH_BYTES);
    print_bytes(s, "", "forward and backward", h, MOE_FIGURE_SENT_BYTES);
    print_sentence(s, c, h, facts);
    print_verdict(s, c, h, facts);
    fflush(s->out);
}
