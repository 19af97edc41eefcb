/* summary_text.c: the two ends of summary.c: the table of keys turned into JSON, and JSON turned into text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moesim/config_table.h"
#include "moesim/status.h"
#include "moesim/summary.h"

enum { JSON_FORMAT = JSON_REAL_PRECISION(17) | JSON_ENCODE_ANY, SHORT_LINE = 120 };

/* A key's value with its own type. */
static json_t *typed(enum moe_key_type type, const char *value) {
    json_t *typed_value = NULL;
    if (type == MOE_KEY_INT32 || type == MOE_KEY_INT64) typed_value = json_integer(strtoll(value, NULL, 10));
    if (type == MOE_KEY_DOUBLE) typed_value = json_real(strtod(value, NULL));
    if (type == MOE_KEY_BOOL) typed_value = json_boolean(!strcmp(value, "yes"));
    if (!typed_value) typed_value = json_string(value);
    return typed_value ? typed_value : json_null();
}

json_t *moe_summary_config(const moe_config *c) {
    char value[MOE_VALUE_TEXT_MAX];
    json_t *all = json_object(), *section = NULL;
    json_object_set_new(all, "name", typed(MOE_KEY_PATH, c->name));
    for (int k = 0; k < moe_num_keys; k++) {
        if (k == 0 || strcmp(moe_keys[k].section, moe_keys[k - 1].section) != 0) {
            section = json_object();
            json_object_set_new(all, moe_keys[k].section, section);
        }
        moe_key_format(c, k, value);
        json_object_set_new(section, moe_keys[k].name, typed(moe_keys[k].type, value));
    }
    return all;
}

char *moe_summary_line(const json_t *value) {
    char *text = json_dumps(value, JSON_FORMAT);
    if (!text) moe_out_of_memory("the summary's text", 0);
    return text;
}

/* What stays on one line however long: strings and numbers, and arrays of them. */
static bool is_plain(const json_t *value) {
    for (size_t i = 0; i < json_array_size(value); i++)
        if (json_is_object(json_array_get(value, i)) || json_is_array(json_array_get(value, i))) return false;
    return !json_is_object(value);
}

static void write_indented(FILE *out, const json_t *value, int depth) {
    char *line = moe_summary_line(value);
    const char *key;
    json_t *item, *object = (json_t *)value;
    size_t i = 0;
    if (strlen(line) <= SHORT_LINE || is_plain(value))
        fputs(line, out);
    else if (json_is_array(value)) {
        fputs("[", out);
        json_array_foreach(value, i, item) {
            fprintf(out, "%s\n%*s", i ? "," : "", depth + 1, "");
            write_indented(out, item, depth + 1);
        }
        fprintf(out, "\n%*s]", depth, "");
    } else {
        fputs("{", out);
        json_object_foreach(object, key, item) {
            json_t *name = json_string(key);
            char *quoted = moe_summary_line(name);
            fprintf(out, "%s\n%*s%s: ", i++ ? "," : "", depth + 1, "", quoted);
            write_indented(out, item, depth + 1);
            free(quoted);
            json_decref(name);
        }
        fprintf(out, "\n%*s}", depth, "");
    }
    free(line);
}

char *moe_summary_indented(const json_t *value) {
    char *text = NULL;
    size_t length = 0;
    FILE *memory = open_memstream(&text, &length);
    if (!memory) moe_out_of_memory("the summary's text", 0);
    write_indented(memory, value, 0);
    fputc('\n', memory);
    if (fclose(memory) != 0) moe_out_of_memory("the summary's text", length);
    return text;
}
