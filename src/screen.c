/* screen.c: looks at the stream once, so that everything else only asks what it may do. Piped output has no colour and no control character. */
#include "moesim/screen.h"

#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { PIPED_WIDTH = 80, LEAST_WIDTH = 60, MOST_WIDTH = 100 };

static bool is_utf8(void) {
    setlocale(LC_CTYPE, "");
    const char *codeset = nl_langinfo(CODESET);
    return !strcmp(codeset, "UTF-8") || !strcmp(codeset, "utf8");
}

static int terminal_width(int descriptor) {
    struct winsize size;
    const char *columns = getenv("COLUMNS");
    int width = columns ? atoi(columns) : 0;
    if (width <= 0 && ioctl(descriptor, TIOCGWINSZ, &size) == 0) width = size.ws_col;
    if (width <= 0) return PIPED_WIDTH;
    return width < LEAST_WIDTH ? LEAST_WIDTH : width > MOST_WIDTH ? MOST_WIDTH : width;
}

moe_screen moe_screen_of(FILE *out, bool quiet) {
    moe_screen s = {.out = out, .quiet = quiet, .width = PIPED_WIDTH, .utf8 = is_utf8()};
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    s.terminal = isatty(fileno(out)) && !(term && !strcmp(term, "dumb"));
    s.color = s.terminal && !(no_color && *no_color);
    if (s.terminal) s.width = terminal_width(fileno(out));
    return s;
}

const char *moe_screen_paint(const moe_screen *s, enum moe_paint paint) {
    static const char *const codes[] = {"\033[0m", "\033[1m", "\033[2m", "\033[32m", "\033[33m", "\033[31m"};
    return s->color ? codes[paint] : "";
}

void moe_screen_heading(const moe_screen *s, const char *format, ...) {
    va_list arguments;
    fprintf(s->out, "\n%s", moe_screen_paint(s, MOE_BOLD));
    va_start(arguments, format);
    vfprintf(s->out, format, arguments);
    va_end(arguments);
    fprintf(s->out, "%s\n", moe_screen_paint(s, MOE_PLAIN));
}

void moe_screen_wrapped(const moe_screen *s, int indent, const char *label, const char *format, ...) {
    char text[2048], *rest;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);

    int column = fprintf(s->out, "%-*s", indent, label);
    bool fresh = true;
    for (char *word = strtok_r(text, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
        int length = (int)strlen(word);
        if (!fresh && column + 1 + length > s->width) {
            fprintf(s->out, "\n%*s", indent, "");
            column = indent;
            fresh = true;
        }
        fprintf(s->out, "%s%s", fresh ? "" : " ", word);
        column += length + !fresh;
        fresh = false;
    }
    fputc('\n', s->out);
}

moe_text moe_text_count(int64_t n) {
    moe_text text = {""};
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)(n < 0 ? -n : n)), at = 0;
    if (n < 0) text.s[at++] = '-';
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) text.s[at++] = ',';
        text.s[at++] = digits[i];
    }
    return text;
}

moe_text moe_text_bytes(int64_t n) {
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    moe_text text;
    double value = (double)n / 1024;
    int unit = 0;
    for (; unit < 5 && value >= 1023.95; unit++)
        value /= 1024;
    if (n < 1024)
        snprintf(text.s, sizeof text.s, "%lld B", (long long)n);
    else
        snprintf(text.s, sizeof text.s, "%.*f %s", value < 9.995 ? 2 : 1, value, units[unit]);
    return text;
}

moe_text moe_text_seconds(double seconds) {
    moe_text text;
    if (seconds < 0.9995)
        snprintf(text.s, sizeof text.s, "%.3g ms", seconds * 1e3);
    else if (seconds < 99.95)
        snprintf(text.s, sizeof text.s, "%.3g s", seconds);
    else
        snprintf(text.s, sizeof text.s, "%lld min %02lld s", (long long)round(seconds) / 60, (long long)round(seconds) % 60);
    return text;
}

moe_text moe_text_number(double value, int decimals) {
    moe_text text;
    if (!isfinite(value))
        snprintf(text.s, sizeof text.s, "-");
    else if (fabs(value) < 1e9)
        snprintf(text.s, sizeof text.s, "%.*f", decimals, value);
    else
        snprintf(text.s, sizeof text.s, "%.*e", decimals, value);
    return text;
}
