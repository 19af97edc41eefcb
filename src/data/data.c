/* data.c: the layout of tokens over devices and sequences, and token vectors as pure functions of
 * global ids. A rank computes its own tokens only; whatever the ranks and threads, token t of a
 * step has the same bits. */
#include "data/data.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"

int64_t moe_batch_token_begin(int64_t num_tokens_global, int32_t devices, int32_t d) {
    int64_t more = num_tokens_global % devices;
    return num_tokens_global / devices * d + (d < more ? d : more);
}

/* Cuts the tokens of each local device where sequences end; with segment = NULL only counts the
 * pieces. */
static int64_t moe_batch_cut(const moe_batch *b, moe_segment *segment) {
    int64_t count = 0;
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        int64_t end = b->device_offset[d + 1];
        for (int64_t begin = b->device_offset[d]; begin < end; count++) {
            int64_t sequence = (b->first_token + begin) / b->sequence_length;
            int64_t sequence_end = (sequence + 1) * b->sequence_length - b->first_token;
            int64_t stop = end < sequence_end ? end : sequence_end;
            if (segment) {
                segment[count] = (moe_segment){begin, stop, sequence, b->first_device + d};
            }
            begin = stop;
        }
    }
    return count;
}

void moe_batch_layout(moe_batch *b,
                      int64_t num_tokens_global,
                      int64_t sequence_length,
                      int32_t devices,
                      int rank,
                      int ranks) {
    MOE_ASSERT(num_tokens_global >= 0 && sequence_length >= 0 && ranks > 0 && devices > 0 &&
               devices % ranks == 0);
    int64_t length = sequence_length > 0 && sequence_length < num_tokens_global ? sequence_length
                                                                                : num_tokens_global;
    *b = (moe_batch){.num_tokens_global = num_tokens_global,
                     .sequence_length = length > 0 ? length : 1,
                     .devices = devices};
    b->num_sequences = (num_tokens_global + b->sequence_length - 1) / b->sequence_length;
    b->num_local_devices = devices / ranks;
    b->first_device = rank * b->num_local_devices;
    b->first_token = moe_batch_token_begin(num_tokens_global, devices, b->first_device);
    b->device_offset = moe_alloc(b->num_local_devices + 1, sizeof *b->device_offset, "batch");
    for (int32_t d = 0; d <= b->num_local_devices; d++) {
        b->device_offset[d] =
            moe_batch_token_begin(num_tokens_global, devices, b->first_device + d) - b->first_token;
    }
    b->num_tokens = b->device_offset[b->num_local_devices];
    b->num_segments = moe_batch_cut(b, NULL);
    b->segment = moe_alloc(b->num_segments, sizeof *b->segment, "batch");
    moe_batch_cut(b, b->segment);
}

void moe_batch_free(moe_batch *b) {
    moe_free(b->device_offset);
    moe_free(b->segment);
    moe_free(b->byte);
    *b = (moe_batch){0};
}

static moe_rng moe_data_rng(const moe_config *c, enum moe_rng_stream stream) {
    return (moe_rng){.seed = (uint64_t)c->run.seed, .stream = stream};
}

/* Rows of a keyed random table, of which only those are made that somebody asks for: row i is made
 * once, whoever uses it. */
typedef struct moe_data_table {
    int32_t *slot; /* [num_rows] where row i stands, -1 = nobody needs it */
    real *row;     /* [used][H] */
    int32_t num_rows, used;
    int64_t most; /* that can be asked for */
    int64_t width;
    moe_scratch *scratch;
} moe_data_table;

static moe_data_table moe_data_table_begin(moe_scratch *scratch,
                                           int32_t num_rows,
                                           int64_t most,
                                           int64_t width) {
    moe_data_table t = {.num_rows = num_rows,
                        .most = most < num_rows ? most : num_rows,
                        .width = width,
                        .scratch = scratch};
    t.slot = moe_scratch_take(scratch, num_rows, sizeof *t.slot, "data table");
    for (int32_t i = 0; i < num_rows; i++) {
        t.slot[i] = -1;
    }
    return t;
}

static void moe_data_table_need(moe_data_table *t, int32_t i) {
    if (t->slot[i] < 0) {
        t->slot[i] = t->used++;
    }
}

/* Row i is vector (i / columns, i % columns) of the stream. */
static void moe_data_table_fill(moe_data_table *t, moe_rng rng, int32_t columns, double scale) {
    t->row = moe_scratch_take(t->scratch, t->most * t->width, sizeof *t->row, "data table");
#pragma omp parallel for schedule(dynamic)
    for (int32_t i = 0; i < t->num_rows; i++) {
        if (t->slot[i] >= 0) {
            moe_rng_normal(rng, (uint64_t)(i / columns), (uint64_t)(i % columns), scale,
                           t->row + t->slot[i] * t->width, t->width);
        }
    }
}

