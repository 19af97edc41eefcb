/* prompts.h: the bytes that a run which generates continues (run.mode = generate). */
#ifndef MOESIM_DATA_PROMPTS_H
#define MOESIM_DATA_PROMPTS_H

#include <stdint.h>

#include "base/status.h"
#include "config/config.h"
#include "world/comm.h"

typedef struct moe_prompts {
    int64_t num, longest; /* bytes of the longest one */
    int64_t *begin;       /* [num + 1] prompt i has the bytes begin[i] .. begin[i + 1] - 1 */
    uint8_t *bytes;
} moe_prompts;

/* Collective. generate.prompt with its escapes, or the lines of generate.prompts, empty ones left
 * out. MOE_USER, agreed by all ranks, when an escape is unknown, the file cannot be read or has no
 * such line, or when a prompt is longer than `most` bytes. Owner: the caller, moe_prompts_free,
 * also on failure. */
int moe_prompts_read(const moe_comm *comm,
                     const moe_config *c,
                     int64_t most,
                     moe_prompts *p,
                     moe_status *st);
void moe_prompts_free(moe_prompts *p);

/* Local. The prompt of a sequence, which the sequences take in turn. */
static inline const uint8_t *moe_prompts_of(const moe_prompts *p,
                                            int64_t sequence,
                                            int64_t *length) {
    const int64_t i = sequence % p->num;
    *length = p->begin[i + 1] - p->begin[i];
    return p->bytes + p->begin[i];
}

#endif
