/* json.c: a JSON value as text. */
#include "output/json.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

enum { JSON_FORMAT = JSON_REAL_PRECISION(17) | JSON_ENCODE_ANY, SHORT_LINE = 120 };

void moe_json_put(json_t *object, const char *key, json_t *value) {
    if (json_object_set_new(object, key, value) != 0) {
        moe_out_of_memory("the summary", 0);
    }
}

json_t *moe_json_number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

char *moe_json_line(const json_t *value) {
    char *text = json_dumps(value, JSON_FORMAT);
    if (!text) {
        moe_out_of_memory("a result's text", 0);
    }
    return text;
}

/* What stays on one line however long: strings and numbers, and arrays of them. */
static bool is_plain(const json_t *value) {
    for (size_t i = 0; i < json_array_size(value); i++) {
        if (json_is_object(json_array_get(value, i)) || json_is_array(json_array_get(value, i))) {
            return false;
        }
    }
    return !json_is_object(value);
}

static void write_indented(FILE *out, const json_t *value, int depth) {
    char *line = moe_json_line(value);
    const char *key;
    json_t *item, *object = (json_t *)value;
    size_t i = 0;
    if (strlen(line) <= SHORT_LINE || is_plain(value)) {
        fputs(line, out);
    } else if (json_is_array(value)) {
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
            char *quoted = moe_json_line(name);
            fprintf(out, "%s\n%*s%s: ", i++ ? "," : "", depth + 1, "", quoted);
            write_indented(out, item, depth + 1);
            free(quoted);
            json_decref(name);
        }
        fprintf(out, "\n%*s}", depth, "");
    }
    free(line);
}

char *moe_json_indented(const json_t *value) {
    char *text = NULL;
    size_t length = 0;
    FILE *memory = open_memstream(&text, &length);
    if (!memory) {
        moe_out_of_memory("a result's text", 0);
    }
    write_indented(memory, value, 0);
    fputc('\n', memory);
    if (fclose(memory) != 0) {
        moe_out_of_memory("a result's text", length);
    }
    return text;
}