static const real *moe_data_table_row(const moe_data_table *t, int32_t i) {
    return t->row + t->slot[i] * t->width;
}

static void moe_data_table_end(moe_data_table *t) {
    moe_scratch_give(t->scratch, t->slot);
    moe_scratch_give(t->scratch, t->row);
}

/* Cumulative Zipf popularity: topic i has weight 1 / (i+1)^skew. */
static double *moe_data_popularity(moe_scratch *scratch, int32_t num_topics, double skew) {
    double *cumulative = moe_scratch_take(scratch, num_topics, sizeof *cumulative, "topics"),
           sum = 0;
    for (int32_t i = 0; i < num_topics; i++) {
        cumulative[i] = sum += pow(i + 1, -skew);
    }
    return cumulative;
}

/* Smallest topic whose cumulative weight is above u times the sum. */
static int32_t moe_data_draw(const double *cumulative, int32_t num_topics, double u) {
    double target = u * cumulative[num_topics - 1];
    int32_t low = 0, high = num_topics - 1;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (cumulative[middle] > target) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* The topic of every local token. */
static void moe_data_topics(const moe_config *c, const moe_batch *b, int64_t step, int32_t *topic) {
    moe_rng of_sequence = moe_data_rng(c, MOE_RNG_TOPIC_OF_SEQUENCE),
            of_token = moe_data_rng(c, MOE_RNG_TOPIC_OF_TOKEN);
    int32_t num_topics = c->data.num_topics;
    double *cumulative = moe_data_popularity(b->scratch, num_topics, c->data.skew);
    for (int64_t s = 0; s < b->num_segments; s++) {
        const moe_segment *segment = &b->segment[s];
        int32_t shared = moe_data_draw(
            cumulative, num_topics,
            moe_rng_uniform(of_sequence, (uint64_t)step, (uint64_t)segment->sequence, 0));
        for (int64_t t = segment->begin; t < segment->end; t++) {
            uint64_t token = (uint64_t)(b->first_token + t);
            bool own =
                moe_rng_uniform(of_token, (uint64_t)step, token, 0) >= c->data.topic_persistence;
            topic[t] = own ? moe_data_draw(cumulative, num_topics,
                                           moe_rng_uniform(of_token, (uint64_t)step, token, 1))
                           : shared;
        }
    }
    moe_scratch_give(b->scratch, cumulative);
}

void moe_data_synthetic(
    const moe_config *c, const moe_batch *b, int64_t step, real *x, int32_t *topic) {
    MOE_ASSERT(c->data.num_topics > 0);
    int64_t width = c->model.hidden_size;
    int32_t *topics =
        topic ? topic : moe_scratch_take(b->scratch, b->num_tokens, sizeof *topics, "topics");
    moe_data_topics(c, b, step, topics);
    moe_data_table centers =
        moe_data_table_begin(b->scratch, c->data.num_topics, b->num_tokens, width);
    for (int64_t t = 0; t < b->num_tokens; t++) {
        moe_data_table_need(&centers, topics[t]);
    }
    moe_data_table_fill(&centers, moe_data_rng(c, MOE_RNG_TOPIC_CENTER), 1,
                        sqrt(c->data.topic_strength));
    moe_rng noise = moe_data_rng(c, MOE_RNG_TOKEN_NOISE);
    double noise_scale = sqrt(1 - c->data.topic_strength);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        const real *center = moe_data_table_row(&centers, topics[t]);
        moe_rng_normal(noise, (uint64_t)step, (uint64_t)(b->first_token + t), noise_scale,
                       x + t * width, width);
        for (int64_t h = 0; h < width; h++) {
            x[t * width + h] += center[h];
        }
    }
    moe_data_table_end(&centers);
    if (!topic) {
        moe_scratch_give(b->scratch, topics);
    }
}

/* The device of a global token: the inverse of moe_batch_token_begin. */
static int32_t moe_data_device_of(const moe_batch *b, int64_t token) {
    int64_t share = b->num_tokens_global / b->devices, more = b->num_tokens_global % b->devices;
    int64_t device = token < more * (share + 1) ? token / (share + 1)
                                                : more + (token - more * (share + 1)) / share;
    return (int32_t)device;
}

int64_t moe_data_text_part(const moe_config *c,
                           const moe_corpus *text,
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
                           : (int64_t)(c->train.validation_share * (double)(end - begin) + 0.5);
    if (split == MOE_SPLIT_VALIDATION) {
        begin = end - held_out;
    } else {
        end -= held_out;
    }
    *length = end - begin;
    return offset + begin;
}

/* Places where a sequence of `needed` bytes can start in a part; its first byte. */
static int64_t moe_data_text_choices(const moe_config *c,
                                     const moe_corpus *text,
                                     const moe_batch *b,
                                     int32_t device,
                                     int32_t domain,
                                     enum moe_split split,
                                     int64_t needed,
                                     int64_t *begin) {
    int64_t length;
    *begin = moe_data_text_part(c, text, b->devices, device, domain, split, &length);
    return length >= needed ? length - needed + 1 : 0;
}

