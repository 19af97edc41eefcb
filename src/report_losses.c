/* report_losses.c: the balance losses beside their value at perfect balance, in the three scopes, and layer by layer where there are few. */
#include <math.h>

#include "moesim/optimizer.h"
#include "report_parts.h"

enum { MOST_LAYERS = 8 };

static const char *const long_names[MOE_NUM_LOSSES] = {"expert",  "device",     "communication", "z (logits)",     "switch",  "gshard",
                                                       "mixtral", "importance", "load",          "usage variance", "entropy", "entropy z"};

static double mean_ideal(const moe_step_record *r, int loss) {
    double mean = 0;
    for (int32_t l = 0; l < r->num_layers; l++)
        mean += r->layer[l].ideal[loss] / r->num_layers;
    return mean;
}

static double mean_in_scope(const moe_step_record *r, int scope, int loss) {
    double mean = 0;
    for (int32_t l = 0; l < r->num_layers; l++)
        mean += r->layer[l].loss_by_scope[scope][loss] / r->num_layers;
    return mean;
}

static void print_table(const moe_screen *s, const moe_config *c, const moe_step_record *r) {
    const double factor = c->run.mode == MOE_MODE_TRAIN ? moe_alpha_factor(c, r->step) : 1;
    double alpha[MOE_NUM_LOSSES], loss[MOE_NUM_LOSSES], raw[MOE_NUM_LOSSES], total;
    moe_balance_alphas(c, alpha);
    moe_record_mean_losses(r, loss, raw, &total);
    fprintf(s->out, "  %-15s %10s %12s %10s %10s %14s\n", "", "raw", "at balance", "ratio", "alpha", "alpha x raw");
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        double ideal = mean_ideal(r, i);
        fprintf(s->out, "  %-15s %10s %12s %10s ", long_names[i], moe_text_number(raw[i], 6).s, moe_text_number(ideal, 6).s,
                ideal != 0 ? moe_text_number(raw[i] / ideal, 3).s : "-");
        if (i < MOE_LOSS_USAGE_VARIANCE)
            fprintf(s->out, "%10g %14s\n", factor * alpha[i], factor * alpha[i] != 0 ? moe_text_number(loss[i], 8).s : "-");
        else
            fprintf(s->out, "%25s\n", "diagnostic only");
    }
    fprintf(s->out, "  %-15s %10s %12s %10s %10s %14s\n", "total", "", "", "", "", moe_text_number(total, 8).s);
}

static void print_meaning(const moe_screen *s, const moe_config *c, const moe_step_record *r) {
    double devices = 0;
    for (int32_t l = 0; l < r->num_layers; l++)
        devices += r->layer[l].mean_devices / r->num_layers;
    moe_screen_wrapped(
        s, 2, "",
        "expert: sum over experts of f P, f = share of the selections x N / K, P = mean score; device: the same by device; communication: "
        "f'' counts the %s sent to a device, x D / (M T); at balance it is devices per token / M = %.3f / %d.",
        c->balance.comm_count == MOE_COUNT_TOKENS ? "tokens" : "selections", devices, c->comm_limit);
    moe_screen_wrapped(
        s, 2, "",
        "switch, gshard: like expert, f from first choices; mixtral: like expert, without 1/K; importance, load: squared variation over "
        "experts "
        "of the summed weights and of the load; usage variance: of the shares of selections; entropy: of a token's scores, in nats; "
        "entropy z: -entropy / N.");
    if (isnan(r->layer[0].loss_raw[MOE_LOSS_EXPERT]))
        moe_screen_wrapped(s, 2, "", "-: not defined without scores (recorded routing has none).");
}

static void print_scopes(const moe_screen *s, const moe_config *c, const moe_step_record *r) {
    static const char *const names[MOE_NUM_SCOPES] = {"sequence", "device", "global"};
    fprintf(s->out, "\n  %-15s", "raw, by scope");
    for (int i = 0; i < MOE_LOSS_Z; i++)
        fprintf(s->out, " %13s", long_names[i]);
    fputc('\n', s->out);
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        fprintf(s->out, "  %-15s", names[scope]);
        for (int i = 0; i < MOE_LOSS_Z; i++)
            fprintf(s->out, " %13s", moe_text_number(mean_in_scope(r, scope, i), 6).s);
        fprintf(s->out, "%s\n", scope == c->balance.scope ? "  <- trains" : "");
    }
}

static void print_layers(const moe_screen *s, const moe_step_record *r) {
    fprintf(s->out, "\n  %-15s %13s %13s %13s %14s\n", "raw, by layer", "expert", "device", "communication", "total x alpha");
    for (int32_t l = 0; l < r->num_layers; l++) {
        fprintf(s->out, "  layer %-9d", l);
        for (int i = 0; i < MOE_LOSS_Z; i++)
            fprintf(s->out, " %13s", moe_text_number(r->layer[l].loss_raw[i], 6).s);
        fprintf(s->out, " %14s\n", moe_text_number(r->layer[l].total, 8).s);
    }
}

void moe_report_losses(const moe_screen *s, const moe_config *c, const moe_step_record *r) {
    moe_screen_heading(s, "Balance losses of step %lld, scope %s%s", (long long)r->step,
                       moe_config_enum_name("balance.scope", c->balance.scope), moe_report_layers(r, "mean").s);
    print_table(s, c, r);
    print_meaning(s, c, r);
    print_scopes(s, c, r);
    if (r->num_layers > 1 && r->num_layers <= MOST_LAYERS) print_layers(s, r);
}
