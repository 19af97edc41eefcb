/* chart.c: bars and the device matrix, in block characters where the locale is UTF-8 and in ASCII
 * otherwise. All widths are counted in columns. */
#include "output/chart.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

enum { NAME_WIDTH = 14, NUM_SHADES = 5 };

moe_chart_blocks moe_chart_blocks_of(int32_t devices, int32_t devices_per_node) {
    moe_chart_blocks b = {devices, 1, devices, false};
    if (devices <= MOE_MOST_BLOCKS) {
        return b;
    }
    int32_t per_node = devices_per_node > 0 ? devices_per_node : devices;
    int32_t nodes = (devices + per_node - 1) / per_node;
    b.by_node = nodes >= 2 && nodes <= MOE_MOST_BLOCKS;
    b.size = b.by_node ? per_node : (devices + MOE_MOST_BLOCKS - 1) / MOE_MOST_BLOCKS;
    b.count = (devices + b.size - 1) / b.size;
    return b;
}

static int32_t block_begin(const moe_chart_blocks *b, int32_t block) {
    return block * b->size;
}
static int32_t block_end(const moe_chart_blocks *b, int32_t block) {
    return (block + 1) * b->size < b->devices ? (block + 1) * b->size : b->devices;
}

moe_formatted moe_chart_block_name(const moe_chart_blocks *b, int32_t block) {
    moe_formatted text;
    int32_t begin = block_begin(b, block), end = block_end(b, block);
    if (end - begin == 1) {
        snprintf(text.s, sizeof text.s, "dev %d", begin);
    } else {
        snprintf(text.s, sizeof text.s, "dev %d-%d", begin, end - 1);
    }
    return text;
}

void moe_chart_bar(const moe_screen *s, double share, int width) {
    static const char *const eighths[] = {"",       "\u258f", "\u258e", "\u258d",
                                          "\u258c", "\u258b", "\u258a", "\u2589"};
    int parts = (int)lround(fmin(fmax(share, 0), 1) * width * 8);
    int full = s->utf8 ? parts / 8 : (parts + 4) / 8, rest = s->utf8 ? parts % 8 : 0;
    for (int i = 0; i < full; i++) {
        fputs(s->utf8 ? "\u2588" : "#", s->out);
    }
    fprintf(s->out, "%s%*s", eighths[rest], width - full - (rest > 0), "");
}

static int64_t sum_of(const int64_t *x, int64_t n) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += x[i];
    }
    return sum;
}

static int32_t fullest(const int64_t *x, int32_t begin, int32_t end) {
    int32_t best = begin;
    for (int32_t i = begin + 1; i < end; i++) {
        if (x[i] > x[best]) {
            best = i;
        }
    }
    return best;
}

static double block_mean(const moe_chart_blocks *b, int32_t block, const int64_t *x) {
    int32_t begin = block_begin(b, block), end = block_end(b, block);
    return (double)sum_of(x + begin, end - begin) / (end - begin);
}

static void bar_line(const moe_screen *s,
                     const moe_chart_blocks *b,
                     int32_t block,
                     const int64_t *load,
                     const int64_t *rows,
                     double mean,
                     double top,
                     int width) {
    double value = block_mean(b, block, load);
    fprintf(s->out, "  %-*s", NAME_WIDTH - 2, moe_chart_block_name(b, block).s);
    moe_chart_bar(s, top > 0 ? value / top : 0, width);
    fprintf(s->out, " %13s %7.3f", moe_format_count(llround(value)).s, mean > 0 ? value / mean : 1);
    if (b->size > 1) {
        int32_t most = fullest(load, block_begin(b, block), block_end(b, block));
        fprintf(s->out, " %13s (dev %d)\n", moe_format_count(load[most]).s, most);
    } else {
        fprintf(s->out, " %13s\n", moe_format_count(rows[block]).s);
    }
}

void moe_chart_bars(const moe_screen *s,
                    const moe_chart_blocks *b,
                    const int64_t *load,
                    const int64_t *rows) {
    double mean = (double)sum_of(load, b->devices) / b->devices, top = mean;
    for (int32_t i = 0; i < b->count; i++) {
        top = fmax(top, block_mean(b, i, load));
    }
    bool several = b->size > 1;
    int width = s->width - NAME_WIDTH - 22 - 14 - (several ? 10 : 0),
        mark = top > 0 ? (int)lround(mean / top * width) : width;
    mark = mark < 1 ? 0 : mark - 1;
    fprintf(s->out, "%*s%*s%s%*s %13s %7s %13s\n", NAME_WIDTH, "", mark, "",
            s->utf8 ? "\u25bc" : "v", width - mark - 1, "", several ? "mean" : "selections",
            "x mean", several ? "most" : "rows received");
    for (int32_t i = 0; i < b->count; i++) {
        bar_line(s, b, i, load, rows, mean, top, width);
    }
}

/* --- the matrix --- */

typedef struct grid { /* the matrix summed by blocks */
    const moe_chart_blocks *blocks;
    int32_t n;
    int64_t cell[MOE_MOST_BLOCKS][MOE_MOST_BLOCKS], from[MOE_MOST_BLOCKS], to[MOE_MOST_BLOCKS],
        total;
} grid;

