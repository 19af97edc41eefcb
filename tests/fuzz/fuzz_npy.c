/* fuzz_npy.c: arbitrary bytes as the header of a .npy file of any claimed size. */
#include <stdint.h>
#include <string.h>

#include "base/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is accepted must make sense; what is refused must say why. */
static void check(const uint8_t *data, size_t size, int64_t file_size) {
    moe_npy_header h;
    moe_status st = {0};
    int code = moe_npy_parse(data, size, file_size, &h, &st);
    MOE_ASSERT(code == st.code);
    MOE_ASSERT(code == MOE_OK || (code == MOE_USER && st.message[0] && !strchr(st.message, '\n')));
    if (code != MOE_OK) {
        return;
    }
    int64_t count = 1;
    MOE_ASSERT(h.num_dims >= 0 && h.num_dims <= MOE_NPY_MAX_DIMS && h.data_offset > 0 &&
               h.data_offset <= (int64_t)size);
    for (int d = 0; d < h.num_dims; d++) {
        count *= h.shape[d];
    }
    MOE_ASSERT(count == h.count &&
               h.data_offset + count * (int64_t)moe_dtype_size(h.dtype) == file_size);
}

/* The bytes as a whole file, and as the front of a file whose size stands in the last 8 bytes. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    check(data, size, (int64_t)size);
    if (size < 8) {
        return 0;
    }
    int64_t file_size;
    memcpy(&file_size, data + size - 8, sizeof file_size);
    check(data, size - 8, file_size);
    return 0;
}
