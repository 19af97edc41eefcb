/* config.c: the configuration from bytes and from the command line.
 *
 * inih splits lines into section, key and value; the reader in front of it hands it one clean line
 * at a time, because inih itself cuts lines at 200 and sections at 50 characters without a word and
 * takes an indented key for a continuation of the line above. Rules of a line: leading and trailing
 * blanks do not count; ';' and '#' start a comment at the start of a line and after a blank (so
 * that a path may contain them); CRLF and a UTF-8 byte order mark are fine; a NUL byte, an
 * over-long line and anything that is neither section, nor key, nor comment is refused. A value
 * that would not fit inih's line is kept aside and handed over by the reader. */
#include "config/config.h"

#include <ini.h>
#include <string.h>

#include "config/table.h"

enum { LONGEST_LINE = MOE_PATH_MAX + 2 * MOE_NAME_MAX };

typedef struct reader {
    moe_config *c;
    moe_status *st;
    const char *bytes;
    int64_t length, at;
    const char *file_name;
    int32_t line; /* number of the line handed out last */
    bool in_section;
    char text[LONGEST_LINE + 1]; /* that line, cleaned */
    const char *aside;           /* its value when it does not fit inih's buffer */
} reader;

void moe_config_defaults(moe_config *c) {
    moe_status st = {0};
    memset(c, 0, sizeof *c);
    for (int k = 0; k < moe_num_keys; k++) {
        moe_key_set(c, k, moe_keys[k].default_text, "default", &st);
    }
    MOE_ASSERT(st.code == MOE_OK);
    c->segmented.parts = 1;
    snprintf(c->name, sizeof c->name, "moesim");
}

static int fail_line(const reader *r, const char *sentence) {
    char place[MOE_PLACE_TEXT_MAX], quoted[68];
    moe_hint_place(r->file_name, r->line, place);
    moe_hint_quote(r->text, quoted);
    return moe_fail(r->st, MOE_USER, "%s: %s%s%s", place, quoted, quoted[0] != '\0' ? ": " : "",
                    sentence);
}

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f';
}

/* Shortens [*begin, return value) by blanks at both ends and by a comment. */
static const char *clean_line(const char **begin, const char *end) {
    while (*begin < end && is_blank(**begin)) {
        (*begin)++;
    }
    for (const char *at = *begin; at < end; at++) {
        if ((*at == ';' || *at == '#') && (at == *begin || is_blank(at[-1]))) {
            end = at;
        }
    }
    while (end > *begin && is_blank(end[-1])) {
        end--;
    }
    return end;
}

/* A section's line: complete, nothing behind it, and known. */
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
    return moe_key_section_known(name) ? MOE_OK : moe_key_unknown_section(name, place, r->st);
}

/* The next line of the bytes into r->text, cleaned (empty for a comment). False at the end and on
 * failure. */
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
    if (r->text[0] == '\0') {
        return true;
    }
    if (r->text[0] == '[') {
        return check_section(r) == MOE_OK;
    }
    if (strpbrk(r->text, "=:") == NULL) {
        return fail_line(r, "this is neither a [section], nor key = value, nor a comment") ==
               MOE_OK;
    }
    if (!r->in_section) {
        return fail_line(r, "a key has to stand in a [section]") == MOE_OK;
    }
    return true;
}
_Static_assert(LONGEST_LINE == 1152, "the sentence above says so");

/* inih's reader: like fgets. */
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

/* inih's handler: one key. */
static int take_key(void *user, const char *section, const char *name, const char *value) {
    reader *r = user;
    char place[MOE_PLACE_TEXT_MAX];
    const int k = moe_key_find(section, name);
    moe_hint_place(r->file_name, r->line, place);
    if (k < 0) {
        return moe_key_unknown(section, name, place, r->st) == MOE_OK;
    }
    if (r->c->place[k] > 0) {
        moe_fail(r->st, MOE_USER, "%s: %s.%s is given twice, first in line %d", place, section,
                 name, r->c->place[k]);
        return 0;
    }
    if (moe_key_set(r->c, k, r->aside != NULL ? r->aside : value, place, r->st) != MOE_OK) {
        return 0;
    }
    r->c->place[k] = r->line;
    r->c->given[k] = 1;
    return 1;
}

/* The configuration's name: its file's, without folder and .ini. */
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

int moe_config_parse(
    moe_config *c, const char *bytes, int64_t length, const char *file_name, moe_status *st) {
    reader r = {.c = c, .st = st, .bytes = bytes, .length = length, .file_name = file_name};
    snprintf(c->file, sizeof c->file, "%s", file_name);
    set_name(c, file_name);
    const int bad_line = ini_parse_stream(read_line, &r, take_key, &r);
    if (bad_line != 0 && st->code == MOE_OK) {
        return fail_line(&r, "this line cannot be read");
    }
    return st->code;
}

int moe_config_set(moe_config *c, const char *assignment, moe_status *st) {
    char quoted[68], name[MOE_KEY_TEXT_MAX];
    const char *equals = strchr(assignment, '=');
    moe_hint_quote(assignment, quoted);
    if (equals == NULL) {
        return moe_fail(st, MOE_USER, "--set: %s: an assignment is written as section.key=value",
                        quoted);
    }
    const char *begin = assignment, *end = clean_line(&begin, equals);
    const int k = moe_key_find_full(begin, (size_t)(end - begin));
    if (k < 0) {
        snprintf(name, sizeof name, "%.*s", (int)(end - begin), begin);
        char *dot = strchr(name, '.');
        if (dot == NULL) {
            return moe_key_unknown("", name, "--set", st);
        }
        *dot = '\0';
        return moe_key_section_known(name) ? moe_key_unknown(name, dot + 1, "--set", st)
                                           : moe_key_unknown_section(name, "--set", st);
    }
    char value[LONGEST_LINE + 1];
    begin = equals + 1;
    end = begin + strlen(begin);
    while (begin < end && is_blank(*begin)) {
        begin++;
    }
    while (end > begin && is_blank(end[-1])) {
        end--;
    }
    snprintf(value, sizeof value, "%.*s",
             (int)(end - begin < LONGEST_LINE ? end - begin : LONGEST_LINE), begin);
    if (moe_key_set(c, k, value, "--set", st) != MOE_OK) {
        return st->code;
    }
    c->place[k] = MOE_PLACE_SET;
    c->given[k] = 1;
    return MOE_OK;
}

bool moe_config_given(const moe_config *c, const char *key) {
    const int k = moe_key_find_full(key, strlen(key));
    MOE_ASSERT(k >= 0);
    return c->given[k] != 0;
}

const char *moe_config_enum_name(const char *key, int value) {
    const int k = moe_key_find_full(key, strlen(key));
    MOE_ASSERT(k >= 0 && moe_keys[k].type == MOE_KEY_ENUM && moe_key_enum_name(k, value) != NULL);
    return moe_key_enum_name(k, value);
}
