/* terminal_losses.c: the balance losses beside their values at perfect balance, in the three
 * scopes, and layer by layer where there are few layers. */
#include "balance/balance.h"
#include "output/terminal_internal.h"

enum { MOST_LAYERS = 8 };

static const moe_table loss_table = {78, {{52, 11}, {42, 10}}}, scope_table = {70, {{59, 11}}},
                       layer_table = {74, {{59, 15}}};

/* `trains` says whether the loss may have a coefficient. */
static void print_loss(const moe_screen *s,
                       const char *name,
                       bool trains,
                       double raw,
                       double ideal,
                       double alpha,
                       double weighed) {
    char trained[64];
    if (trains) {
        snprintf(trained, sizeof trained, "%10g %14s", alpha,
                 alpha != 0 ? moe_format_number(weighed, 8).s : "-");
    } else {
        snprintf(trained, sizeof trained, "%25s", "diagnostic only");
    }
    moe_screen_row(s, &loss_table, "  %-15s %10s %12s %10s %s\n", name, moe_format_number(raw, 6).s,
                   moe_format_number(ideal, 6).s,
                   ideal != 0 ? moe_format_number(raw / ideal, 3).s : "-", trained);
}

/* Whether the loss over the tokens of all layers stands beside the mean of the layers' own losses.
 */
static bool shows_all_layers(const moe_step_metrics *m) {
    return m->all_layers.on && m->num_layers > 1;
}

static void print_table(const moe_screen *s,
                        const moe_config *c,
                        const moe_step_metrics *m,
                        const moe_figures *f) {
    const double factor =
        c->run.mode == MOE_MODE_TRAIN ? moe_balance_alpha_factor(&c->balance, m->step) : 1;
    double alpha[MOE_NUM_LOSSES];
    moe_balance_alphas(&c->balance, moe_config_moe_layers(c), alpha);
    moe_screen_row(s, &loss_table, "  %-15s %10s %12s %10s %10s %14s\n", "", "raw", "at balance",
                   "ratio", "alpha", "alpha x raw");
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        const bool over_layers = i == (int)m->all_layers.form && shows_all_layers(m);
        if (s->full || i <= MOE_LOSS_COMM || alpha[i] != 0 || over_layers) {
            print_loss(s, moe_loss_titles[i], i < MOE_LOSS_USAGE_VARIANCE, f->raw[i], f->ideal[i],
                       factor * alpha[i], f->loss[i]);
        }
        if (over_layers) {
            print_loss(s, "  all layers", true, m->all_layers.raw, m->all_layers.ideal,
                       factor * moe_balance_alpha_all_layers(&c->balance, moe_config_moe_layers(c)),
                       m->all_layers.loss);
        }
    }
    moe_screen_row(s, &loss_table, "  %-15s %10s %12s %10s %10s %14s\n", "total", "", "", "", "",
                   moe_format_number(f->total, 8).s);
    if (m->num_layers > 1) {
        moe_screen_row(s, &loss_table, "  %-15s %10s %12s %10s %10s %14s\n", "objective", "", "",
                       "", "", moe_format_number(f->objective, 8).s);
    }
}

