/* derive_show.c: the derivation on the screen, section by section. */
#include "explain/derive_show.h"

#include <math.h>

#include "output/format.h"

static bool is_shown(const moe_derived *item) {
    return !item->aside || !item->agrees;
}

static moe_formatted value_text(double v) {
    moe_formatted text;
    if (v == floor(v) && fabs(v) < 1e15) {
        return moe_format_count((int64_t)v);
    }
    snprintf(text.s, sizeof text.s, "%.6g", v);
    return text;
}

/* Prints name and value, then "formula = formula with its values". */
static void print_item(const moe_screen *s, const moe_derived *item) {
    fprintf(s->out, "  %s%s", moe_screen_paint(s, MOE_BOLD), item->name);
    if (item->layer > 0) {
        fprintf(s->out, ", layer %d", item->layer);
    }
    if (item->micro_batch >= 0) {
        fprintf(s->out, ", micro-batch %d", item->micro_batch);
    }
    fprintf(s->out, " = %s%s\n", value_text(item->value).s, moe_screen_paint(s, MOE_PLAIN));
    if (!item->agrees) {
        fprintf(s->out, "    %sDISAGREES: %.17g is reported, derived is %.17g%s\n",
                moe_screen_paint(s, MOE_RED), item->reported, item->value,
                moe_screen_paint(s, MOE_PLAIN));
    }
    moe_screen_wrapped(s, 4, "", "%s%s%s", item->formula, item->filled[0] ? " = " : "",
                       item->filled);
}

void moe_derive_show(const moe_screen *s, const moe_derivation *d) {
    int32_t hidden = 0;
    if (s->quiet) {
        return;
    }
    moe_screen_heading(s, "Derivation of the last step's figures");
    moe_screen_wrapped(s, 2, "",
                       "N experts, D devices, T tokens, K experts for each token, S = sum of c_i "
                       "selections, c_i of them of expert i, s' scores "
                       "as the losses use them; each value below is computed again from these and "
                       "compared with the one that is reported");
    for (int section = 0; section < MOE_NUM_DERIVED_SECTIONS; section++) {
        moe_screen_heading(s, "%s", moe_derived_sections[section]);
        for (int32_t i = 0; i < d->count; i++) {
            if ((int)d->item[i].section != section) {
                continue;
            }
            hidden += !is_shown(&d->item[i]);
            if (is_shown(&d->item[i])) {
                print_item(s, &d->item[i]);
            }
        }
    }
    fputc('\n', s->out);
    if (hidden > 0) {
        moe_screen_wrapped(
            s, 2, "",
            "%d more figures, of other layers and micro-batches, were derived in the same way",
            hidden);
    }
    if (d->disagree == 0) {
        fprintf(s->out, "  all %d figures derived, all equal to what is reported\n", d->count);
    } else {
        fprintf(
            s->out,
            "  %d of %d figures derived DISAGREE with what is reported: this is a bug of moesim\n",
            d->disagree, d->count);
    }
    fflush(s->out);
}
