/* window.c: where a sequence's window may begin, which of these places is drawn, and the vectors of
 * the bytes in it. */
#include "data/window.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"
#include "data/keyed.h"

enum { BYTE_VALUES = 256 };

/* --- where a window may begin --- */

int64_t moe_window_part(const moe_corpus *text,
                        int32_t devices,
                        int32_t device,
                        int32_t domain,
                        enum moe_split split,
                        int64_t *length) {
    MOE_ASSERT(domain >= 0 && domain < text->num_domains);
    int64_t offset = text->domain_offset[domain], size = text->domain_offset[domain + 1] - offset;
    int64_t begin = moe_batch_token_begin(size, devices, device),
            end = moe_batch_token_begin(size, devices, device + 1);
    int64_t held_out = split == MOE_SPLIT_ALL
                           ? 0
                           : (int64_t)(text->validation_share * (double)(end - begin) + 0.5);
    if (split == MOE_SPLIT_VALIDATION) {
        begin = end - held_out;
    } else {
        end -= held_out;
    }
    *length = end - begin;
    return offset + begin;
}

/* How many bytes of a device's part of a domain can begin a window of `needed` bytes; *begin
 * receives the first of them. */
static int64_t count_starts(const moe_corpus *text,
                            int32_t devices,
                            int32_t device,
                            int32_t domain,
                            enum moe_split split,
                            int64_t needed,
                            int64_t *begin) {
    int64_t length;
    *begin = moe_window_part(text, devices, device, domain, split, &length);
    return length >= needed ? length - needed + 1 : 0;
}

/* A start anywhere in the text, for a number u in [0,1). */
static int64_t start_anywhere(const moe_corpus *text, int64_t needed, double u, int32_t *domain) {
    int64_t starts = text->length - needed + 1,
            start = starts > 1 ? (int64_t)(u * (double)starts) : 0;
    *domain = 0;
    while (*domain + 1 < text->num_domains && text->domain_offset[*domain + 1] <= start) {
        ++*domain;
    }
    return start;
}

/* A start in the parts that a device reads, for a number u in [0,1). */
static int64_t start_in_parts(const moe_corpus *text,
                              int32_t devices,
                              int32_t device,
                              enum moe_split split,
                              int64_t needed,
                              double u,
                              int32_t *domain) {
    int64_t total = 0, begin;
    for (int32_t i = 0; i < text->num_domains; i++) {
        total += count_starts(text, devices, device, i, split, needed, &begin);
    }
    if (total == 0) {
        return start_anywhere(text, needed, u, domain);
    }
    int64_t pick = (int64_t)(u * (double)total);
    for (*domain = 0;; ++*domain) {
        int64_t starts = count_starts(text, devices, device, *domain, split, needed, &begin);
        if (pick < starts) {
            return begin + pick;
        }
        pick -= starts;
    }
}

/* --- drawing --- */

void moe_window_draw(const moe_corpus *text,
                     int64_t seed,
                     int64_t draw,
                     enum moe_split split,
                     moe_batch *b,
                     int64_t *position,
                     uint8_t *next,
                     int32_t *domain) {
    moe_rng rng = {(uint64_t)seed, MOE_RNG_TEXT_START};
    int64_t needed = b->sequence_length + (split != MOE_SPLIT_ALL);
    if (!b->byte) {
        b->byte = moe_alloc(b->num_tokens, 1, "text");
    }
    for (int64_t s = 0; s < b->num_segments; s++) {
        const moe_segment *segment = &b->segment[s];
        int64_t first = segment->sequence * b->sequence_length;
        double u = moe_rng_uniform(rng, (uint64_t)draw, (uint64_t)segment->sequence,
                                   split == MOE_SPLIT_VALIDATION);
        int32_t from;
        int64_t start = start_in_parts(text, b->devices, moe_batch_device_of(b, first), split,
                                       needed, u, &from);
        for (int64_t t = segment->begin; t < segment->end; t++) {
            position[t] = (start + b->first_token + t - first) % text->length;
            b->byte[t] = text->bytes[position[t]];
            if (next) {
                next[t] = text->bytes[(position[t] + 1) % text->length];
            }
            if (domain) {
                domain[t] = from;
            }
        }
    }
}

/* --- vectors --- */

/* Row of the table for the byte j places before a position. The text's last byte comes before its
 * first. */
static int32_t table_row(const uint8_t *text, int64_t length, int64_t position, int32_t j) {
    int64_t at = (position - j) % length;
    return j * BYTE_VALUES + text[at < 0 ? at + length : at];
}

void moe_window_vectors(const uint8_t *text,
                        int64_t length,
                        int64_t seed,
                        int32_t context,
                        int64_t hidden,
                        int64_t step,
                        moe_batch *b,
                        real *x) {
    MOE_ASSERT(length > 0);
    int32_t depth = context > 0 ? context : 1;
    int64_t bounds[2] = {0, length};
    int64_t *position = moe_scratch_take(b->scratch, b->num_tokens, sizeof *position, "text");
    moe_corpus corpus = {
        .bytes = text, .length = length, .num_domains = 1, .domain_offset = bounds};
    moe_window_draw(&corpus, seed, step, MOE_SPLIT_ALL, b, position, NULL, NULL);
    moe_keyed_table table =
        moe_keyed_table_begin(b->scratch, depth * BYTE_VALUES, b->num_tokens * depth, hidden);
    for (int64_t t = 0; t < b->num_tokens; t++) {
        for (int32_t j = 0; j < depth; j++) {
            moe_keyed_table_need(&table, table_row(text, length, position[t], j));
        }
    }
    moe_keyed_table_fill(&table, (moe_rng){(uint64_t)seed, MOE_RNG_EMBEDDING}, BYTE_VALUES,
                         1 / sqrt(depth));
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        memcpy(x + t * hidden, moe_keyed_table_row(&table, table_row(text, length, position[t], 0)),
               (size_t)hidden * sizeof *x);
        for (int32_t j = 1; j < depth; j++) {
            const real *row = moe_keyed_table_row(&table, table_row(text, length, position[t], j));
            for (int64_t h = 0; h < hidden; h++) {
                x[t * hidden + h] += row[h];
            }
        }
    }
    moe_keyed_table_end(&table);
    moe_scratch_give(b->scratch, position);
}
