/* unit_terminal.c: the text on the screen for made-up metrics at D = 8 and D = 64, piped: no
 * control characters, no line over 80 columns, and the numbers on the screen are those of the
 * metrics. */
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "made_record.h"
#include "measure/figures.h"
#include "output/format.h"
#include "output/terminal.h"
#include "predict/memory.h"

typedef struct page {
    char *text;
    size_t length;
} page;

static void make_topologies(moe_topology *t, int ranks, bool oversubscribed) {
    for (int q = 0; q < ranks; q++) {
        memset(&t[q], 0, sizeof t[q]);
        snprintf(t[q].host, sizeof t[q].host, "node%d", q * 2 / ranks);
        snprintf(t[q].processor, sizeof t[q].processor, "A Processor of 2.0 GHz");
        t[q].package = q % 2;
        t[q].numa = t[q].core = oversubscribed ? -1 : q;
        t[q].host_cores = t[q].host_pus = oversubscribed ? 2 : ranks;
        t[q].bound_cores = t[q].threads = 1;
        t[q].memory_bytes = (int64_t)16 << 30;
        t[q].oversubscribed = oversubscribed;
        t[q].gemm[0] = (moe_gemm_kernels){"oneDNN", "2.6.3", "avx2", false};
        t[q].gemm[1] = (moe_gemm_kernels){"OpenBLAS", "0.3.21", "Prescott", oversubscribed};
        t[q].num_gemm = 2;
    }
}

/* Whole life of a report, written to a file that is no terminal. */
static page render(moe_screen s,
                   const moe_config *c,
                   const moe_step_metrics *r,
                   int ranks,
                   bool oversubscribed) {
    moe_topology t[64];
    page p = {NULL, 0};
    const moe_memory memory = {.total = (int64_t)400 << 20, .mean = (int64_t)300 << 20};
    make_topologies(t, ranks, oversubscribed);
    s.out = open_memstream(&p.text, &p.length);
    moe_terminal_header(&s, c, t, ranks, &memory, (int64_t)8 << 30);
    moe_terminal_step(&s, c, r);
    moe_terminal_progress(&s, 1, 2, 0.5);
    moe_terminal_step(&s, c, r);
    moe_terminal_end(&s, c, r, "runs/made_up", 1.5);
    fclose(s.out);
    return p;
}

/* Columns of a line of UTF-8: bytes that do not continue a character. */
static int columns(const char *line, size_t length) {
    int count = 0;
    for (size_t i = 0; i < length; i++) {
        count += ((unsigned char)line[i] & 0xc0) != 0x80;
    }
    return count;
}

static void check_clean(const page *p, bool ascii, int width) {
    int control = 0;
    int foreign = 0;
    int widest = 0;
    const char *widest_line = "";
    for (size_t i = 0; i < p->length; i++) {
        unsigned char b = (unsigned char)p->text[i];
        control += (b < 0x20 && b != '\n') || b == 0x7f;
        foreign += b >= 0x80;
    }
    for (const char *line = p->text; *line; line += strcspn(line, "\n") + 1) {
        int n = columns(line, strcspn(line, "\n"));
        if (n <= widest) {
            continue;
        }
        widest = n;
        widest_line = line;
    }
    CHECK_MSG(control == 0, "%d control characters", control);
    CHECK_MSG(!ascii || foreign == 0, "%d bytes beyond ASCII", foreign);
    CHECK_MSG(widest <= width, "a line of %d columns: %.120s", widest, widest_line);
    CHECK(p->length > 2000 && p->text[p->length - 1] == '\n');
}

/* The text behind the first line that starts with `label` (blanks in front left out), after the
 * heading. */
static const char *line_of(const page *p, const char *heading, const char *label) {
    const char *at = strstr(p->text, heading);
    CHECK_MSG(at != NULL, "no heading '%s'", heading);
    for (const char *line = at; line && *line;) {
        const char *text = line + strspn(line, " ");
        if (line != at && !strncmp(text, label, strlen(label)) &&
            (text[strlen(label)] == ' ' || label[strlen(label) - 1] == ':')) {
            return text + strlen(label);
        }
        line = strchr(line, '\n');
        line = line ? line + 1 : NULL;
    }
    CHECK_MSG(false, "no line '%s' under '%s'", label, heading);
    return "";
}

