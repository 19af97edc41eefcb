/* config.c: the configuration from bytes and from the command line.
 *
 * The library inih splits lines into section, key and value. The reader in front of it hands it one
 * clean line at a time, because inih itself cuts lines at 200 and sections at 50 characters without
 * a word and takes an indented key for a continuation of the line above. These are the rules of a
 * line: blanks at both ends do not count; ';' and '#' start a comment at the start of a line and
 * after a blank (so that a path may contain them); CRLF and a UTF-8 byte order mark are fine; a NUL
 * byte, a line that is too long, and anything that is neither a section, nor a key, nor a comment
 * is refused. A value that would not fit into inih's line is kept aside by the reader. */
#include "config/config.h"

#include <ini.h>
#include <string.h>

#include "config/hint.h"
#include "config/table.h"
#include "config/value.h"

enum { LONGEST_LINE = MOE_PATH_MAX + 2 * MOE_NAME_MAX, KEY_TEXT_MAX = 2 * MOE_NAME_MAX };
_Static_assert(LONGEST_LINE == 1152, "the sentence of next_line about a long line says so");

typedef struct reader {
    moe_config *c;
    moe_status *st;
    const char *bytes;
    int64_t length, at;
    const char *file_name;
    int32_t line; /* the number of the line that was handed out last */
    bool in_section;
    char text[LONGEST_LINE + 1]; /* that line, cleaned */
    const char *aside;           /* its value when that does not fit inih's buffer, else NULL */
} reader;

void moe_config_defaults(moe_config *c) {
    moe_status st = {0};
    memset(c, 0, sizeof *c);
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        moe_value_set(c, k, moe_keys[k].default_text, "default", &st);
    }
    MOE_ASSERT(st.code == MOE_OK);
    c->segmented.parts = 1;
    snprintf(c->name, sizeof c->name, "moesim");
}

/* --- lines of the file --- */

static int fail_line(const reader *r, const char *sentence) {
    char place[MOE_PLACE_TEXT_MAX], quoted[MOE_QUOTE_MAX];
    moe_hint_place(r->file_name, r->line, place);
    moe_hint_quote(r->text, quoted);
    return moe_fail(r->st, MOE_USER, "%s: %s%s%s", place, quoted, quoted[0] != '\0' ? ": " : "",
                    sentence);
}

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f';
}

/* Takes blanks at both ends off the text from *begin to end. Moves *begin, returns the new end. */
static const char *trim(const char **begin, const char *end) {
    while (*begin < end && is_blank(**begin)) {
        (*begin)++;
    }
    while (end > *begin && is_blank(end[-1])) {
        end--;
    }
    return end;
}

/* The same for blanks and a comment. */
static const char *clean_line(const char **begin, const char *end) {
    end = trim(begin, end);
    for (const char *at = *begin; at < end; at++) {
        if ((*at == ';' || *at == '#') && (at == *begin || is_blank(at[-1]))) {
            end = at;
        }
    }
    return trim(begin, end);
}

/* Refuses a section's line that is not complete, has something behind it, or is not known. */
static int check_section(reader *r) {
    char place[MOE_PLACE_TEXT_MAX], name[LONGEST_LINE + 1];
    const size_t length = strcspn(r->text + 1, "]");
    if (r->text[1 + length] != ']') {
        return fail_line(r, "a section is written as [name]");
    }
    if (r->text[2 + length] != '\0') {
        return fail_line(r, "nothing but a comment may follow a section in its line");
    }
    memcpy(name, r->text + 1, length);
    name[length] = '\0';
    r->in_section = true;
    moe_hint_place(r->file_name, r->line, place);
    return moe_table_has_section(name) ? MOE_OK : moe_hint_unknown_section(name, place, r->st);
}

/* Refuses a cleaned line that is neither empty, nor a known section, nor a key in a section. */
static int check_line(reader *r) {
    if (r->text[0] == '\0') {
        return MOE_OK;
    }
    if (r->text[0] == '[') {
        return check_section(r);
    }
    if (strpbrk(r->text, "=:") == NULL) {
        return fail_line(r, "this is neither a [section], nor key = value, nor a comment");
    }
    return r->in_section ? MOE_OK : fail_line(r, "a key has to stand in a [section]");
}

/* Puts the next line of the bytes into r->text, cleaned (empty for a comment). Returns false at the
 * end and on failure. */
static bool next_line(reader *r) {
    if (r->at == 0 && r->length >= 3 && memcmp(r->bytes, "\xEF\xBB\xBF", 3) == 0) {
        r->at = 3;
    }
    if (r->at >= r->length || r->st->code != MOE_OK) {
        return false;
    }
    const char *begin = r->bytes + r->at,
               *newline = memchr(begin, '\n', (size_t)(r->length - r->at));
    const char *end = newline != NULL ? newline : r->bytes + r->length;
    r->at = end - r->bytes + 1;
    r->line++;
    r->text[0] = '\0';
    r->aside = NULL;
    if (memchr(begin, '\0', (size_t)(end - begin)) != NULL) {
        return fail_line(r, "the line contains a NUL byte, which text does not") == MOE_OK;
    }
    end = clean_line(&begin, end);
    if (end - begin > LONGEST_LINE) {
        return fail_line(r, "the line is too long, at most 1152 characters are allowed") == MOE_OK;
    }
    memcpy(r->text, begin, (size_t)(end - begin));
    r->text[end - begin] = '\0';
    return check_line(r) == MOE_OK;
}

