/* checkpoint_table.c: the layout of the sections, the table as text and back, and how two tables
 * differ. No MPI, no files. The table of the run that reads and the table in the file are made the
 * same way, so that comparing them is comparing fields. */
#include "train/checkpoint_table.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/checksum.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "checkpoints are little-endian");

enum { SLICE_BYTES = 1 << 20, VERSION = 1, HEADER_BYTES_MAX = 1 << 30 };
enum { AT_CHECKSUM = 8, AT_VERSION = 16, AT_FILE_BYTES = 24, AT_TEXT_BYTES = 32 };

static const char magic[8] = {'M', 'O', 'E', 'S', 'I', 'M', 'C', 'K'};
static const char *const part_names[MOE_NUM_PARTS] = {"value", "m", "v", "blob"};

/* --- layout --- */

/* Puts section s behind the sections before it. Returns false when its numbers have no meaning, or
 * when the sections would have more than `most` bytes. */
static bool place_section(moe_checkpoint_table *t, moe_section *s, int64_t most) {
    int64_t element = s->part == MOE_PART_BLOB ? 1 : t->real_bytes;
    if (s->count < 0 || s->size < 0 || __builtin_mul_overflow(s->size, element, &s->block_bytes)) {
        return false;
    }
    if (s->columns < 0 || (s->columns > 0 && s->size % s->columns != 0)) {
        return false;
    }
    if (__builtin_mul_overflow(s->count, s->block_bytes, &s->bytes) || s->bytes > most - t->bytes) {
        return false;
    }
    s->num_blocks = s->count;
    if (!s->expert) {
        s->block_bytes = SLICE_BYTES;
        s->num_blocks = s->bytes / SLICE_BYTES + (s->bytes % SLICE_BYTES != 0);
    }
    s->offset = t->bytes;
    s->first = t->num_blocks;
    t->bytes += s->bytes;
    return !__builtin_add_overflow(t->num_blocks, s->num_blocks, &t->num_blocks);
}

int64_t moe_checkpoint_table_block(const moe_section *s, int64_t block, int64_t *bytes) {
    int64_t start = block * s->block_bytes;
    *bytes = s->bytes - start < s->block_bytes ? s->bytes - start : s->block_bytes;
    return s->offset + start;
}

static void add_section(moe_checkpoint_table *t, moe_section s, const char *name) {
    MOE_ASSERT(strlen(name) < sizeof s.name);
    memcpy(s.name, name, strlen(name));
    bool placed = place_section(t, &s, INT64_MAX);
    MOE_ASSERT(placed);
    t->section[t->num++] = s;
}

static void add_parameter(moe_checkpoint_table *t, const moe_parameter *p) {
    real *const data[] = {p->value, p->m, p->v};
    for (int part = MOE_PART_VALUE; part <= MOE_PART_V; part++) {
        moe_section s = {
            .part = part, .expert = p->expert, .count = p->count_global, .size = p->size};
        s.columns = p->columns;
        s.data = (char *)data[part];
        s.id = p->id;
        s.held = p->count;
        if (part == MOE_PART_VALUE || data[part]) {
            add_section(t, s, p->name);
        }
    }
}

static void add_blob(moe_checkpoint_table *t, const moe_blob *b) {
    const bool matrix = b->columns > 0;
    moe_section s = {.part = matrix ? MOE_PART_VALUE : MOE_PART_BLOB,
                     .count = 1,
                     .size = matrix ? b->bytes / (int64_t)sizeof(real) : b->bytes,
                     .columns = b->columns,
                     .data = b->data};
    add_section(t, s, b->name);
}

void moe_checkpoint_table_make(moe_checkpoint_table *t,
                               const moe_parameters *all,
                               const moe_blob *blobs,
                               int num_blobs) {
    memset(t, 0, sizeof *t);
    t->real_bytes = sizeof(real);
    t->section =
        moe_alloc(3 * (int64_t)all->num + num_blobs, sizeof *t->section, "table of a checkpoint");
    for (int i = 0; i < all->num; i++) {
        add_parameter(t, &all->p[i]);
    }
    for (int i = 0; i < num_blobs; i++) {
        add_blob(t, &blobs[i]);
    }
    t->checksum = moe_alloc_zero(t->num_blocks, sizeof *t->checksum, "checksums of a checkpoint");
}