/* The next number of a line, thousands separators left out; NaN at the end of the line. */
static double next_number(const char **at) {
    char digits[64];
    size_t n = 0;
    while (**at && **at != '\n' && (**at < '0' || **at > '9')) {
        (*at)++;
    }
    if (**at == '\0' || **at == '\n') {
        return NAN;
    }
    for (; (**at >= '0' && **at <= '9') || **at == ',' || **at == '.'; (*at)++) {
        if (**at != ',' && n < sizeof digits - 1) {
            digits[n++] = **at;
        }
    }
    digits[n] = '\0';
    return strtod(digits, NULL);
}

static void check_losses(const page *p, const moe_step_metrics *r) {
    static const char *const names[] = {"expert", "device",         "communication", "z (logits)",
                                        "switch", "gshard",         "mixtral",       "importance",
                                        "load",   "usage variance", "entropy",       "entropy z"};
    static const char *const scopes[] = {"sequence", "device", "global"};
    moe_figures f = moe_figures_of(r);
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        const char *at = line_of(p, "Balance losses", names[i]);
        CHECK(fabs(next_number(&at) - f.raw[i]) <= 5e-7);
        if (i == MOE_LOSS_Z) {
            continue;
        }
        CHECK(next_number(&at) == 1);
        CHECK(fabs(next_number(&at) - f.raw[i]) <= 5e-4);
        if (i > MOE_LOSS_Z) {
            continue;
        }
        CHECK_NEAR(next_number(&at), i == 0 ? 0.003 : i == 1 ? 0.05 : 0.02, 1e-15);
        CHECK(fabs(next_number(&at) - f.loss[i]) <= 5e-9);
    }
    const char *at = line_of(p, "Balance losses", "total");
    CHECK(fabs(next_number(&at) - f.total) <= 5e-9);
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        at = line_of(p, "raw, by scope", scopes[scope]);
        for (int i = 0; i < MOE_LOSS_Z; i++) {
            CHECK(fabs(next_number(&at) - (f.raw[i] + 0.01 * scope)) <= 1e-6);
        }
    }
}

static void check_volume(const page *p, const moe_step_metrics *r) {
    moe_volume d = moe_figures_of(r).volume[MOE_DISPATCH];
    const char *at = line_of(p, "Volume", "dispatch, sent");
    CHECK(next_number(&at) == (double)d.rows);
    CHECK(next_number(&at) == MADE_LIMIT);
    at = line_of(p, "Volume", "one row per selection");
    CHECK(next_number(&at) == (double)(d.selection_bytes / MADE_ROW_BYTES));
    at = line_of(p, "Volume", "one row per token and device");
    CHECK(next_number(&at) == (double)d.rows);
    at = line_of(p, "Volume", "stays on its device");
    CHECK(next_number(&at) == (double)d.by_level[0].rows);
    at = line_of(p, "Volume", "across nodes");
    CHECK(next_number(&at) == (double)d.by_level[2].rows);
    at = line_of(p, "Devices per token", "mean");
    CHECK(next_number(&at) == MADE_LIMIT);
}

static void check_load(const page *p, const moe_step_metrics *r) {
    int32_t size = r->devices / 8;
    double mean = 0;
    for (int32_t d = 0; d < r->devices; d++) {
        mean += (double)r->layer[0].counts_per_device[d] / r->devices;
    }
    for (int32_t block = 0; block < 8; block++) {
        char label[32];
        double value = 0, most = 0;
        for (int32_t d = block * size; d < (block + 1) * size; d++) {
            value += (double)r->layer[0].counts_per_device[d] / size;
            most = fmax(most, (double)r->layer[0].counts_per_device[d]);
        }
        snprintf(label, sizeof label, size == 1 ? "dev %d" : "dev %d-%d", block * size,
                 block * size + size - 1);
        const char *at = line_of(p, "Load per device", label);
        CHECK(next_number(&at) == round(value));
        CHECK(fabs(next_number(&at) - value / mean) <= 5e-4);
        CHECK(next_number(&at) == (size == 1 ? (double)r->layer[0].received_rows[block] : most));
    }
    moe_imbalance m = moe_imbalance_of(r->layer[0].counts_per_expert, r->num_experts);
    const char *at = line_of(p, "Balance\n", "experts, selections");
    CHECK(fabs(next_number(&at) - m.max_over_mean) <= 5e-4 &&
          fabs(next_number(&at) - m.maxvio) <= 5e-4);
}