/* What inih calls for a line; it works like fgets. */
static char *read_line(char *out, int capacity, void *stream) {
    reader *r = stream;
    if (!next_line(r)) {
        return NULL;
    }
    const size_t length = strlen(r->text), room = (size_t)capacity - 2;
    if (length <= room) {
        snprintf(out, (size_t)capacity, "%s\n", r->text);
        return out;
    }
    const size_t name = strcspn(r->text, "=:");
    if (r->text[0] == '[' || name + 2 > room) {
        fail_line(r, "the name is too long");
        return NULL;
    }
    r->aside = r->text + name + 1 + strspn(r->text + name + 1, " \t");
    snprintf(out, (size_t)capacity, "%.*s= \n", (int)name, r->text);
    return out;
}

/* --- keys --- */

/* What inih calls for a key; it returns 0 on failure. */
static int take_key(void *user, const char *section, const char *name, const char *value) {
    reader *r = user;
    char place[MOE_PLACE_TEXT_MAX];
    const enum moe_key_id k = moe_table_find(section, name);
    moe_hint_place(r->file_name, r->line, place);
    if (k == MOE_KEY_NONE) {
        return moe_hint_unknown_key(section, name, place, r->st) == MOE_OK;
    }
    if (r->c->place[k] > 0) {
        moe_fail(r->st, MOE_USER, "%s: %s is given twice, first in line %d", place,
                 moe_keys[k].full, r->c->place[k]);
        return 0;
    }
    if (moe_value_set(r->c, k, r->aside != NULL ? r->aside : value, place, r->st) != MOE_OK) {
        return 0;
    }
    r->c->place[k] = r->line;
    r->c->given[k] = 1;
    return 1;
}

/* The name of the configuration is that of its file, without folder and .ini. */
static void set_name(moe_config *c, const char *file_name) {
    const char *slash = strrchr(file_name, '/');
    const char *base = slash != NULL ? slash + 1 : file_name;
    snprintf(c->name, sizeof c->name, "%s", base);
    char *dot = strrchr(c->name, '.');
    if (dot != NULL && dot != c->name) {
        *dot = '\0';
    }
    for (char *at = c->name; *at != '\0'; at++) {
        if ((unsigned char)*at < 32 || *at == 127) {
            *at = '_';
        }
    }
}

int moe_config_parse(moe_config *c,
                     const char *bytes,
                     int64_t length,
                     const char *file_name,
                     moe_status *st) {
    reader r = {.c = c, .st = st, .bytes = bytes, .length = length, .file_name = file_name};
    snprintf(c->file, sizeof c->file, "%s", file_name);
    set_name(c, file_name);
    const int bad_line = ini_parse_stream(read_line, &r, take_key, &r);
    if (bad_line != 0 && st->code == MOE_OK) {
        return fail_line(&r, "this line cannot be read");
    }
    return st->code;
}

/* A key of --set that does not exist; its name reaches from begin to end. */
static int unknown_key(const char *begin, const char *end, moe_status *st) {
    char name[KEY_TEXT_MAX];
    snprintf(name, sizeof name, "%.*s", (int)(end - begin), begin);
    char *dot = strchr(name, '.');
    if (dot == NULL) {
        return moe_hint_unknown_key("", name, "--set", st);
    }
    *dot = '\0';
    return moe_table_has_section(name) ? moe_hint_unknown_key(name, dot + 1, "--set", st)
                                       : moe_hint_unknown_section(name, "--set", st);
}

int moe_config_set(moe_config *c, const char *assignment, moe_status *st) {
    char quoted[MOE_QUOTE_MAX], value[LONGEST_LINE + 1];
    const char *equals = strchr(assignment, '=');
    if (equals == NULL || equals == assignment) {
        moe_hint_quote(assignment, quoted);
        return moe_fail(st, MOE_USER, "--set: %s: an assignment is written as section.key=value",
                        quoted);
    }
    const char *begin = assignment, *end = clean_line(&begin, equals);
    const enum moe_key_id k = moe_table_find_full(begin, (size_t)(end - begin));
    if (k == MOE_KEY_NONE) {
        return unknown_key(begin, end, st);
    }
    begin = equals + 1;
    end = trim(&begin, begin + strlen(begin));
    snprintf(value, sizeof value, "%.*s",
             (int)(end - begin < LONGEST_LINE ? end - begin : LONGEST_LINE), begin);
    return moe_value_override(c, k, value, st);
}

bool moe_config_given(const moe_config *c, enum moe_key_id key) {
    return c->given[key] != 0;
}

const char *moe_config_enum_name(enum moe_key_id key, int value) {
    const char *name = moe_table_enum_name(key, value);
    MOE_ASSERT(name != NULL);
    return name;
}
