/* terminal_steps.c: the middle of a run on the screen: the table by step, and the progress. */
#include <math.h>

#include "measure/figures.h"
#include "output/format.h"
#include "output/terminal.h"
#include "output/terminal_internal.h"

/* A narrow terminal does without the devices per token, then without the losses of communication
 * and devices. */
static const moe_table step_table = {80, {{43, 8}, {24, 9}, {15, 9}}};

/* Without losses the table says how even each step was instead: the mean over layers, and the
 * worst layer. */
static const moe_table load_table = {72, {{43, 9}}};

static void print_load_heads(const moe_screen *s) {
    fprintf(s->out, "\n%s", moe_screen_paint(s, MOE_BOLD));
    moe_screen_row(s, &load_table, "%6s %9s %12s %9s %9s %9s %10s", "step", "devices", "sent to",
                   "device", "worst", "expert", "time");
    fprintf(s->out, "%s\n", moe_screen_paint(s, MOE_PLAIN));
    moe_screen_row(s, &load_table, "%6s %9s %12s %9s %9s %9s\n", "", "a token", "others",
                   "max/mean", "layer", "max/mean");
}

static void print_step_heads(const moe_screen *s, const moe_step_metrics *first) {
    if (!moe_terminal_has_losses(first)) {
        print_load_heads(s);
        return;
    }
    fprintf(s->out, "\n%s", moe_screen_paint(s, MOE_BOLD));
    moe_screen_row(s, &step_table, "%6s %8s %8s %8s %9s %7s %10s %8s %8s", "step", "expert",
                   "device", "comm", "loss", "devices", "sent to", "device", "time");
    fprintf(s->out, "%s\n", moe_screen_paint(s, MOE_PLAIN));
    moe_screen_row(s, &step_table, "%6s %8s %8s %8s %9s %7s %10s %8s\n", "", "raw", "raw", "raw",
                   "x alpha", "a token", "others", "max/mean");
}

static double worst_layer(const moe_step_metrics *m) {
    double worst = 0;
    for (int32_t l = 0; l < m->num_layers; l++) {
        worst = fmax(worst, moe_imbalance_max_over_mean(m->layer[l].counts_per_device, m->devices));
    }
    return worst;
}

static void print_step(const moe_screen *s, const moe_step_metrics *m) {
    moe_figures f = moe_figures_of(m);
    int64_t sent = f.volume[MOE_DISPATCH].remote_bytes + f.volume[MOE_COMBINE].remote_bytes;
    if (!moe_terminal_has_losses(m)) {
        moe_screen_row(
            s, &load_table, "%6lld %9s %12s %9s %9s %9s %10s\n", (long long)m->step,
            moe_format_number(f.mean_devices, 3).s, moe_format_bytes(sent).s,
            moe_format_number(f.device_max_over_mean, 3).s, moe_format_number(worst_layer(m), 3).s,
            moe_format_number(f.expert_maxvio + 1, 3).s, moe_format_seconds(m->seconds).s);
        return;
    }
    moe_screen_row(s, &step_table, "%6lld %8s %8s %8s %9s %7s %10s %8s %8s\n", (long long)m->step,
                   moe_format_number(f.raw[MOE_LOSS_EXPERT], 4).s,
                   moe_format_number(f.raw[MOE_LOSS_DEVICE], 4).s,
                   moe_format_number(f.raw[MOE_LOSS_COMM], 4).s, moe_format_number(f.total, 6).s,
                   moe_format_number(f.mean_devices, 3).s, moe_format_bytes(sent).s,
                   moe_format_number(f.device_max_over_mean, 3).s,
                   moe_format_seconds(m->seconds).s);
}

void moe_terminal_step(moe_screen *s, const moe_config *c, const moe_step_metrics *step) {
    bool train = c->run.mode == MOE_MODE_TRAIN, passed = moe_step_metrics_all_passed(step);
    int64_t every = c->output.every > 0 ? c->output.every : 1, seen = s->steps_seen++;
    if (s->quiet) {
        return;
    }
    moe_terminal_erase_line(s);
    if (seen == 0 && train) {
        moe_terminal_training_heads(s, c);
    }
    if (seen == 0 && !train) {
        print_step_heads(s, step);
    }
    const bool validated = !isnan(step->validation_loss);
    if (step->step % every == 0 || step->step + 1 == c->run.steps || validated || !passed) {
        if (train) {
            moe_terminal_training_row(s, c, step);
        } else {
            print_step(s, step);
        }
        if (!passed) {
            fputs("       a self-check FAILED\n", s->out);
        }
    }
    fflush(s->out);
}

void moe_terminal_progress(const moe_screen *s, int64_t done, int64_t total, double seconds) {
    if (s->quiet || !s->terminal) {
        return;
    }
    double rate = seconds > 0 ? (double)s->steps_seen / seconds : 0;
    moe_terminal_erase_line(s);
    if (done < total) {
        fprintf(s->out, "step %lld/%lld  %.3g steps/s", (long long)done, (long long)total, rate);
    }
    if (done < total && rate > 0) {
        fprintf(s->out, "  %s left", moe_format_seconds((double)(total - done) / rate).s);
    }
    fflush(s->out);
}

static const double between_drawings = 0.5; /* seconds */

void moe_terminal_layer(moe_screen *s,
                        const moe_config *c,
                        int64_t step,
                        int32_t layer,
                        bool backward,
                        double now) {
    if (s->quiet || !s->terminal || c->model.num_layers == 1) {
        return;
    }
    if (s->drawn == 0) {
        s->drawn = now; /* short steps never get as far as to draw */
    }
    if (now - s->drawn < between_drawings) {
        return;
    }
    s->drawn = now;
    moe_terminal_erase_line(s);
    fprintf(s->out, "step %lld/%lld, layer %d/%d%s", (long long)step + 1, (long long)c->run.steps,
            layer + 1, c->model.num_layers, backward ? ", backward" : "");
    fflush(s->out);
}
