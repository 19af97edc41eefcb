/* terminal_generation.c: a run that generates on the screen: the text as it comes, and decode
 * beside prefill. */
#include <math.h>

#include "output/format.h"
#include "output/terminal.h"
#include "output/terminal_internal.h"
#include "predict/generation.h"

enum { MOST_OTHERS = 7, OTHER_BYTES = 56 };

void moe_terminal_generated(moe_screen *s, const uint8_t *text, int64_t length, int64_t from) {
    if (s->quiet) {
        return;
    }
    if (from == 0) {
        fputc('\n', s->out);
    }
    for (int64_t i = from; i < length; i++) {
        moe_text_stream_put(&s->text, text[i], s->out);
    }
    s->steps_seen++;
    fflush(s->out);
}

/* --- the other sequences --- */

/* The end of a sequence in one line. */
static void print_other(const moe_screen *s, const moe_generated_texts *all, int64_t q) {
    const int64_t length = all->length[q], from = length > OTHER_BYTES ? length - OTHER_BYTES : 0;
    moe_text_stream stream = {.have = 0};
    fprintf(s->out, "  sequence %-3lld %s", (long long)q, from > 0 ? "..." : "");
    for (int64_t i = from; i < length; i++) {
        const uint8_t byte = all->text[q * all->room + i];
        moe_text_stream_put(&stream, byte == '\n' || byte == '\t' ? ' ' : byte, s->out);
    }
    moe_text_stream_end(&stream, s->out);
    fputc('\n', s->out);
}

static void print_others(const moe_screen *s, const moe_generated_texts *all) {
    const int64_t shown = all->sequences - 1 < MOST_OTHERS ? all->sequences - 1 : MOST_OTHERS;
    if (all->sequences == 1) {
        return;
    }
    moe_screen_heading(s, "The other sequences, whole in generated.txt");
    for (int64_t q = 1; q <= shown; q++) {
        print_other(s, all, q);
    }
    if (shown < all->sequences - 1) {
        fprintf(s->out, "  and %lld more\n", (long long)(all->sequences - 1 - shown));
    }
}

/* --- decode beside prefill --- */

/* A row of the table; what there was no step of is "-". */
static void print_row(const moe_screen *s,
                      const char *what,
                      moe_formatted prefill,
                      moe_formatted decode) {
    fprintf(s->out, "  %-44s %14s %14s\n", what, prefill.s, decode.s);
}

static moe_formatted bytes_of(double bytes) {
    return isnan(bytes) ? moe_format_number(NAN, 0) : moe_format_bytes((int64_t)llround(bytes));
}

static moe_formatted micros_of(double seconds) {
    return moe_format_number(1e6 * seconds, 3);
}

static moe_formatted seconds_of(double seconds) {
    return isnan(seconds) ? moe_format_number(NAN, 0) : moe_format_seconds(seconds);
}

static void print_traffic(const moe_screen *s,
                          const moe_config *c,
                          const moe_generation_metrics *g,
                          const moe_pass_figures f[MOE_NUM_PASSES]) {
    const moe_pass_figures *p = &f[MOE_PASS_PREFILL], *d = &f[MOE_PASS_DECODE];
    const moe_pass_exchange px = moe_pass_exchange_of(c, p), dx = moe_pass_exchange_of(c, d);
    char experts[64];
    moe_screen_heading(s, "Prefill, and a mean decode step");
    fprintf(s->out, "  %-44s %14s %14s\n", "", "prefill", "decode");
    print_row(s, "tokens of a device", moe_format_number(p->tokens_per_device, 1),
              moe_format_number(d->tokens_per_device, 1));
    snprintf(experts, sizeof experts, "experts with a token, of %d", g->experts);
    print_row(s, experts, moe_format_number(p->active_experts, 1),
              moe_format_number(d->active_experts, 1));
    print_row(s, "tokens of such an expert", moe_format_number(p->rows_per_expert, 2),
              moe_format_number(d->rows_per_expert, 2));
    print_row(s, "rows of dispatch for a token and layer", moe_format_number(p->rows_per_token, 2),
              moe_format_number(d->rows_per_token, 2));
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        char label[64];
        snprintf(label, sizeof label, "bytes, out and back, %s", moe_level_titles[i]);
        print_row(s, label, bytes_of(p->bytes_by_level[i]), bytes_of(d->bytes_by_level[i]));
    }
    print_row(s, "that a device sends in one exchange", bytes_of(p->message_bytes),
              bytes_of(d->message_bytes));
    print_row(s, "one exchange on [cluster]: latency, us", micros_of(px.latency_seconds),
              micros_of(dx.latency_seconds));
    print_row(s, "and transfer, us", micros_of(px.transfer_seconds),
              micros_of(dx.transfer_seconds));
    print_row(s, "time of the step here", seconds_of(p->seconds), seconds_of(d->seconds));
}

/* What the figures of decode mean for its exchange. */
static void print_regime(const moe_screen *s, const moe_config *c, const moe_pass_figures *d) {
    const moe_pass_exchange x = moe_pass_exchange_of(c, d);
    const double whole = x.latency_seconds + x.transfer_seconds;
    if (isnan(d->tokens) || !(whole > 0)) {
        return;
    }
    const double share = x.latency_seconds / whole;
    moe_screen_wrapped(
        s, 2, "",
        share > 0.5 ? "A decode step's exchange is %.0f %% latency: what counts is that a message "
                      "is sent, not how long it is. That is the regime of low-latency exchanges."
                    : "A decode step's exchange is %.0f %% latency: with so many sequences its "
                      "bytes count as in prefill.",
        100 * share);
}

void moe_terminal_generation(moe_screen *s,
                             const moe_config *c,
                             const moe_generation_metrics *g,
                             const moe_generated_texts *all,
                             const moe_step_metrics *last,
                             const char *folder,
                             double seconds) {
    moe_pass_figures f[MOE_NUM_PASSES];
    if (s->quiet) {
        return;
    }
    moe_text_stream_end(&s->text, s->out);
    fputc('\n', s->out);
    print_others(s, all);
    for (int i = 0; i < MOE_NUM_PASSES; i++) {
        f[i] = moe_pass_figures_of(&g->pass[i], g->layers, g->devices);
    }
    print_traffic(s, c, g, f);
    print_regime(s, c, &f[MOE_PASS_DECODE]);
    moe_screen_wrapped(s, 2, "", "%lld new bytes of each of %lld sequence%s in %s",
                       (long long)s->steps_seen, (long long)g->sequences,
                       g->sequences == 1 ? "" : "s", moe_format_seconds(seconds).s);
    moe_terminal_checks(s, c, last);
    moe_screen_heading(s, "Results");
    fprintf(s->out, "  %s\n", folder);
    fflush(s->out);
}
