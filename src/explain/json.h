/* json.h: an explanation and a derivation as explain.json, which the report reads. */
#ifndef MOESIM_EXPLAIN_JSON_H
#define MOESIM_EXPLAIN_JSON_H

#include "config/config.h"
#include "explain/derivation.h"
#include "explain/explanation.h"

/* Local. The text {"version", "token": {..} or null, "step": [..] or null}. e and d may be NULL.
 * Owner: the caller, free(). */
char *moe_explain_json(const moe_config *c, const moe_explanation *e, const moe_derivation *d);

#endif
