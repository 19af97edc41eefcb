/* dialects_show.c: what --dialects prints: the tables, the presets that do not go with the
 * configuration, and a sentence on each key by whose definition rows disagree. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "config/table.h"
#include "config/value.h"
#include "output/format.h"
#include "output/screen.h"
#include "run/dialects_internal.h"

static bool ran(const moe_dialect *row) {
    return row->reason[0] == 0;
}

static double share(int64_t part, int64_t all) {
    return all ? (double)part / (double)all : 0;
}

/* --- tables --- */

/* What a narrow terminal leaves out, in this order: of the first table the columns of scores,
 * limit, payload and common; of the second the ratios and the scope; of the third z, importance,
 * alpha and the ratio. */
static const moe_table choice_table = {80, {{25, 13}, {38, 9}, {71, 9}, {52, 7}}};
static const moe_table loss_table = {79, {{43, 6}, {58, 6}, {73, 6}, {25, 9}}};
static const moe_table form_table = {79, {{70, 9}, {59, 11}, {51, 8}, {44, 7}}};

/* How many experts a token has: "6", or "p0.8" with top_p, or "-" where experts choose. */
static void choices_of(const moe_config *c, char text[16]) {
    if (c->router.method == MOE_METHOD_TOP_P) {
        snprintf(text, 16, "p%.3g", c->router.top_p);
    } else if (c->router.method == MOE_METHOD_EXPERT_CHOICE) {
        snprintf(text, 16, "-");
    } else {
        snprintf(text, 16, "%d", c->router.top_k);
    }
}

static void print_choices(const moe_screen *s, const moe_dialect *row, int num_rows) {
    char k[16];
    moe_screen_row(s, &choice_table, "  %-23s %-12s %-8s%5s%7s%6s%6s%9s\n", "", "scores", "limit",
                   "K", "common", "drop", "X", "MiB");
    for (int i = 0; i < num_rows; i++) {
        const moe_dialect *r = &row[i];
        if (!ran(r)) {
            continue;
        }
        choices_of(&r->c, k);
        moe_screen_row(s, &choice_table, "  %-23s %-12s %-8s%5s%6.1f%%%5.1f%%%6.3f%9.3f\n", r->name,
                       moe_config_enum_name(MOE_KEY(router, score_func), r->c.router.score_func),
                       moe_config_enum_name(MOE_KEY(router, group_limit), r->c.router.group_limit),
                       k, 100 * share(r->common, r->selections),
                       100 * share(r->dropped, r->selections), r->mean_devices,
                       (double)r->dispatch_bytes / (1 << 20));
    }
}

/* The loss that alpha_expert of this row trains. */
static enum moe_loss trained_form(const moe_config *c) {
    return moe_balance_form(&c->balance);
}

typedef struct two_cells {
    char s[64];
} two_cells;

/* A loss as it is, and divided by its value at balance. */
static two_cells loss_text(const moe_dialect *r, enum moe_loss loss) {
    two_cells text;
    double ideal = r->ideal[loss];
    snprintf(text.s, sizeof text.s, "%9.5f%6s", r->loss[loss],
             ideal != 0 ? moe_format_number(r->loss[loss] / ideal, 3).s : "-");
    return text;
}

static void print_losses(const moe_screen *s, const moe_dialect *row, int num_rows) {
    moe_screen_row(s, &loss_table, "  %-23s %-8s%9s%6s%9s%6s%9s%6s\n", "", "scope", "expert",
                   "ratio", "device", "ratio", "comm", "ratio");
    for (int i = 0; i < num_rows; i++) {
        const moe_dialect *r = &row[i];
        if (!ran(r)) {
            continue;
        }
        moe_screen_row(s, &loss_table, "  %-23s %-8s%s%s%s\n", r->name,
                       moe_config_enum_name(MOE_KEY(balance, scope), r->c.balance.scope),
                       loss_text(r, MOE_LOSS_EXPERT).s, loss_text(r, MOE_LOSS_DEVICE).s,
                       loss_text(r, MOE_LOSS_COMM).s);
    }
}

