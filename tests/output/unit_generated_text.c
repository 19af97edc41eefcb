/* unit_generated_text.c: whatever bytes a model says, what is shown is UTF-8 without control
 * characters, and a character is shown when it is whole. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "output/generated_text.h"

#define UNKNOWN "\xEF\xBF\xBD"

/* The bytes as they are shown. */
static char *shown(const char *bytes, size_t length) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    moe_text_stream t = {.have = 0};
    for (size_t i = 0; i < length; i++) {
        moe_text_stream_put(&t, (uint8_t)bytes[i], out);
    }
    moe_text_stream_end(&t, out);
    fclose(out);
    return text;
}

static void test_bytes(void) {
    static const struct {
        const char *bytes, *wanted;
    } rows[] = {
        {"plain text\n\tand more", "plain text\n\tand more"},
        {"\x1b[2J\x07\x7f", UNKNOWN "[2J" UNKNOWN UNKNOWN},
        {"\xC3\xA4 \xE2\x82\xAC \xF0\x9F\x98\x80", "\xC3\xA4 \xE2\x82\xAC \xF0\x9F\x98\x80"},
        {"\xC2\x9B", UNKNOWN},         /* a control character of two bytes */
        {"\xC0\xAF", UNKNOWN UNKNOWN}, /* '/' in a form that is too long, */
        {"\xE0\x80\xAF", UNKNOWN},     /* and in one that is longer still */
        {"\xED\xA0\x80", UNKNOWN},     /* a surrogate */
        {"\xF4\x90\x80\x80", UNKNOWN}, /* beyond the last character */
        {"\xE2\x82"
         "a",
         UNKNOWN "a"},         /* broken off by another one, */
        {"\xE2\x82", UNKNOWN}, /* and by the end */
        {"\x80\xFF", UNKNOWN UNKNOWN},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *text = shown(rows[i].bytes, strlen(rows[i].bytes));
        CHECK_STR(text, rows[i].wanted);
        free(text);
    }
    char *zero = shown("a\0b", 3);
    CHECK_STR(zero, "a" UNKNOWN "b");
    free(zero);
}

static void test_sequences(void) {
    uint8_t text[] = "abc...de....";
    int64_t length[] = {3, 2};
    const moe_generated_texts all = {
        .sequences = 2, .room = 6, .per_device = 1, .text = text, .length = length};
    char *whole = moe_generated_text(&all);
    CHECK_STR(whole, "=== sequence 0, device 0 ===\nabc\n=== sequence 1, device 1 ===\nde\n");
    free(whole);
}

int main(void) {
    RUN(test_bytes);
    RUN(test_sequences);
    return check_verdict();
}
