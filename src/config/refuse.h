/* refuse.h: sentences that refuse the value of a key of a configuration beside the other keys. */
#ifndef MOESIM_CONFIG_REFUSE_H
#define MOESIM_CONFIG_REFUSE_H

#include "base/status.h"
#include "config/sections.h"

/* Local. Fails with "place: section.key = value: sentence", where place says where the value came
 * from: "file:line", "--set", "preset NAME" or "default". */
int moe_refuse_key(const moe_config *c,
                   enum moe_key_id key,
                   moe_status *st,
                   const char *format,
                   ...) MOE_PRINTF(4, 5);

/* Local. Fails about two keys that do not go together. The one that the user wrote is shown with
 * its place, the other one with its value; `consistent` says what would go together. */
int moe_refuse_pair(const moe_config *c,
                    enum moe_key_id key,
                    enum moe_key_id other,
                    const char *consistent,
                    moe_status *st);

/* Two keys that do not go together when `broken` is true, and what would be consistent. */
typedef struct moe_pair_rule {
    bool broken;
    enum moe_key_id key, other;
    const char *consistent;
} moe_pair_rule;

/* Local. What moe_refuse_pair does for the first broken one of `num` rules; MOE_OK where none is.
 */
int moe_refuse_pairs(const moe_config *c, const moe_pair_rule *rules, size_t num, moe_status *st);

/* Local. Of two keys that do not go together the one that the user wrote: the first one when both
 * were given, or neither. */
enum moe_key_id moe_refuse_written(const moe_config *c,
                                   enum moe_key_id first,
                                   enum moe_key_id second);

#endif
