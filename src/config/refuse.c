/* refuse.c: sentences that refuse the value of a key beside the other keys. */
#include "config/refuse.h"

#include <stdarg.h>
#include <stdio.h>

#include "config/hint.h"
#include "config/table.h"
#include "config/value.h"

/* Where the value of a key comes from: "file:line", "--set", "preset NAME",
 * "cluster.file NAME" or "default". */
static void place_of_key(const moe_config *c, enum moe_key_id key, char place[MOE_PLACE_TEXT_MAX]) {
    const int32_t from = c->place[key];
    if (from > 0) {
        moe_hint_place(c->file, from, place);
    } else if (from == MOE_PLACE_PRESET) {
        snprintf(place, MOE_PLACE_TEXT_MAX, "preset %s", c->router.preset);
    } else if (from == MOE_PLACE_CLUSTER) {
        snprintf(place, MOE_PLACE_TEXT_MAX, "cluster.file %.200s", c->cluster.file);
    } else {
        snprintf(place, MOE_PLACE_TEXT_MAX, "%s", from == MOE_PLACE_SET ? "--set" : "default");
    }
}

int moe_refuse_key(const moe_config *c,
                   enum moe_key_id key,
                   moe_status *st,
                   const char *format,
                   ...) {
    char place[MOE_PLACE_TEXT_MAX], value[MOE_VALUE_TEXT_MAX], quoted[MOE_QUOTE_MAX], sentence[400];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    place_of_key(c, key, place);
    moe_value_format(c, key, value);
    moe_hint_quote(value, quoted);
    return moe_fail(st, MOE_USER, "%s: %s = %s: %s", place, moe_keys[key].full, quoted, sentence);
}

int moe_refuse_pair(const moe_config *c,
                    enum moe_key_id key,
                    enum moe_key_id other,
                    const char *consistent,
                    moe_status *st) {
    char value[MOE_VALUE_TEXT_MAX];
    const enum moe_key_id shown = moe_refuse_written(c, key, other);
    const enum moe_key_id beside = shown == key ? other : key;
    moe_value_format(c, beside, value);
    return moe_refuse_key(c, shown, st, "it does not go with %s = %.60s: %s", moe_keys[beside].full,
                          value, consistent);
}

int moe_refuse_pairs(const moe_config *c, const moe_pair_rule *rules, size_t num, moe_status *st) {
    for (size_t i = 0; i < num; i++) {
        if (rules[i].broken) {
            return moe_refuse_pair(c, rules[i].key, rules[i].other, rules[i].consistent, st);
        }
    }
    return MOE_OK;
}

enum moe_key_id moe_refuse_written(const moe_config *c,
                                   enum moe_key_id first,
                                   enum moe_key_id second) {
    return !c->given[first] && c->given[second] ? second : first;
}
