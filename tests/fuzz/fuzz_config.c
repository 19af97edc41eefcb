/* fuzz_config.c: arbitrary bytes as a configuration. Either one sentence and exit code 2, or an
 * echo that is a fixed point. */
#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "predict/memory.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

static char *print(const moe_config *c) {
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    MOE_ASSERT(out != NULL);
    moe_config_print(c, out);
    fclose(out);
    return text;
}

static void check_sentence(const moe_status *st) {
    MOE_ASSERT(st->code == MOE_USER && st->message[0] != '\0' &&
               strpbrk(st->message, "\n\r") == NULL);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    moe_config c, again;
    moe_status st = {0};
    const int32_t ranks = 1 << (size % 4);
    moe_config_defaults(&c);
    moe_config_parse(&c, (const char *)data, (int64_t)size, "fuzz.ini", &st);
    if (st.code == MOE_OK) {
        moe_config_resolve(&c, ranks, &st);
    }
    if (st.code != MOE_OK) {
        check_sentence(&st);
        return 0;
    }
    const moe_memory m = moe_memory_estimate(&c, &(moe_memory_given){.num_tokens = 0});
    MOE_ASSERT(m.total >= m.weights && m.weights > 0 && m.activations > 0 && m.exchange > 0 &&
               m.statistics > 0 && m.input >= 0);
    char *first = print(&c);
    moe_config_defaults(&again);
    moe_config_parse(&again, first, (int64_t)strlen(first), "fuzz.ini", &st);
    if (st.code == MOE_OK) {
        moe_config_resolve(&again, ranks, &st);
    }
    MOE_ASSERT(st.code == MOE_OK);
    if (c.segmented.parts == 1) { /* else the comment about the cut is gone */
        char *second = print(&again);
        MOE_ASSERT(strcmp(first, second) == 0);
        free(second);
    }
    free(first);
    return 0;
}