/* The loss that alpha_expert multiplies in a row, and two losses without a column elsewhere. */
static void print_forms(const moe_screen *s, const moe_dialect *row, int num_rows) {
    moe_screen_row(s, &form_table, "  %-23s %-9s%9s%7s%8s%11s%9s\n", "", "form", "loss", "ratio",
                   "alpha", "importance", "z");
    for (int i = 0; i < num_rows; i++) {
        const moe_dialect *r = &row[i];
        enum moe_loss form = trained_form(&r->c);
        if (!ran(r)) {
            continue;
        }
        moe_screen_row(s, &form_table, "  %-23s %-9s%9.5f%7s%8.4g%11s%9s\n", r->name,
                       moe_config_enum_name(MOE_KEY(balance, aux_form), r->c.balance.aux_form),
                       r->loss[form], moe_format_number(r->loss[form] / r->ideal[form], 3).s,
                       r->c.balance.alpha_expert,
                       moe_format_number(r->loss[MOE_LOSS_IMPORTANCE], 5).s,
                       moe_format_number(r->loss[MOE_LOSS_Z], 4).s);
    }
}

static void print_reasons(const moe_screen *s, const moe_dialect *row, int num_rows) {
    bool first = true;
    for (int i = 0; i < num_rows; i++) {
        if (ran(&row[i])) {
            continue;
        }
        if (first) {
            moe_screen_heading(s, "Not with this configuration");
        }
        first = false;
        char label[MOE_NAME_MAX + 2];
        snprintf(label, sizeof label, "  %s", row[i].name);
        moe_screen_wrapped(s, 27, label, "%s", row[i].reason);
    }
}

/* --- where rows disagree by definition --- */

/* Keys by whose definition rows may disagree, and what the values of each mean. */
static const struct {
    enum moe_key_id key;
    const char *sentence;
} definitions[] = {
    {MOE_KEY(router, method),
     "topk and switch take the K best; top_p as many as reach a probability; gshard keeps its "
     "second expert by chance, with probability 2 g2."},
    {MOE_KEY(router, score_func),
     "softmax and softmax_topk rank experts alike; their weights differ (softmax_topk "
     "renormalises over the chosen). sigmoid scores do not compete, and P divides them by their "
     "sum first."},
    {MOE_KEY(router, group_limit),
     "groups are ranked by their best score (max), by the sum of their best two (top2_sum) or of "
     "their best K/M (topk_sum): one very good expert wins for max, several good ones for the "
     "sums. min(M, greedy) holds for max only."},
    {MOE_KEY(balance, aux_form),
     "deepseek divides f by K (1 at balance); mixtral does not (K at balance, so its loss is K "
     "times the expert loss); switch and gshard count first choices only (1 at balance)."},
    {MOE_KEY(balance, aux_layers),
     "mixtral's loss of each layer, or of the tokens of all layers put together, as Hugging "
     "Face's code has it; here, with one layer, both are the same."},
    {MOE_KEY(balance, scope),
     "averages within a sequence, within a device or over the global batch are three different "
     "losses: the mean over sets exceeds the global one by the covariance of f and P over the "
     "sets."},
    {MOE_KEY(balance, device_p),
     "P' of a device is the SUM of its experts' P (1 at balance); the mean makes the device and "
     "the communication loss too small by the number of experts of a device."},
    {MOE_KEY(balance, comm_count),
     "f'' counts distinct TOKENS sent to a device; with selections it is (K/M) f', and the third "
     "loss says nothing that the second does not."},
    {MOE_KEY(balance, aux_selection),
     "f is of the experts that were chosen (actual), or of plain top-K before bias and group "
     "limit (unlimited): the choice is the same, the loss is not."},
    {MOE_KEY(capacity, policy),
     "a capacity is of a device, of an expert or of an expert and sequence: who is dropped "
     "differs, f and P are taken before it everywhere here."},
};

/* Lists the names of the rows that have the value: the configuration first, then the presets. */
static void list_rows(const moe_dialect *row,
                      int num_rows,
                      enum moe_key_id k,
                      const char *value,
                      char *text,
                      size_t room) {
    char own[MOE_VALUE_TEXT_MAX];
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < num_rows && used < room; i++) {
        if (!ran(&row[i]) || (i > 0 && !row[i].is_preset)) {
            continue;
        }
        moe_value_format(&row[i].c, k, own);
        if (strcmp(own, value) == 0) {
            used +=
                (size_t)snprintf(text + used, room - used, "%s%s", used ? ", " : "", row[i].name);
        }
    }
}