static int64_t moe_data_text_anywhere(const moe_corpus *text,
                                      int64_t needed,
                                      double u,
                                      int32_t *domain) {
    int64_t choices = text->length - needed + 1,
            start = choices > 1 ? (int64_t)(u * (double)choices) : 0;
    *domain = 0;
    while (*domain + 1 < text->num_domains && text->domain_offset[*domain + 1] <= start) {
        ++*domain;
    }
    return start;
}

/* First byte of the stretch of a sequence. */
static int64_t moe_data_text_start(const moe_config *c,
                                   const moe_corpus *text,
                                   const moe_batch *b,
                                   int64_t draw,
                                   enum moe_split split,
                                   int64_t sequence,
                                   int32_t *domain) {
    int32_t device = moe_data_device_of(b, sequence * b->sequence_length);
    int64_t needed = b->sequence_length + (split != MOE_SPLIT_ALL), total = 0, begin;
    double u = moe_rng_uniform(moe_data_rng(c, MOE_RNG_TEXT_START), (uint64_t)draw,
                               (uint64_t)sequence, split == MOE_SPLIT_VALIDATION);
    for (int32_t i = 0; i < text->num_domains; i++) {
        total += moe_data_text_choices(c, text, b, device, i, split, needed, &begin);
    }
    if (total == 0) {
        return moe_data_text_anywhere(text, needed, u, domain);
    }
    int64_t pick = (int64_t)(u * (double)total);
    for (*domain = 0;; ++*domain) {
        int64_t choices = moe_data_text_choices(c, text, b, device, *domain, split, needed, &begin);
        if (pick < choices) {
            return begin + pick;
        }
        pick -= choices;
    }
}

void moe_data_text_sample(const moe_config *c,
                          const moe_corpus *text,
                          int64_t draw,
                          enum moe_split split,
                          moe_batch *b,
                          int64_t *position,
                          uint8_t *next,
                          int32_t *domain) {
    if (!b->byte) {
        b->byte = moe_alloc(b->num_tokens, 1, "text");
    }
    for (int64_t s = 0; s < b->num_segments; s++) {
        const moe_segment *segment = &b->segment[s];
        int32_t from;
        int64_t start = moe_data_text_start(c, text, b, draw, split, segment->sequence, &from);
        start += b->first_token - segment->sequence * b->sequence_length;
        for (int64_t t = segment->begin; t < segment->end; t++) {
            position[t] = (start + t) % text->length;
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

/* Row of the embedding table for the byte j places before a position; before the text's first byte
 * comes its last. */
static int32_t moe_data_text_row(const uint8_t *text, int64_t length, int64_t position, int32_t j) {
    int64_t at = (position - j) % length;
    return j * 256 + text[at < 0 ? at + length : at];
}

void moe_data_text(
    const moe_config *c, const uint8_t *text, int64_t length, int64_t step, moe_batch *b, real *x) {
    int32_t context = c->train.context > 0 ? c->train.context : 1;
    int64_t width = c->model.hidden_size;
    MOE_ASSERT(length > 0);
    int64_t *position = moe_scratch_take(b->scratch, b->num_tokens, sizeof *position, "text"),
            bounds[2] = {0, length};
    moe_data_text_sample(c, &(moe_corpus){text, length, 1, bounds}, step, MOE_SPLIT_ALL, b,
                         position, NULL, NULL);
    moe_data_table table =
        moe_data_table_begin(b->scratch, context * 256, b->num_tokens * context, width);
    for (int64_t t = 0; t < b->num_tokens; t++) {
        for (int32_t j = 0; j < context; j++) {
            moe_data_table_need(&table, moe_data_text_row(text, length, position[t], j));
        }
    }
    moe_data_table_fill(&table, moe_data_rng(c, MOE_RNG_EMBEDDING), 256, 1 / sqrt(context));
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        memcpy(x + t * width,
               moe_data_table_row(&table, moe_data_text_row(text, length, position[t], 0)),
               (size_t)width * sizeof *x);
        for (int32_t j = 1; j < context; j++) {
            const real *row =
                moe_data_table_row(&table, moe_data_text_row(text, length, position[t], j));
            for (int64_t h = 0; h < width; h++) {
                x[t * width + h] += row[h];
            }
        }
    }
    moe_data_table_end(&table);
    moe_scratch_give(b->scratch, position);
}

void moe_data_keyed(const moe_config *c, const moe_batch *b, real *x) {
    int64_t width = c->model.hidden_size;
    moe_rng rng = moe_data_rng(c, MOE_RNG_TOKEN_VECTOR);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        moe_rng_normal(rng, 0, (uint64_t)(b->first_token + t), 1, x + t * width, width);
    }
}