/* D = 8: every cell of the matrix and its margins; D = 64 on 8 nodes: sums by node. */
static void check_matrix(const page *p, const moe_step_metrics *r) {
    int32_t size = r->devices / 8;
    for (int32_t from = 0; from < 8; from++) {
        char label[32];
        double sum = 0;
        snprintf(label, sizeof label, size == 1 ? "dev %d" : "dev %d-%d", from * size,
                 from * size + size - 1);
        const char *at = line_of(p, "from \\ to", label);
        for (int32_t to = 0; to < 8; to++) {
            double cell = 0;
            for (int32_t i = from * size; i < (from + 1) * size; i++) {
                for (int32_t j = to * size; j < (to + 1) * size; j++) {
                    cell += (double)moe_sparse_at(&r->layer[0].matrix, i, j);
                }
            }
            CHECK(next_number(&at) == cell);
            sum += cell;
        }
        CHECK(next_number(&at) == sum && isnan(next_number(&at)));
    }
}

static void check_devices(int32_t devices, bool utf8) {
    moe_config c;
    moe_step_metrics r;
    made_config(&c, 1, devices * 6, devices, 8);
    moe_step_metrics_init(&r, 1, devices * 6, devices);
    made_record(&r, &c, 3, devices * 40);
    moe_screen s = moe_screen_of(stdout, false);
    s.full = true;
    s.terminal = s.color = false;
    s.utf8 = utf8;
    page p = render(s, &c, &r, devices, devices == 64);
    check_clean(&p, !utf8, 80);
    check_losses(&p, &r);
    check_volume(&p, &r);
    check_load(&p, &r);
    check_matrix(&p, &r);
    CHECK(strstr(p.text, "  passed    rows_conserved") &&
          strstr(p.text, "  not made  groups_theorem") && strstr(p.text, "runs/made_up\n"));
    CHECK((strstr(p.text, "times are not those of") != NULL) == (devices == 64));
    CHECK(strstr(p.text, "gemm       oneDNN 2.6.3 (avx2); small products OpenBLAS 0.3.21"));
    CHECK((strstr(p.text, "OpenBLAS uses its Prescott kernels") != NULL) == (devices == 64));
    CHECK(strstr(p.text, utf8 ? "\u2588" : "####") && !strstr(p.text, "FAILED"));
    if (getenv("MOESIM_SHOW")) {
        fputs(p.text, stdout);
    }
    free(p.text);
    moe_step_metrics_free(&r);
}

/* Shapes that are easily forgotten: many devices without nodes, several layers, no limit, no
 * scores, a failed check, empty counts. */
static void check_odd(int32_t devices, int32_t layers, bool empty, bool full) {
    moe_config c;
    moe_step_metrics r;
    made_config(&c, layers, devices * 6, devices, devices);
    moe_step_metrics_init(&r, layers, devices * 6, devices);
    if (!empty) {
        made_record(&r, &c, 1, devices * 1000003LL / 1000);
    }
    c.router.group_limit = MOE_GROUP_NONE;
    r.layer[0].loss_raw[MOE_LOSS_EXPERT] = NAN;
    moe_step_metrics_check(
        &r, "a_check_with_a_name_of_forty_characters_1", true, false, "%s",
        "a long detail, word after word, that must be broken into lines at the width "
        "of the screen, again and again, to the "
        "very end of it");
    moe_screen s = moe_screen_of(stdout, false);
    s.full = full;
    s.terminal = s.color = s.utf8 = false;
    page p = render(s, &c, &r, 1, true);
    check_clean(&p, true, 80);
    CHECK(strstr(p.text, "  FAILED    a_check_with") && strstr(p.text, "failed its own checks"));
    CHECK(!strstr(p.text, "nan") && !strstr(p.text, "inf ") && !strstr(p.text, " -  "));
    CHECK(!full == (strstr(p.text, devices == 1 ? "All experts are on one device"
                                   : empty      ? "No token has an expert."
                                                : " times the mean load") != NULL));
    free(p.text);
    moe_step_metrics_free(&r);
}

