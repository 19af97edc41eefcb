/* terminal_end.c: the ending of a run: losses, volume, load, self-checks, time, and where the
 * results are. */
#include "output/files.h"
#include "output/matrix_history.h"
#include "output/terminal.h"
#include "output/terminal_internal.h"

enum { CHECK_INDENT = 12 };

/* "8 checks passed, 1 not made"; those that failed are told in full. */
static void count_checks(const moe_screen *s, const moe_step_metrics *m) {
    int passed = 0, not_made = 0;
    char text[64] = "";
    for (int i = 0; i < m->num_checks; i++) {
        passed += m->check[i].made && m->check[i].passed;
        not_made += !m->check[i].made;
    }
    if (not_made > 0) {
        snprintf(text, sizeof text, ", %d not made", not_made);
    }
    fprintf(s->out, "\n  %d check%s passed%s\n", passed, passed == 1 ? "" : "s", text);
}

static void print_checks(const moe_screen *s, const moe_config *c, const moe_step_metrics *m) {
    bool batches = c->run.mode == MOE_MODE_TRAIN && c->train.accumulate > 1;
    moe_screen_heading(s, "Self-checks");
    if (m->num_layers > 1 || batches) {
        moe_screen_wrapped(s, 2, "",
                           "of every layer%s; the figures are those of the first%s, or of where a "
                           "check failed first",
                           batches ? " and micro-batch" : "",
                           m->num_layers > 1 ? " layer" : " micro-batch");
    }
    for (int i = 0; i < m->num_checks; i++) {
        const moe_check *k = &m->check[i];
        enum moe_paint paint = !k->made ? MOE_DIM : k->passed ? MOE_GREEN : MOE_RED;
        const char *label = !k->made ? "  not made" : k->passed ? "  passed" : "  FAILED";
        fputs(moe_screen_paint(s, paint), s->out);
        moe_screen_wrapped(s, CHECK_INDENT, label, "%s%s%s", k->name, k->detail[0] ? ": " : "",
                           k->detail);
        fputs(moe_screen_paint(s, MOE_PLAIN), s->out);
    }
    if (!moe_step_metrics_all_passed(m)) {
        fprintf(s->out, "  This run failed its own checks: do not use its figures.\n");
    }
}

void moe_terminal_checks(const moe_screen *s, const moe_config *c, const moe_step_metrics *m) {
    if (s->full || !moe_step_metrics_all_passed(m)) {
        print_checks(s, c, m);
    } else {
        count_checks(s, m);
    }
}

static void print_time(const moe_screen *s,
                       const moe_config *c,
                       const moe_step_metrics *m,
                       const moe_figures *f,
                       double seconds) {
    char text[512];
    int length = snprintf(
        text, sizeof text,
        "%lld step%s in %s; the last one %s on the slowest rank. The longest of any rank in each "
        "phase:",
        (long long)s->steps_seen, s->steps_seen == 1 ? "" : "s",
        moe_format_glued(moe_format_seconds(seconds)).s,
        moe_format_glued(moe_format_seconds(m->seconds)).s);
    int phases = c->run.mode == MOE_MODE_TRAIN ? MOE_NUM_PHASES : MOE_PHASE_BACKWARD;
    for (int phase = 0; phase < phases; phase++) {
        length += snprintf(text + length, sizeof text - (size_t)length, "%s %s\t%s",
                           phase ? "," : "", moe_phase_names[phase],
                           moe_format_glued(moe_format_seconds(f->phase_seconds[phase])).s);
    }
    moe_screen_heading(s, "Time");
    moe_screen_wrapped(s, 2, "", "%s", text);
}

/* Whether a run has the file without being asked for it, or because of its timeline. */
static bool is_there(int file, const moe_config *c) {
    int64_t stride;
    int32_t layers = moe_config_moe_layers(c), devices = c->cluster.devices;
    switch (file) {
    case MOE_RESULT_COMM_MATRIX:
    case MOE_RESULT_COMM_MATRIX_SPARSE:
        return file == (int)moe_result_matrix(devices);
    case MOE_RESULT_COMM_MATRIX_STEPS:
        return moe_matrix_history_kept(layers, devices, c->run.steps, &stride) > 0;
    case MOE_RESULT_TIMELINE:
        return c->output.timeline;
    default:
        return moe_result_files[file].always;
    }
}

static void print_files(const moe_screen *s, const moe_config *c) {
    char text[256] = "";
    size_t length = 0;
    for (int i = 0; i < MOE_NUM_RESULTS; i++) {
        if (is_there(i, c)) {
            length += (size_t)snprintf(text + length, sizeof text - length, "%s%s",
                                       length ? ", " : "", moe_result_files[i].name);
        }
    }
    moe_screen_wrapped(s, 2, "", "%s", text);
}

void moe_terminal_end(const moe_screen *s,
                      const moe_config *c,
                      const moe_step_metrics *last,
                      const char *folder,
                      double seconds) {
    if (s->quiet) {
        return;
    }
    moe_figures f = moe_figures_of(last);
    moe_terminal_erase_line(s);
    if (!s->full) {
        moe_terminal_headline(s, c, last, &f);
    }
    moe_terminal_losses(s, c, last, &f);
    moe_terminal_volume(s, c, last, &f);
    moe_terminal_capacity(s, c, last, &f);
    moe_terminal_load(s, c, last);
    moe_terminal_checks(s, c, last);
    moe_terminal_rebalance(s, c, last);
    if (s->full) {
        print_time(s, c, last, &f, seconds);
    }
    moe_terminal_predicted(s, c, last);
    moe_screen_heading(s, "Results");
    fprintf(s->out, "  %s\n", folder);
    if (s->full) {
        print_files(s, c);
    } else {
        fprintf(s->out, "  --full tells more here; scripts/report draws a page\n");
    }
    fflush(s->out);
}