void moe_checkpoint_table_free(moe_checkpoint_table *t) {
    moe_free(t->section);
    moe_free(t->checksum);
    moe_free(t->header);
    memset(t, 0, sizeof *t);
}

/* --- as text --- */

static json_t *section_object(const moe_checkpoint_table *t, const moe_section *s) {
    json_t *sums = json_array();
    char digits[17];
    for (int64_t b = 0; b < s->num_blocks; b++) {
        snprintf(digits, sizeof digits, "%016" PRIx64, t->checksum[s->first + b]);
        json_array_append_new(sums, json_string(digits));
    }
    return json_pack("{s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:o}", "name", s->name, "part",
                     part_names[s->part], "expert", (int)s->expert, "count", (json_int_t)s->count,
                     "size", (json_int_t)s->size, "columns", (json_int_t)s->columns, "offset",
                     (json_int_t)s->offset, "checksums", sums);
}

static char *table_text(const moe_checkpoint_table *t) {
    json_t *sections = json_array();
    for (int i = 0; i < t->num; i++) {
        json_array_append_new(sections, section_object(t, &t->section[i]));
    }
    json_t *o = json_pack("{s:s, s:I, s:i, s:o}", "program", "moesim " MOESIM_VERSION, "step",
                          (json_int_t)t->step, "real", t->real_bytes, "sections", sections);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    if (!text) {
        moe_out_of_memory("the header of a checkpoint", 0);
    }
    json_decref(o);
    return text;
}

static void put_u64(char *header, int at, uint64_t value) {
    memcpy(header + at, &value, sizeof value);
}

static uint64_t get_u64(const char *header, int at) {
    uint64_t value;
    memcpy(&value, header + at, sizeof value);
    return value;
}

char *moe_checkpoint_table_print(const moe_checkpoint_table *t,
                                 const moe_config *c,
                                 int64_t *length) {
    char *header = NULL, *texts = table_text(t);
    size_t size = 0;
    FILE *memory = open_memstream(&header, &size);
    if (!memory) {
        moe_out_of_memory("the header of a checkpoint", 0);
    }
    fprintf(memory, "%*s%s%c%s%c", MOE_CHECKPOINT_PREAMBLE, "", texts, 0, c->name, 0);
    moe_config_print(c, memory);
    fputc(0, memory);
    if (fclose(memory) != 0) {
        moe_out_of_memory("the header of a checkpoint", size);
    }
    free(texts);
    memcpy(header, magic, sizeof magic);
    put_u64(header, AT_VERSION, VERSION);
    put_u64(header, AT_FILE_BYTES, size + (uint64_t)t->bytes);
    put_u64(header, AT_TEXT_BYTES, size - MOE_CHECKPOINT_PREAMBLE);
    put_u64(header, AT_CHECKSUM, moe_checksum(header + AT_VERSION, (int64_t)size - AT_VERSION));
    *length = (int64_t)size;
    return header;
}

/* --- and back --- */

int moe_checkpoint_table_preamble(const char preamble[MOE_CHECKPOINT_PREAMBLE],
                                  int64_t file_bytes,
                                  int64_t *header_bytes,
                                  moe_status *why) {
    uint64_t version = get_u64(preamble, AT_VERSION);
    uint64_t whole = get_u64(preamble, AT_FILE_BYTES);
    uint64_t texts = get_u64(preamble, AT_TEXT_BYTES);
    if (memcmp(preamble, magic, sizeof magic) != 0) {
        return moe_fail(why, MOE_USER, "it does not begin like a checkpoint");
    }
    if (version != VERSION) {
        return moe_fail(why, MOE_USER, "its format has version %" PRIu64 ", this program reads %d",
                        version, VERSION);
    }
    if (whole != (uint64_t)file_bytes) {
        return moe_fail(why, MOE_USER, "it has %" PRId64 " bytes instead of %" PRIu64, file_bytes,
                        whole);
    }
    if (texts > HEADER_BYTES_MAX || texts + MOE_CHECKPOINT_PREAMBLE > whole) {
        return moe_fail(why, MOE_USER, "its header is damaged");
    }
    *header_bytes = (int64_t)texts + MOE_CHECKPOINT_PREAMBLE;
    return MOE_OK;
}