static bool disagree(const moe_dialect *row, int num_rows, enum moe_key_id k) {
    char first[MOE_VALUE_TEXT_MAX], other[MOE_VALUE_TEXT_MAX];
    moe_value_format(&row[0].c, k, first);
    for (int i = 1; i < num_rows; i++) {
        if (!ran(&row[i])) {
            continue;
        }
        moe_value_format(&row[i].c, k, other);
        if (strcmp(first, other) != 0) {
            return true;
        }
    }
    return false;
}

/* Counts the presets that have this value. */
static int count_presets(const moe_dialect *row, int num_rows, enum moe_key_id k, int value) {
    char own[MOE_VALUE_TEXT_MAX];
    int count = 0;
    for (int i = 0; i < num_rows; i++) {
        if (!ran(&row[i]) || !row[i].is_preset) {
            continue;
        }
        moe_value_format(&row[i].c, k, own);
        count += strcmp(own, moe_table_enum_name(k, value)) == 0;
    }
    return count;
}

/* Prints which rows have which value. The value that most presets have stands last, without their
 * names. */
static void print_definition(const moe_screen *s,
                             const moe_dialect *row,
                             int num_rows,
                             enum moe_key_id k,
                             const char *sentence) {
    char who[2048] = "", rows[1024];
    int most = 0;
    size_t used = 0;
    for (int value = 0; moe_table_enum_name(k, value); value++) {
        if (count_presets(row, num_rows, k, value) > count_presets(row, num_rows, k, most)) {
            most = value;
        }
    }
    for (int value = 0; moe_table_enum_name(k, value); value++) {
        list_rows(row, num_rows, k, moe_table_enum_name(k, value), rows, sizeof rows);
        if (value == most || !rows[0]) {
            continue;
        }
        used += (size_t)snprintf(who + used, sizeof who - used, "%s: %s; ",
                                 moe_table_enum_name(k, value), rows);
    }
    moe_screen_wrapped(s, 2, "", "%s: %s [%s%s: %s]", moe_keys[k].full, sentence, who,
                       moe_table_enum_name(k, most), used ? "the others" : "all presets");
}

static void print_definitions(const moe_screen *s, const moe_dialect *row, int num_rows) {
    bool limited = false;
    moe_screen_heading(s, "Where they disagree by definition");
    for (size_t i = 0; i < sizeof definitions / sizeof definitions[0]; i++) {
        if (disagree(row, num_rows, definitions[i].key)) {
            print_definition(s, row, num_rows, definitions[i].key, definitions[i].sentence);
        }
    }
    for (int i = 0; i < num_rows; i++) {
        limited |= ran(&row[i]) && row[i].c.router.group_limit != MOE_GROUP_NONE;
    }
    if (limited) {
        moe_screen_wrapped(s, 2, "",
                           "masks: groups left out are masked with -inf here; a mask of 0, as in "
                           "several public codes, lets their experts win as "
                           "soon as score + bias of a kept expert is below 0. Without a negative "
                           "bias both choose the same.");
    }
}

void moe_dialects_show(const moe_dialect *row, int num_rows, int64_t num_tokens) {
    moe_screen s = moe_screen_of(stdout, false);
    const moe_config *c = &row[0].c;
    moe_screen_heading(&s, "Choices: %s tokens, %d experts on %d devices, layer 0, the same logits",
                       moe_format_count(num_tokens).s, c->model.num_experts, c->cluster.devices);
    print_choices(&s, row, num_rows);
    moe_screen_wrapped(&s, 2, "",
                       "K: experts of a token (p: those that reach this probability); common: "
                       "share of the row's selections that the "
                       "configuration's own router chooses too; drop: share that a capacity drops; "
                       "X: devices that a token is sent to; "
                       "MiB: payload of dispatch, rows that stay on their device included.");
    moe_screen_heading(&s, "Losses: raw, in the row's own scope; ratio: by the value at balance");
    print_losses(&s, row, num_rows);
    moe_screen_heading(&s, "The form that alpha_expert trains, with the row's alpha");
    print_forms(&s, row, num_rows);
    print_reasons(&s, row, num_rows);
    print_definitions(&s, row, num_rows);
}