static void print_meaning(const moe_screen *s,
                          const moe_config *c,
                          const moe_step_metrics *m,
                          const moe_figures *f) {
    bool tokens = c->balance.comm_count == MOE_COUNT_TOKENS;
    /* What f'' counts of one counted token: its devices, or its selections. */
    double counted = f->ideal[MOE_LOSS_COMM] * c->comm_limit;
    if (c->balance.device_p == MOE_DEVICE_P_MEAN) {
        counted *= (double)c->model.num_experts / c->cluster.devices;
    }
    moe_screen_wrapped(
        s, 2, "",
        "expert: sum over experts of f P, f = share of the selections x N / K, P = "
        "mean score; device: the same by device; communication: "
        "f'' counts the %s sent to a device, x D / (%d T), where %d is the most devices "
        "that a token may reach; at balance it is %s per %stoken / %d = %s / %d.",
        tokens ? "tokens" : "selections", c->comm_limit, c->comm_limit,
        tokens ? "devices" : "selections", c->data.mask[0] ? "counted " : "", c->comm_limit,
        moe_format_number(counted, 3).s, c->comm_limit);
    moe_screen_wrapped(s, 2, "",
                       "switch, gshard: like expert, f from first choices; mixtral: like expert, "
                       "without 1/K; importance, load: squared variation over "
                       "experts "
                       "of the summed weights and of the load; usage variance: of the shares of "
                       "selections; entropy: of a token's scores, in nats; "
                       "entropy z: -entropy / N.");
    if (shows_all_layers(m)) {
        moe_screen_wrapped(s, 2, "",
                           "all layers: %s of the tokens of all layers put together, as "
                           "Hugging Face's code has it.",
                           moe_loss_titles[m->all_layers.form]);
    }
    if (m->num_layers > 1) {
        moe_screen_wrapped(s, 2, "",
                           "these are means over the %d layers; objective: what training adds to "
                           "the loss of the task, the sum over layers%s.",
                           m->num_layers, shows_all_layers(m) ? " and all layers once" : "");
    }
}

static void print_scopes(const moe_screen *s, const moe_config *c, const moe_figures *f) {
    fprintf(s->out, "\n  %-15s %13s %13s %13s\n", "raw, by scope", moe_loss_titles[MOE_LOSS_EXPERT],
            moe_loss_titles[MOE_LOSS_DEVICE], moe_loss_titles[MOE_LOSS_COMM]);
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        const double *raw = f->raw_by_scope[scope];
        moe_screen_row(s, &scope_table, "  %-15s %13s %13s %13s%s\n",
                       moe_config_enum_name(MOE_KEY(balance, scope), scope),
                       moe_format_number(raw[MOE_LOSS_EXPERT], 6).s,
                       moe_format_number(raw[MOE_LOSS_DEVICE], 6).s,
                       moe_format_number(raw[MOE_LOSS_COMM], 6).s,
                       scope == (int)c->balance.scope ? "  <- trains" : "");
    }
}

static void print_layers(const moe_screen *s, const moe_step_metrics *m) {
    fputc('\n', s->out);
    moe_screen_row(s, &layer_table, "  %-15s %13s %13s %13s %14s\n", "raw, by layer",
                   moe_loss_titles[MOE_LOSS_EXPERT], moe_loss_titles[MOE_LOSS_DEVICE],
                   moe_loss_titles[MOE_LOSS_COMM], "total x alpha");
    for (int32_t l = 0; l < m->num_layers; l++) {
        const double *raw = m->layer[l].loss_raw;
        moe_screen_row(s, &layer_table, "  layer %-9d %13s %13s %13s %14s\n", l,
                       moe_format_number(raw[MOE_LOSS_EXPERT], 6).s,
                       moe_format_number(raw[MOE_LOSS_DEVICE], 6).s,
                       moe_format_number(raw[MOE_LOSS_COMM], 6).s,
                       moe_format_number(m->layer[l].total, 8).s);
    }
}

void moe_terminal_losses(const moe_screen *s,
                         const moe_config *c,
                         const moe_step_metrics *m,
                         const moe_figures *f) {
    moe_screen_heading(s, "Balance losses of step %lld, scope %s%s", (long long)m->step,
                       moe_config_enum_name(MOE_KEY(balance, scope), c->balance.scope),
                       moe_terminal_layers(m, "mean").s);
    if (!moe_terminal_has_losses(m)) {
        moe_screen_wrapped(s, 2, "",
                           "not defined: the recorded routing has no scores (data.scores)");
        return;
    }
    print_table(s, c, m, f);
    if (!s->full) {
        return;
    }
    print_meaning(s, c, m, f);
    print_scopes(s, c, f);
    if (m->num_layers > 1 && m->num_layers <= MOST_LAYERS) {
        print_layers(s, m);
    }
}