static bool parse_checksums(moe_checkpoint_table *t, const moe_section *s, const json_t *sums) {
    if (!json_is_array(sums) || json_array_size(sums) != (uint64_t)s->num_blocks) {
        return false;
    }
    for (int64_t b = 0; b < s->num_blocks; b++) {
        const char *digits = json_string_value(json_array_get(sums, (size_t)b));
        if (!digits || strlen(digits) != 16 || digits[strspn(digits, "0123456789abcdef")]) {
            return false;
        }
        t->checksum[s->first + b] = strtoull(digits, NULL, 16);
    }
    return true;
}

static bool parse_part(const char *name, enum moe_part *part) {
    for (int i = 0; i < MOE_NUM_PARTS; i++) {
        *part = i;
        if (strcmp(name, part_names[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* Appends the section that o describes. There is memory for the checksums of `most_blocks` blocks,
 * and the file has `most` bytes of data. */
static bool parse_section(moe_checkpoint_table *t, json_t *o, int64_t most_blocks, int64_t most) {
    moe_section s = {.part = MOE_PART_VALUE};
    const char *name, *part;
    int expert;
    json_int_t count, size, columns = 0, offset;
    json_t *sums;
    if (json_unpack(o, "{s:s, s:s, s:b, s:I, s:I, s?I, s:I, s:o}", "name", &name, "part", &part,
                    "expert", &expert, "count", &count, "size", &size, "columns", &columns,
                    "offset", &offset, "checksums", &sums) != 0) {
        return false;
    }
    if (strlen(name) >= sizeof s.name || !parse_part(part, &s.part)) {
        return false;
    }
    memcpy(s.name, name, strlen(name));
    s.expert = expert;
    s.count = count;
    s.size = size;
    s.columns = columns;
    if (!place_section(t, &s, most) || t->num_blocks > most_blocks || s.offset != offset) {
        return false;
    }
    t->section[t->num++] = s;
    return parse_checksums(t, &s, sums);
}

/* The sections may name no more blocks than there are checksums in the text, which bounds what is
 * allocated by the length of the text. */
static bool parse_table(moe_checkpoint_table *t, json_t *o, int64_t most) {
    json_int_t step, real_bytes;
    json_t *sections, *s;
    size_t i;
    int64_t most_blocks = 0;
    if (json_unpack(o, "{s:I, s:I, s:o}", "step", &step, "real", &real_bytes, "sections",
                    &sections) != 0) {
        return false;
    }
    if (step < 0 || (real_bytes != 4 && real_bytes != 8) || !json_is_array(sections) ||
        json_array_size(sections) > INT32_MAX) {
        return false;
    }
    t->step = step;
    t->real_bytes = (int32_t)real_bytes;
    json_array_foreach(sections, i, s) {
        most_blocks += (int64_t)json_array_size(json_object_get(s, "checksums"));
    }
    t->section =
        moe_alloc((int64_t)json_array_size(sections), sizeof *t->section, "table of a checkpoint");
    t->checksum = moe_alloc_zero(most_blocks, sizeof *t->checksum, "checksums of a checkpoint");
    json_array_foreach(sections, i, s) {
        if (!parse_section(t, s, most_blocks, most)) {
            return false;
        }
    }
    return t->bytes == most;
}

/* The text behind this one; NULL when the header ends first. */
static const char *next_text(const char *text, const char *end) {
    const char *nul = memchr(text, 0, (size_t)(end - text));
    return nul ? nul + 1 : NULL;
}

/* The three texts and the table in the first of them. */
static bool parse_texts(moe_checkpoint_table *t, const char *text, const char *end, int64_t most) {
    t->name = next_text(text, end);
    t->config_text = t->name ? next_text(t->name, end) : NULL;
    if (!t->config_text || next_text(t->config_text, end) != end) {
        return false;
    }
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    bool understood = o && parse_table(t, o, most);
    json_decref(o);
    return understood;
}

int moe_checkpoint_table_parse(moe_checkpoint_table *t,
                               const char *header,
                               int64_t length,
                               int64_t file_bytes,
                               moe_status *why) {
    int64_t said = 0;
    memset(t, 0, sizeof *t);
    t->data = length;
    if (length < MOE_CHECKPOINT_PREAMBLE) {
        return moe_fail(why, MOE_USER, "its header is damaged");
    }
    if (moe_checkpoint_table_preamble(header, file_bytes, &said, why) != MOE_OK) {
        return why->code;
    }
    if (said != length) {
        return moe_fail(why, MOE_USER, "its header is damaged");
    }
    if (get_u64(header, AT_CHECKSUM) != moe_checksum(header + AT_VERSION, length - AT_VERSION)) {
        return moe_fail(why, MOE_USER, "the checksum of its header differs");
    }
    if (!parse_texts(t, header + MOE_CHECKPOINT_PREAMBLE, header + length, file_bytes - length)) {
        moe_fail(why, MOE_USER, "its header cannot be understood");
    }
    return why->code;
}

/* --- comparing --- */

const moe_section *moe_checkpoint_table_section(const moe_checkpoint_table *t,
                                                const moe_section *like) {
    for (int i = 0; i < t->num; i++) {
        if (t->section[i].part == like->part && strcmp(t->section[i].name, like->name) == 0) {
            return &t->section[i];
        }
    }
    return NULL;
}

/* Fails because only one side has this section: the checkpoint (in_file) or this run. */
static int fail_missing(const moe_section *s, bool in_file, const char *path, moe_status *st) {
    const char *here = in_file ? "has" : "lacks",
               *there = in_file ? "this run does not" : "this run has";
    if (s->part == MOE_PART_M || s->part == MOE_PART_V) {
        return moe_fail(
            st, MOE_USER,
            "%s %s the optimiser state %s of %s, which %s: it was made by another train.optimizer",
            path, here, part_names[s->part], s->name, there);
    }
    return moe_fail(st, MOE_USER,
                    "%s %s the %s %s, which %s: it was made by another model or another run", path,
                    here, s->part == MOE_PART_BLOB ? "state" : "tensor", s->name, there);
}

static int compare_section(const moe_section *here,
                           const moe_section *file,
                           const char *path,
                           moe_status *st) {
    if (here->expert == file->expert && here->count == file->count && here->size == file->size) {
        return MOE_OK;
    }
    return moe_fail(
        st, MOE_USER,
        "%s: %s has %" PRId64 " x %" PRId64 " %s there and %" PRId64 " x %" PRId64 " %s here", path,
        here->name, file->count, file->size, file->expert ? "(experts)" : "elements", here->count,
        here->size, here->expert ? "(experts)" : "elements");
}

int moe_checkpoint_table_compare(const moe_checkpoint_table *here,
                                 const moe_checkpoint_table *file,
                                 bool whole,
                                 const char *path,
                                 moe_status *st) {
    if (here->real_bytes != file->real_bytes) {
        return moe_fail(
            st, MOE_USER,
            "%s holds numbers of %d bytes, this program computes with %d: go on with %s", path,
            file->real_bytes, here->real_bytes, file->real_bytes == 8 ? "moesim-f64" : "moesim");
    }
    for (int i = 0; i < here->num && st->code == MOE_OK; i++) {
        const moe_section *s = &here->section[i], *theirs = moe_checkpoint_table_section(file, s);
        if (!theirs) {
            fail_missing(s, false, path, st);
        } else {
            compare_section(s, theirs, path, st);
        }
    }
    for (int i = 0; i < file->num && st->code == MOE_OK; i++) {
        const bool wanted = whole || file->section[i].part == MOE_PART_VALUE;
        if (wanted && !moe_checkpoint_table_section(here, &file->section[i])) {
            fail_missing(&file->section[i], true, path, st);
        }
    }
    if (st->code == MOE_OK && whole && file->num != here->num) {
        moe_fail(st, MOE_USER, "the checkpoint '%s' is damaged: it holds a section twice", path);
    }
    return st->code;
}
