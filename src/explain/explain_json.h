/* explain_json.h: an explanation and a derivation as explain.json, which the report reads. Layer 4
 * (show): pure. */
#ifndef MOESIM_EXPLAIN_EXPLAIN_JSON_H
#define MOESIM_EXPLAIN_EXPLAIN_JSON_H

#include "config/config.h"
#include "explain/derive.h"
#include "explain/explanation.h"

/* Local. {"version", "token": {..} or null, "step": [..] or null} as text, to be freed with free();
 * either may be NULL. */
char *moe_explain_json(const moe_config *c, const moe_explanation *e, const moe_derivation *d);

#endif