/* Training */

static const moe_training_facts text_facts = {.text_bytes = 1234567,
                                              .domains = 3,
                                              .unigram_entropy = 3.2,
                                              .expert_parameters = 1000000,
                                              .replicated_parameters = 234567};

/* Header, `steps` steps and the outcome. The loss falls, or is multiplied by `growth` from step to
 * step. */
static page render_training(moe_screen s,
                            const moe_config *c,
                            const moe_training_facts *facts,
                            int64_t steps,
                            double growth) {
    moe_step_metrics r;
    moe_training_history h = {.steps = 0};
    moe_memory memory = moe_memory_estimate(c, &(moe_memory_given){.num_tokens = 0});
    page p = {NULL, 0};
    moe_step_metrics_init(&r, c->model.num_layers, c->model.num_experts, c->cluster.devices);
    s.out = open_memstream(&p.text, &p.length);
    moe_terminal_training(&s, c, facts, &memory);
    for (int64_t step = 0; step < steps; step++) {
        made_record(&r, c, step, 400);
        if (growth > 1) {
            r.task_loss = 5.5 * pow(growth, (double)step);
        }
        moe_terminal_step(&s, c, &r);
        moe_terminal_progress(&s, step + 1, steps, 2.0 * (double)(step + 1));
        moe_training_history_add(&h, &r);
    }
    moe_terminal_outcome(&s, c, &h, facts);
    moe_terminal_end(&s, c, &r, "runs/made_up", 1.5);
    fclose(s.out);
    moe_step_metrics_free(&r);
    return p;
}

static void training_config(moe_config *c, bool text) {
    made_config(c, 2, 48, 8, 8);
    c->run.mode = MOE_MODE_TRAIN;
    c->run.steps = 30;
    c->output.every = 4;
    c->data.source = text ? MOE_SOURCE_TEXT : MOE_SOURCE_SYNTHETIC;
}

static moe_screen plain_screen(void) {
    moe_screen s = moe_screen_of(stdout, false);
    s.full = true;
    s.terminal = s.color = s.utf8 = false;
    s.width = 80;
    return s;
}

/* Rows 0, 4, 8 .. 28, those with a validation (steps 4, 9, 14 ..), which stands in its own row, and
 * the last, 29. */
static void check_training_table(const page *p, const moe_config *c, bool text) {
    moe_step_metrics r;
    double f[MOE_NUM_FIGURES];
    moe_step_metrics_init(&r, 2, 48, 8);
    for (int64_t step = 0; step < 30; step++) {
        char label[32];
        bool validated = step % 5 == 4, row = step % 4 == 0 || validated || step == 29;
        made_record(&r, c, step, 400);
        moe_training_history_figures(&r, f);
        snprintf(label, sizeof label, "\n%6lld ", (long long)step);
        CHECK_MSG((strstr(p->text, label) != NULL) == row, "row of step %lld", (long long)step);
        if (!row) {
            continue;
        }
        const char *at = strstr(p->text, label) + strlen(label);
        CHECK(fabs(next_number(&at) - r.task_loss) <= 5e-5);
        if (text) {
            CHECK(fabs(next_number(&at) - r.task_loss / log(2)) <= 5e-4);
        }
        if (validated) {
            CHECK_MSG(fabs(next_number(&at) - r.validation_loss) <= 5e-5,
                      "validation in the row of step %lld", (long long)step);
        }
        CHECK(fabs(next_number(&at) - f[MOE_FIGURE_RAW + MOE_LOSS_EXPERT]) <= 5e-4);
        CHECK(fabs(next_number(&at) - f[MOE_FIGURE_RAW + MOE_LOSS_DEVICE]) <= 5e-4 &&
              next_number(&at) > 0 && next_number(&at) > 0);
        CHECK(fabs(next_number(&at) - f[MOE_FIGURE_EXPERT_MAXVIO]) <= 5e-4 &&
              fabs(next_number(&at) - f[MOE_FIGURE_DEVICE_MAXVIO]) <= 5e-4);
    }
    moe_step_metrics_free(&r);
}

