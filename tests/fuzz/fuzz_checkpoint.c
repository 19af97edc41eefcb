/* fuzz_checkpoint.c: the table of a checkpoint from arbitrary bytes. What is accepted lies within
 * the file, and is the same after it has been printed and read again; what is refused says why.
 *
 * A checksum covers the header, and mutations would never pass it: so the input is taken once as a
 * header as it is, and once as the texts of a header whose preamble is made here, checksum
 * included. Its first 8 bytes say how many bytes of data the file has. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/checksum.h"
#include "train/checkpoint_table.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

static void check_section(const moe_checkpoint_table *t, const moe_section *s) {
    int64_t total = 0;
    MOE_ASSERT(memchr(s->name, 0, sizeof s->name) && s->part < MOE_NUM_PARTS);
    MOE_ASSERT(s->first >= 0 && s->num_blocks >= 0 && s->first + s->num_blocks <= t->num_blocks);
    for (int64_t b = 0; b < s->num_blocks; b++) {
        int64_t bytes, offset = moe_checkpoint_table_block(s, b, &bytes);
        MOE_ASSERT(bytes >= 0 && bytes <= s->block_bytes && offset == s->offset + total);
        MOE_ASSERT(offset <= t->bytes && bytes <= t->bytes - offset);
        total += bytes;
    }
    MOE_ASSERT(total == s->bytes && s->offset + total <= t->bytes);
}

static void check_again(const moe_checkpoint_table *t) {
    moe_config c;
    moe_checkpoint_table again;
    moe_status why = {0};
    int64_t length;
    moe_config_defaults(&c);
    char *header = moe_checkpoint_table_print(t, &c, &length);
    MOE_ASSERT(moe_checkpoint_table_parse(&again, header, length, length + t->bytes, &why) ==
               MOE_OK);
    MOE_ASSERT(again.step == t->step && again.num == t->num && again.num_blocks == t->num_blocks);
    MOE_ASSERT(moe_checkpoint_table_compare(t, &again, true, "fuzz.moe", &why) == MOE_OK);
    for (int64_t b = 0; b < t->num_blocks; b++) {
        MOE_ASSERT(again.checksum[b] == t->checksum[b]);
    }
    moe_checkpoint_table_free(&again);
    free(header);
}

static void check(const char *header, int64_t length, int64_t file_bytes) {
    moe_checkpoint_table t;
    moe_status why = {0};
    int code = moe_checkpoint_table_parse(&t, header, length, file_bytes, &why);
    MOE_ASSERT(code == why.code);
    MOE_ASSERT(code == MOE_OK ||
               (code == MOE_USER && why.message[0] && !strpbrk(why.message, "\n\r")));
    if (code == MOE_OK) {
        MOE_ASSERT(t.data == length && t.bytes == file_bytes - length);
        MOE_ASSERT(t.config_text > t.name && t.config_text < header + length);
        for (int i = 0; i < t.num; i++) {
            check_section(&t, &t.section[i]);
        }
        check_again(&t);
    }
    moe_checkpoint_table_free(&t);
}

/* A header with these texts, for a file with data_bytes behind it. */
static char *make_header(const unsigned char *texts, int64_t length, int64_t data_bytes) {
    char *header = moe_alloc(MOE_CHECKPOINT_PREAMBLE + length, 1, "fuzz");
    const uint64_t numbers[3] = {1, (uint64_t)(MOE_CHECKPOINT_PREAMBLE + length + data_bytes),
                                 (uint64_t)length};
    memcpy(header, "MOESIMCK", 8);
    memcpy(header + 16, numbers, sizeof numbers);
    memcpy(header + MOE_CHECKPOINT_PREAMBLE, texts, (size_t)length);
    uint64_t sum = moe_checksum(header + 16, MOE_CHECKPOINT_PREAMBLE + length - 16);
    memcpy(header + 8, &sum, sizeof sum);
    return header;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    check((const char *)data, (int64_t)size, (int64_t)size);
    int64_t data_bytes, length = (int64_t)size - 8;
    if (length < 0) {
        return 0;
    }
    memcpy(&data_bytes, data, sizeof data_bytes);
    data_bytes &= INT64_MAX / 2;
    char *header = make_header(data + 8, length, data_bytes);
    check(header, MOE_CHECKPOINT_PREAMBLE + length, MOE_CHECKPOINT_PREAMBLE + length + data_bytes);
    moe_free(header);
    return 0;
}
