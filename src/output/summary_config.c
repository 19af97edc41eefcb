/* summary_config.c: the resolved configuration as JSON, from the table of keys. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "config/table.h"
#include "config/value.h"
#include "output/summary.h"
#include "output/summary_internal.h"

/* The value of a key in the type of the key. */
static json_t *typed(enum moe_key_type type, const char *value) {
    json_t *typed_value = NULL;
    if (type == MOE_TYPE_INT32 || type == MOE_TYPE_INT64) {
        typed_value = json_integer(strtoll(value, NULL, 10));
    }
    if (type == MOE_TYPE_DOUBLE) {
        typed_value = json_real(strtod(value, NULL));
    }
    if (type == MOE_TYPE_BOOL) {
        typed_value = json_boolean(!strcmp(value, "yes"));
    }
    if (!typed_value) {
        typed_value = json_string(value);
    }
    return typed_value ? typed_value : json_null();
}

json_t *moe_summary_config(const moe_config *c) {
    char value[MOE_VALUE_TEXT_MAX];
    json_t *all = json_object(), *section = NULL;
    json_object_set_new(all, "name", typed(MOE_TYPE_PATH, c->name));
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        if (moe_table_begins_section(k)) {
            section = json_object();
            json_object_set_new(all, moe_keys[k].section, section);
        }
        moe_value_format(c, k, value);
        json_object_set_new(section, moe_keys[k].name, typed(moe_keys[k].type, value));
    }
    return all;
}