static void check_training(bool text) {
    moe_config c;
    training_config(&c, text);
    moe_training_facts none = {.expert_parameters = 1000000, .replicated_parameters = 234567};
    page p = render_training(plain_screen(), &c, text ? &text_facts : &none, 30, 1);
    check_clean(&p, true, 100);
    check_training_table(&p, &c, text);
    CHECK(strstr(p.text, "1,234,567: 1,000,000 of the experts") &&
          strstr(p.text, "fullest rank: weights ") && strstr(p.text, "optimiser"));
    CHECK((strstr(p.text, "unigram entropy 3.200") != NULL) == text &&
          (strstr(p.text, "bits per byte") != NULL) == text);
    const char *at =
        line_of(&p, "Training: 30 steps", text ? "quality  lm loss, nats" : "quality  task loss");
    CHECK(fabs(next_number(&at) - 5.5452) <= 5e-5);
    double mean = next_number(&at);
    CHECK(mean > 1.5 && mean < 3);
    CHECK(strstr(p.text, "expert MaxVio") && !strstr(p.text, "rose") && !strstr(p.text, "above"));
    at = line_of(&p, "Volume", "dispatch of dy, sent");
    CHECK(next_number(&at) == 2 * 400 * MADE_LIMIT);
    at = line_of(&p, "Volume", "combine of dx, sent");
    CHECK(next_number(&at) == 2 * 400 * MADE_LIMIT);
    CHECK(strstr(p.text, "parameters' gradients 1.00 MiB") && !strstr(p.text, "nan"));
    if (getenv("MOESIM_SHOW")) {
        fputs(p.text, stdout);
    }
    free(p.text);
}

/* A loss that rose, ended as no number, or is still above the unigram entropy is said to be so. */
static void check_verdicts(void) {
    moe_config c;
    training_config(&c, true);
    page p = render_training(plain_screen(), &c, &text_facts, 30, 1.5);
    CHECK(strstr(p.text, "the loss rose from 5.5000 to 105431:") &&
          strstr(p.text, "train.learning_rate = 0.003 may"));
    check_clean(&p, true, 100);
    free(p.text);
    p = render_training(plain_screen(), &c, &text_facts, 30, 1e30);
    CHECK(strstr(p.text, "no finite number") && !strstr(p.text, "inf") && !strstr(p.text, "nan"));
    free(p.text);
    p = render_training(plain_screen(), &c, &text_facts, 3, 1);
    CHECK(strstr(p.text, "still above the text's unigram entropy") &&
          strstr(p.text, "mean of the last 3"));
    free(p.text);
}

/* Forward only: nothing of training. */
static void check_forward_has_none(void) {
    moe_config c;
    moe_step_metrics r;
    made_config(&c, 1, 48, 8, 8);
    moe_step_metrics_init(&r, 1, 48, 8);
    made_record(&r, &c, 1, 100);
    page p = render(plain_screen(), &c, &r, 8, false);
    CHECK(!strstr(p.text, "dispatch of dy") && !strstr(p.text, "gradient") &&
          !strstr(p.text, "Training") && !strstr(p.text, "grad."));
    free(p.text);
    moe_step_metrics_free(&r);
}

static void check_progress(void) {
    moe_config c;
    training_config(&c, true);
    moe_screen s = plain_screen();
    s.terminal = true;
    page p = render_training(s, &c, &text_facts, 30, 1);
    CHECK(strstr(p.text, "step 3/30  0.5 steps/s  54 s left"));
    free(p.text);
}

