/* terminal_predicted.c: how long the last step would take on the cluster of [cluster], phase by
 * phase, beside what perfect balance would make of it. */
#include <math.h>
#include <string.h>

#include "output/terminal_internal.h"
#include "predict/prediction.h"

static const moe_table table = {52, {{40, 10}}};

/* Phases that the run has. */
static bool is_shown(const moe_config *c, int phase) {
    return phase == MOE_PREDICTED_ATTENTION  ? c->model.attention != MOE_ATTENTION_NONE
           : phase == MOE_PREDICTED_DENSE    ? c->model.first_dense_layers > 0
           : phase == MOE_PREDICTED_BACKWARD ? c->run.mode == MOE_MODE_TRAIN
                                             : true;
}

static void print_phases(const moe_screen *s, const moe_config *c, const moe_prediction *p) {
    moe_screen_row(s, &table, "  %-14s %11s %11s %8s\n", "", "predicted", "balanced", "share");
    for (int i = 0; i < MOE_NUM_PREDICTED; i++) {
        char share[16];
        snprintf(share, sizeof share, "%.1f %%",
                 100 * p->seconds[i] / fmax(p->seconds[MOE_PREDICTED_STEP], 1e-300));
        if (is_shown(c, i)) {
            moe_screen_row(s, &table, "  %-14s %11s %11s %8s\n", moe_predicted_names[i],
                           moe_format_seconds(p->seconds[i]).s,
                           moe_format_seconds(p->balanced[i]).s, share);
        }
    }
}

/* The cluster file without its folder, or what stands in for it. */
static const char *cluster_name(const moe_config *c) {
    const char *slash = strrchr(c->cluster.file, '/');
    return c->cluster.file[0] == '\0' ? "the cluster in [cluster]"
           : slash                    ? slash + 1
                                      : c->cluster.file;
}

static void print_price(const moe_screen *s, const moe_config *c, const moe_prediction *p) {
    if (isfinite(p->price_per_token)) {
        moe_screen_wrapped(s, 2, "", "A million tokens cost %.4g at cluster.price_per_hour = %g.",
                           1e6 * p->price_per_token, c->cluster.price_per_hour);
    }
}

/* The rate of a device is that of one format; how much faster bf16 products of a host are is not
 * among the constants of a cluster. */
static void print_unknown(const moe_screen *s, const moe_config *c) {
    if (c->model.compute == MOE_COMPUTE_BF16) {
        moe_screen_wrapped(s, 2, "",
                           "Predicted at cluster.device_tflops: what model.compute = bf16 changes "
                           "on this cluster is not known.");
    }
}

static void print_shortly(const moe_screen *s,
                          const moe_config *c,
                          const moe_step_metrics *m,
                          const moe_prediction *p) {
    const double step = p->seconds[MOE_PREDICTED_STEP], balanced = p->balanced[MOE_PREDICTED_STEP];
    fputc('\n', s->out);
    moe_screen_wrapped(s, 2, "",
                       "Predicted on %d device%s of %s: %s a step, %s at perfect balance; %s.",
                       m->devices, m->devices == 1 ? "" : "s", cluster_name(c),
                       moe_format_glued(moe_format_seconds(step)).s,
                       moe_format_glued(moe_format_seconds(balanced)).s, p->bottleneck);
    print_unknown(s, c);
    print_price(s, c, p);
}

void moe_terminal_predicted(const moe_screen *s, const moe_config *c, const moe_step_metrics *m) {
    const moe_prediction p = moe_prediction_of(c, m);
    const double step = p.seconds[MOE_PREDICTED_STEP], balanced = p.balanced[MOE_PREDICTED_STEP];
    if (!s->full) {
        print_shortly(s, c, m, &p);
        return;
    }
    moe_screen_heading(s, "The last step on %d devices of %s", m->devices, cluster_name(c));
    print_phases(s, c, &p);
    moe_screen_wrapped(s, 2, "", "%s. Perfect balance would save %.1f\t%% of the step.",
                       p.bottleneck, step > 0 ? 100 * (1 - balanced / step) : 0);
    print_unknown(s, c);
    print_price(s, c, &p);
}