static void grid_sum(grid *g, const moe_chart_blocks *b, const moe_sparse *matrix) {
    memset(g, 0, sizeof *g);
    g->blocks = b;
    g->n = b->count;
    for (int64_t i = 0; i < matrix->num_cells; i++) {
        int32_t from = matrix->cell[i].row / b->size, to = matrix->cell[i].column / b->size;
        int64_t rows = matrix->cell[i].count;
        g->cell[from][to] += rows;
        g->from[from] += rows;
        g->to[to] += rows;
        g->total += rows;
    }
}

/* How many columns the widest number in a vector of n needs. */
static int columns_of(const int64_t *x, int32_t n) {
    int columns = 1;
    for (int32_t i = 0; i < n; i++) {
        int length = (int)strlen(moe_format_count(x[i]).s);
        columns = length > columns ? length : columns;
    }
    return columns;
}

static int cell_columns(const grid *g) {
    int columns = columns_of(g->to, g->n);
    for (int32_t i = 0; i < g->n; i++) {
        int length = columns_of(g->cell[i], g->n);
        columns = length > columns ? length : columns;
    }
    return columns;
}

/* Pairs of blocks may have different sizes only at the end; the shade compares rows per pair of
 * devices. */
static int shade_of(const grid *g, int32_t from, int32_t to) {
    static const double bounds[NUM_SHADES - 1] = {0.5, 0.8, 1.25, 2};
    const moe_chart_blocks *b = g->blocks;
    double pairs = (double)(block_end(b, from) - block_begin(b, from)) *
                   (block_end(b, to) - block_begin(b, to));
    double mean = (double)g->total / b->devices / b->devices,
           ratio = mean > 0 ? (double)g->cell[from][to] / pairs / mean : 1;
    int shade = 0;
    while (shade < NUM_SHADES - 1 && ratio >= bounds[shade]) {
        shade++;
    }
    return shade;
}

static const char *shade_text(const moe_screen *s, int shade) {
    static const char *const ascii[NUM_SHADES] = {".", ":", "+", "#", "@"};
    static const char *const blocks[NUM_SHADES] = {"\u00b7", "\u2591", "\u2592", "\u2593",
                                                   "\u2588"};
    return s->utf8 ? blocks[shade] : ascii[shade];
}

static void print_numbers(const moe_screen *s, const grid *g, int columns) {
    fprintf(s->out, "  %-*s", NAME_WIDTH - 2, "from \\ to");
    for (int32_t to = 0; to < g->n; to++) {
        fprintf(s->out, " %*d", columns, block_begin(g->blocks, to));
    }
    fprintf(s->out, " %*s\n", columns_of(&g->total, 1), "sum");
    for (int32_t from = 0; from < g->n; from++) {
        fprintf(s->out, "  %-*s", NAME_WIDTH - 2, moe_chart_block_name(g->blocks, from).s);
        for (int32_t to = 0; to < g->n; to++) {
            bool heavy = shade_of(g, from, to) == NUM_SHADES - 1;
            fprintf(s->out, " %s%*s%s", heavy ? moe_screen_paint(s, MOE_YELLOW) : "", columns,
                    moe_format_count(g->cell[from][to]).s,
                    heavy ? moe_screen_paint(s, MOE_PLAIN) : "");
        }
        fprintf(s->out, " %*s\n", columns_of(&g->total, 1), moe_format_count(g->from[from]).s);
    }
    fprintf(s->out, "  %-*s", NAME_WIDTH - 2, "sum");
    for (int32_t to = 0; to < g->n; to++) {
        fprintf(s->out, " %*s", columns, moe_format_count(g->to[to]).s);
    }
    fprintf(s->out, " %s\n", moe_format_count(g->total).s);
}

static void print_legend(const moe_screen *s, const grid *g) {
    static const char *const ranges[NUM_SHADES] = {"<0.5", "<0.8", "<1.25", "<2", ">=2"};
    char text[256];
    double mean = (double)g->total / g->blocks->devices / g->blocks->devices;
    int length =
        snprintf(text, sizeof text, "shades: rows of a pair of devices / their mean, %.1f:", mean);
    for (int i = 0; i < NUM_SHADES; i++) {
        length += snprintf(text + length, sizeof text - (size_t)length, " %s\t%s", shade_text(s, i),
                           ranges[i]);
    }
    moe_screen_wrapped(s, 2, "", "%s", text);
}

static void print_shades(const moe_screen *s, const grid *g) {
    fprintf(s->out, "  %-*s", NAME_WIDTH - 2, "from \\ to");
    for (int32_t to = 0; to < g->n; to++) {
        fprintf(s->out, "%3d", g->blocks->size == 1 ? to : to % 100);
    }
    fprintf(s->out, " %14s\n", "rows sent");
    for (int32_t from = 0; from < g->n; from++) {
        fprintf(s->out, "%2d %-*s", from, NAME_WIDTH - 3, moe_chart_block_name(g->blocks, from).s);
        for (int32_t to = 0; to < g->n; to++) {
            const char *shade = shade_text(s, shade_of(g, from, to));
            fprintf(s->out, " %s%s", shade, shade);
        }
        fprintf(s->out, " %14s\n", moe_format_count(g->from[from]).s);
    }
    print_legend(s, g);
}

void moe_chart_matrix(const moe_screen *s, const moe_chart_blocks *b, const moe_sparse *matrix) {
    grid g;
    grid_sum(&g, b, matrix);
    int columns = cell_columns(&g), total = columns_of(&g.total, 1);
    if (NAME_WIDTH + g.n * (columns + 1) + 1 + total <= s->width) {
        print_numbers(s, &g, columns);
    } else {
        print_shades(s, &g);
    }
}