/* A step that takes long names its layers twice a second, a short one and a pipe never. */
static void check_layers(bool terminal, double layer_seconds, const char *wanted) {
    moe_config c;
    made_config(&c, 58, 48, 8, 8);
    moe_screen s = plain_screen();
    page p = {NULL, 0};
    s.terminal = terminal;
    s.out = open_memstream(&p.text, &p.length);
    double now = 100;
    for (int32_t l = 0; l < 4; l++, now += layer_seconds) {
        moe_terminal_layer(&s, &c, 0, l, false, now);
    }
    moe_terminal_layer(&s, &c, 0, 57, true, now);
    fclose(s.out);
    CHECK_MSG(strcmp(p.text, wanted) == 0, "%s", p.text);
    free(p.text);
}

static void check_quiet_and_color(void) {
    moe_config c;
    moe_step_metrics r;
    made_config(&c, 1, 48, 8, 8);
    moe_step_metrics_init(&r, 1, 48, 8);
    made_record(&r, &c, 1, 100);
    moe_screen s = moe_screen_of(stdout, true);
    page p = render(s, &c, &r, 8, false);
    CHECK_MSG(p.length == 0, "quiet wrote %zu bytes", p.length);
    free(p.text);
    s = moe_screen_of(stdout, false);
    s.full = true;
    s.terminal = s.color = true;
    p = render(s, &c, &r, 8, false);
    CHECK(strstr(p.text, "\033[1m") && strstr(p.text, "\033[K") && strstr(p.text, "step 1/2"));
    free(p.text);
    s.color = false;
    p = render(s, &c, &r, 8, false);
    CHECK(!strstr(p.text, "\033[1m") && !strstr(p.text, "\033[32m"));
    free(p.text);
    moe_step_metrics_free(&r);

    FILE *file = tmpfile();
    setenv("NO_COLOR", "1", 1);
    s = moe_screen_of(file, false);
    s.full = true;
    CHECK(!s.terminal && !s.color && s.width == 80);
    fclose(file);
}

static void check_numbers(void) {
    CHECK(!strcmp(moe_format_count(0).s, "0") &&
          !strcmp(moe_format_count(-1234567).s, "-1,234,567") &&
          !strcmp(moe_format_count(999).s, "999"));
    CHECK(!strcmp(moe_format_bytes(1023).s, "1023 B") &&
          !strcmp(moe_format_bytes(1536).s, "1.50 KiB") &&
          !strcmp(moe_format_bytes(1 << 20).s, "1.00 MiB"));
    CHECK(!strcmp(moe_format_bytes((1 << 20) - 1).s, "1.00 MiB") &&
          !strcmp(moe_format_bytes(INT64_MAX).s, "8.00 EiB"));
    CHECK(!strcmp(moe_format_seconds(0.0123).s, "12.3 ms") &&
          !strcmp(moe_format_seconds(1.5).s, "1.5 s") &&
          !strcmp(moe_format_seconds(125).s, "2 min 05 s"));
    CHECK(!strcmp(moe_format_number(NAN, 3).s, "-") &&
          !strcmp(moe_format_number(1.0625, 3).s, "1.062"));
}

int main(void) {
    unsetenv("OPENBLAS_CORETYPE"); /* who sets it is not warned of slow kernels */
    RUN(check_devices, 8, false);
    RUN(check_devices, 8, true);
    RUN(check_devices, 64, false);
    RUN(check_devices, 64, true);
    for (int full = 0; full < 2; full++) {
        RUN(check_odd, 1, 1, true, full);
        RUN(check_odd, 1, 2, false, full);
        RUN(check_odd, 13, 3, false, full);
        RUN(check_odd, 100, 9, true, full);
        RUN(check_odd, 100, 2, false, full);
    }
    RUN(check_training, true);
    RUN(check_training, false);
    RUN(check_verdicts);
    RUN(check_forward_has_none);
    RUN(check_progress);
    RUN(check_layers, true, 0.3,
        "\r\033[Kstep 1/2, layer 3/58\r\033[Kstep 1/2, layer 58/58, backward");
    RUN(check_layers, true, 0.1, "");
    RUN(check_layers, false, 1, "");
    RUN(check_quiet_and_color);
    RUN(check_numbers);
    return check_verdict();
}
