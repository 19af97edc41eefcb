/* terminal_shared.c: what several parts of the screen's text have in common. */
#include <math.h>
#include <stdio.h>

#include "output/terminal_internal.h"

bool moe_terminal_is_text(const moe_config *c) {
    return c->data.source == MOE_SOURCE_TEXT;
}

void moe_terminal_erase_line(const moe_screen *s) {
    if (s->terminal) {
        fputs("\r\033[K", s->out);
    }
}

moe_formatted moe_terminal_layers(const moe_step_metrics *m, const char *how) {
    moe_formatted text = {""};
    if (m->num_layers > 1) {
        snprintf(text.s, sizeof text.s, ", %s of %d layers", how, m->num_layers);
    }
    return text;
}

bool moe_terminal_has_losses(const moe_step_metrics *m) {
    return !isnan(m->layer[0].loss_raw[MOE_LOSS_EXPERT]);
}
