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
        moe_out_of_memory("an object of JSON", 0);
    }
}

static void append(json_t *list, json_t *value) {
    if (json_array_append_new(list, value) != 0) {
        moe_out_of_memory("a list of numbers", 0);
    }
}

json_t *moe_json_number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *moe_json_integers(const int64_t *values, int64_t n) {
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) {
        append(list, json_integer(values[i]));
    }
    return list;
}

json_t *moe_json_numbers(const double *values, int64_t n) {
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) {
        append(list, moe_json_number(values[i]));
    }
    return list;
}

json_t *moe_json_text(const char *value) {
    json_t *string = json_string(value);
    if (string) {
        return string;
    }
    char *plain = strdup(value);
    for (char *p = plain; p && *p; p++) {
        if ((unsigned char)*p >= 0x80) {
            *p = '?';
        }
    }
    string = plain ? json_string(plain) : json_null();
    free(plain);
    return string;
}

char *moe_json_line(const json_t *value) {
    char *text = json_dumps(value, JSON_FORMAT);
    if (!text) {
        moe_out_of_memory("a result's text", 0);
    }
    return text;
}

/* Whether a value stays on one line however long it is: strings, numbers, and arrays of them. */
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
