/* summary_text.c: the two ends of summary.c: the configuration's own text turned into JSON, and JSON turned into text.
 * The configuration is read back from moe_config_print, so that its table of keys stays the only one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moesim/status.h"
#include "moesim/summary.h"

enum { JSON_FORMAT = JSON_REAL_PRECISION(17) | JSON_ENCODE_ANY, SHORT_LINE = 120 };

static json_t *typed(const char *value) {
    char *end;
    if (!strcmp(value, "yes") || !strcmp(value, "no")) return json_boolean(!strcmp(value, "yes"));
    errno = 0;
    long long whole = strtoll(value, &end, 10);
    if (*value && !*end && errno == 0) return json_integer(whole);
    double number = strtod(value, &end);
    json_t *real = *value && !*end ? json_real(number) : NULL;
    if (real) return real;
    json_t *string = json_string(value);
    return string ? string : json_null();
}

/* Cuts blanks at both ends; returns where the text begins. */
static char *trim(char *s) {
    s += strspn(s, " \t");
    for (size_t n = strlen(s); n > 0 && strchr(" \t\r\n", s[n - 1]); n--)
        s[n - 1] = '\0';
    return s;
}

/* One line of INI: "[section]" opens an object, "key = value ; comment" goes into the open one. */
static void add_line(json_t *all, json_t **section, char *line) {
    line = trim(line);
    char *equals = strchr(line, '='), *comment = strstr(line, " ;");
    if (*line == ';' || *line == '#' || *line == '\0') return;
    if (*line == '[') {
        line[strcspn(line, "]")] = '\0';
        *section = json_object();
        json_object_set_new(all, line + 1, *section);
    } else if (equals && *section) {
        if (comment) *comment = '\0';
        *equals = '\0';
        json_object_set_new(*section, trim(line), typed(trim(equals + 1)));
    }
}

json_t *moe_summary_config(const moe_config *c) {
    char *text = NULL, *rest;
    size_t length = 0;
    FILE *memory = open_memstream(&text, &length);
    if (!memory) moe_out_of_memory("the configuration's text", MOE_PATH_MAX);
    moe_config_print(c, memory);
    if (fclose(memory) != 0) moe_out_of_memory("the configuration's text", length);

    json_t *all = json_object(), *section = NULL;
    json_object_set_new(all, "name", typed(c->name));
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        add_line(all, &section, line);
    free(text);
    return all;
}

char *moe_summary_line(const json_t *value) {
    char *text = json_dumps(value, JSON_FORMAT);
    if (!text) moe_out_of_memory("the summary's text", 0);
    return text;
}

static bool is_plain_array(const json_t *value) {
    for (size_t i = 0; i < json_array_size(value); i++)
        if (json_is_object(json_array_get(value, i)) || json_is_array(json_array_get(value, i))) return false;
    return json_is_array(value);
}

static void write_indented(FILE *out, const json_t *value, int depth) {
    char *line = moe_summary_line(value);
    const char *key;
    json_t *item, *object = (json_t *)value;
    size_t i = 0;
    if (strlen(line) <= SHORT_LINE || is_plain_array(value))
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
