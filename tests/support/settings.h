/* settings.h: the configuration that words "section.key=value" separated by blanks make, for tests
 * and measurements. */
#ifndef MOESIM_TESTS_SETTINGS_H
#define MOESIM_TESTS_SETTINGS_H

#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "config/config.h"
#include "world/comm.h"

static inline void settings_add(moe_config *c, const char *words, moe_status *st) {
    char copy[2048], *rest = copy;
    snprintf(copy, sizeof copy, "%s", words);
    for (char *word = strtok_r(rest, " ", &rest); word; word = strtok_r(rest, " ", &rest)) {
        moe_config_set(c, word, st);
    }
}

/* Local. Defaults, then `common`, then `words`, resolved for a number of ranks; a mistake is the
 * test's own and ends it. */
static inline void settings_resolve(moe_config *c,
                                    const char *common,
                                    const char *words,
                                    int ranks) {
    moe_status st = {0};
    moe_config_defaults(c);
    settings_add(c, common, &st);
    settings_add(c, words, &st);
    moe_config_resolve(c, ranks, &st);
    if (st.code == MOE_OK) {
        return;
    }
    fprintf(stderr, "%s: %s\n", words, st.message);
    moe_comm_abort(1);
}

#endif
