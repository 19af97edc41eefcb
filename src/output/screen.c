/* screen.c: looks at the stream once, so that everything else only has to ask what it may do. Piped
 * output has no colour and no control character. */
#include "output/screen.h"

#include <fcntl.h>
#include <langinfo.h>
#include <limits.h>
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

/* Open MPI gives the first rank a pseudo-terminal even when mpirun's own output is piped, so what
 * counts is where the launcher writes to. This function looks for a launcher among the parents of
 * the process: path becomes the launcher's standard output, or "" when there is no launcher. */
static void find_launcher_output(char *path, size_t capacity) {
    static const char *const launchers[] = {"mpirun",  "mpiexec", "orterun", "orted",
                                            "prterun", "prted",   NULL};
    path[0] = '\0';
    long pid = (long)getppid();
    for (int depth = 0; depth < 32 && pid > 1; depth++) {
        char file_name[64], line[256], name[64] = "";
        long parent = 0;
        snprintf(file_name, sizeof file_name, "/proc/%ld/status", pid);
        FILE *file = fopen(file_name, "r");
        while (file && fgets(line, sizeof line, file) && parent == 0) {
            if (sscanf(line, "Name: %63s", name) != 1 && sscanf(line, "PPid: %ld", &parent) != 1) {
                parent = 0;
            }
        }
        if (file) {
            fclose(file);
        }
        for (int i = 0; launchers[i]; i++) {
            if (!strcmp(name, launchers[i])) {
                snprintf(path, capacity, "/proc/%ld/fd/1", pid);
            }
        }
        if (path[0]) {
            return;
        }
        pid = parent;
    }
}

/* Opens the terminal that the stream's text ends up on. The caller closes the descriptor; it is -1
 * when the text does not end up on a terminal. */
static int open_terminal(FILE *out) {
    char path[64] = "", target[256];
    if (!isatty(fileno(out))) {
        return -1;
    }
    find_launcher_output(path, sizeof path);
    if (!path[0]) {
        return dup(fileno(out));
    }
    ssize_t length = readlink(path, target, sizeof target - 1);
    target[length > 0 ? length : 0] = '\0';
    if (strncmp(target, "/dev/", 5) != 0) {
        return -1;
    }
    int descriptor = open(target, O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0 || isatty(descriptor)) {
        return descriptor;
    }
    close(descriptor);
    return -1;
}

static int terminal_columns(int descriptor) {
    struct winsize size;
    const char *columns = getenv("COLUMNS");
    int width = columns ? atoi(columns) : 0;
    if (width <= 0 && ioctl(descriptor, TIOCGWINSZ, &size) == 0) {
        width = size.ws_col;
    }
    return width <= 0 ? PIPED_WIDTH : width < LEAST_WIDTH ? LEAST_WIDTH : width;
}

moe_screen moe_screen_of(FILE *out, bool quiet) {
    moe_screen s = {
        .out = out, .quiet = quiet, .width = PIPED_WIDTH, .columns = INT_MAX, .utf8 = is_utf8()};
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    int terminal = open_terminal(out);
    s.terminal = terminal >= 0 && !(term && !strcmp(term, "dumb"));
    s.color = s.terminal && !(no_color && *no_color);
    if (s.terminal) {
        s.columns = terminal_columns(terminal);
    }
    if (s.terminal) {
        s.width = s.columns < MOST_WIDTH ? s.columns : MOST_WIDTH;
    }
    if (terminal >= 0) {
        close(terminal);
    }
    return s;
}

const char *moe_screen_paint(const moe_screen *s, enum moe_paint paint) {
    static const char *const codes[] = {"\033[0m",  "\033[1m",  "\033[2m",
                                        "\033[32m", "\033[33m", "\033[31m"};
    return s->color ? codes[paint] : "";
}

void moe_screen_wrapped(const moe_screen *s,
                        int indent,
                        const char *label,
                        const char *format,
                        ...) {
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
        for (char *tab = word; (tab = strchr(tab, '\t'));) {
            *tab = ' ';
        }
        fprintf(s->out, "%s%s", fresh ? "" : " ", word);
        column += length + !fresh;
        fresh = false;
    }
    fputc('\n', s->out);
}

void moe_screen_heading(const moe_screen *s, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(s->out, "\n%s", moe_screen_paint(s, MOE_BOLD));
    moe_screen_wrapped(s, 0, "", "%s", text);
    fputs(moe_screen_paint(s, MOE_PLAIN), s->out);
}

/* Takes `width` characters at `at` out of the text, as far as it has them. */
static void take_out(char *text, int at, int width) {
    int length = (int)strlen(text);
    if (at >= length) {
        return;
    }
    int rest = at + width < length ? at + width : length;
    memmove(text + at, text + rest, (size_t)(length - rest) + 1);
}

void moe_screen_row(const moe_screen *s, const moe_table *table, const char *format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    bool ends = line[strcspn(line, "\n")] != '\0';
    line[strcspn(line, "\n")] = '\0';
    for (int i = 0, width = table->width; width > s->columns && i < 8 && table->least[i].width > 0;
         i++) {
        int before = 0; /* columns that were taken out left of this one */
        for (int j = 0; j < i; j++) {
            before += table->least[j].at < table->least[i].at ? table->least[j].width : 0;
        }
        take_out(line, table->least[i].at - before, table->least[i].width);
        width -= table->least[i].width;
    }
    fprintf(s->out, "%s%s", line, ends ? "\n" : "");
}
