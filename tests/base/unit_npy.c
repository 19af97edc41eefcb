/* unit_npy.c: headers and files written and read again; every malformed file refused with one
 * sentence. */
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/npy.h"
#include "check.h"

static char path[64];

static void write_file(const void *bytes, size_t length) {
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL);
    if (!f) {
        return;
    }
    CHECK(fwrite(bytes, 1, length, f) == length);
    CHECK_EQ(fclose(f), 0);
}

/* A sentence is one line with something in it, and says what is expected. */
static void check_refused(const moe_status *st, const char *expected, const char *what) {
    CHECK_MSG(st->code == MOE_USER, "%s: code %d", what, st->code);
    CHECK_MSG(strstr(st->message, expected) && !strchr(st->message, '\n'),
              "%s: \"%s\" lacks \"%s\"", what, st->message, expected);
}

static void test_round_trip(void) {
    static const int64_t shapes[][4] = {{0}, {7}, {3, 5}, {2, 0, 4}, {2, 3, 4, 5}, {1}};
    static const int dims[] = {0, 1, 2, 3, 4, 1};
    for (int dtype = MOE_F32; dtype <= MOE_BOOL; dtype++) {
        for (int s = 0; s < 6; s++) {
            char file[4096];
            moe_npy_header h;
            moe_status st = {0};
            int64_t count = 1;
            for (int d = 0; d < dims[s]; d++) {
                count *= shapes[s][d];
            }
            size_t front =
                moe_npy_format((enum moe_dtype)dtype, dims[s], shapes[s], file, sizeof file);
            CHECK(front % 64 == 0 && file[front - 1] == '\n');
            size_t bytes = (size_t)count * moe_dtype_size((enum moe_dtype)dtype);
            memset(file + front, 1, bytes);
            write_file(file, front + bytes);
            void *data;
            CHECK_MSG(moe_npy_read(path, &h, &data, &st) == MOE_OK, "%s", st.message);
            CHECK((int)h.dtype == dtype && h.num_dims == dims[s] && h.count == count &&
                  h.data_offset == (int64_t)front);
            CHECK(memcmp(h.shape, shapes[s], (size_t)dims[s] * sizeof *h.shape) == 0);
            CHECK(count == 0 || memcmp(data, file + front, bytes) == 0);
            moe_free(data);
        }
    }
    CHECK_EQ(moe_alloc_live_bytes(), 0);
}

static void test_elements(void) {
    static const struct {
        enum moe_dtype dtype;
        unsigned char bytes[8];
        int64_t integer;
        double number;
    } cases[] = {
        {MOE_I8, {0xff}, -1, -1},
        {MOE_U8, {0xff}, 255, 255},
        {MOE_I16, {0xfe, 0xff}, -2, -2},
        {MOE_U16, {0xfe, 0xff}, 65534, 65534},
        {MOE_I32, {0, 0, 0, 0x80}, INT32_MIN, -0x1p31},
        {MOE_U32, {0, 0, 0, 0x80}, (int64_t)1 << 31, 0x1p31},
        {MOE_I64, {0, 0, 0, 0, 0, 0, 0, 0x80}, INT64_MIN, -0x1p63},
        {MOE_U64, {0, 0, 0, 0, 0, 0, 0, 0x80}, INT64_MAX, 0x1p63},
        {MOE_U64, {9}, 9, 9},
        {MOE_BOOL, {2}, 1, 1},
        {MOE_F16, {0x00, 0xbc}, 0, -1},
        {MOE_F16, {0x55, 0x35}, 0, 0x1.554p-2},
        {MOE_F16, {0xff, 0x7b}, 0, 65504},
        {MOE_F16, {0x01, 0x00}, 0, 0x1p-24},
        {MOE_F16, {0xff, 0x83}, 0, -0x1.ff8p-15},
        {MOE_F16, {0x00, 0x80}, 0, 0},
        {MOE_F16, {0x00, 0xfc}, 0, -INFINITY},
        {MOE_F32, {0, 0, 0x80, 0xbf}, 0, -1},
        {MOE_F64, {0, 0, 0, 0, 0, 0, 0xe0, 0x3f}, 0, 0.5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        moe_npy_header h = {.dtype = cases[i].dtype};
        unsigned char data[17] = {0}; /* element 1 of an array at an odd address */
        size_t size = moe_dtype_size(h.dtype);
        memcpy(data + 1 + size, cases[i].bytes, size);
        CHECK_MSG(moe_npy_f64(&h, data + 1, 1) == cases[i].number, "%s", moe_dtype_name(h.dtype));
        if (!moe_dtype_is_float(h.dtype)) {
            CHECK_MSG(moe_npy_i64(&h, data + 1, 1) == cases[i].integer, "%s",
                      moe_dtype_name(h.dtype));
        }
    }
    moe_npy_header half = {.dtype = MOE_F16};
    CHECK(isnan(moe_npy_f64(&half, "\x00\x7e", 0)));
}

/* Puts a dictionary behind a preamble of the given version; returns the length. */
static size_t build(unsigned char *out, int major, const char *dictionary) {
    size_t length = strlen(dictionary), start = major == 1 ? 10 : 12;
    memcpy(out, "\x93NUMPY", 6);
    memset(out + 6, 0, 6);
    out[6] = (unsigned char)major;
    out[8] = (unsigned char)(length & 0xff);
    out[9] = (unsigned char)(length >> 8);
    memcpy(out + start, dictionary, length);
    return start + length;
}

static void test_accepted(void) {
    static const struct {
        const char *dictionary;
        int dims;
        int64_t bytes;
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }      \n", 2, 48},
        {"{\"shape\":(5,),\"fortran_order\":False,\"descr\":\"|u1\"}", 1, 5},
        {"{'descr': '<i1', 'fortran_order': False, 'shape': (2,2)}\n", 2, 4},
        {"{'descr': '=i1', 'fortran_order': False, 'shape': ()}", 0, 1},
        {"{'descr': '<f8', 'fortran_order': False, 'shape': (0, 4)}", 2, 0},
        {"{'descr': '|b1', 'fortran_order': False, 'shape': (1, 2, 3, 4,)}", 4, 24},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int major = 1; major <= 3; major++) {
            unsigned char file[512];
            moe_npy_header h;
            moe_status st = {0};
            size_t length = build(file, major, cases[i].dictionary);
            CHECK_MSG(moe_npy_parse(file, length, (int64_t)length + cases[i].bytes, &h, &st) ==
                          MOE_OK,
                      "%s: %s", cases[i].dictionary, st.message);
            CHECK_EQ(h.num_dims, cases[i].dims);
        }
    }
}

static void test_malformed_dictionaries(void) {
#define ORDER "'fortran_order': False, "
    static const struct {
        const char *dictionary, *expected;
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (4,)}", "Fortran"},
        {"{'descr': '<f4', 'fortran_order': 0, 'shape': (4,)}", "fortran_order"},
        {"{'descr': '>f4', " ORDER "'shape': (4,)}", "big endian"},
        {"{'descr': '|O', " ORDER "'shape': (4,)}", "'|O'"},
        {"{'descr': '<c8', " ORDER "'shape': (4,)}", "'<c8'"},
        {"{'descr': '<f3', " ORDER "'shape': (4,)}", "'<f3'"},
        {"{'descr': '<U4', " ORDER "'shape': (4,)}", "'<U4'"},
        {"{'descr': '|f4', " ORDER "'shape': (4,)}", "'|f4'"},
        {"{'descr': '', " ORDER "'shape': (4,)}", "''"},
        {"{'descr': [('a', '<f4')], " ORDER "'shape': (4,)}", "dtype"},
        {"{'descr': '<f4<f4<f4<f4<f4<f4', " ORDER "'shape': (4,)}", "dtype"},
        {"{'descr': '<f4', " ORDER "'shape': (-4,)}", "negative"},
        {"{'descr': '<f4', " ORDER "'shape': (1,2,3,4,5)}", "4 dimensions"},
        {"{'descr': '<f4', " ORDER "'shape': (9223372036854775808,)}", "2^63"},
        {"{'descr': '<f4', " ORDER "'shape': (4611686018427387904,)}", "too large"},
        {"{'descr': '<f4', " ORDER "'shape': (0, 4294967296, 4294967296)}", "too large"},
        {"{'descr': '<f4', " ORDER "'shape': (4)}", "tuple"},
        {"{'descr': '<f4', " ORDER "'shape': 4}", "tuple"},
        {"{'descr': '<f4', " ORDER "'shape': (4,,)}", "tuple"},
        {"{'descr': '<f4', " ORDER "'shape': (4, 5}", "tuple"},
        {"{'descr': '<f4', " ORDER "'shape': (4.5,)}", "tuple"},
        {"{'descr': '<f4', " ORDER "'shape': (04,)}", "begins with 0"},
        {"{'descr': '<f4', " ORDER "'shape': (2, 00)}", "begins with 0"},
        {"{'descr': '<f4', " ORDER "'shape': (", "tuple"},
        {"{'descr': '<f4', " ORDER "}", "no 'shape'"},
        {"{'descr': '<f4', 'shape': (4,)}", "no 'fortran_order'"},
        {"{" ORDER "'shape': (4,)}", "no 'descr'"},
        {"{}", "no 'descr'"},
        {"{'descr': '<f4', 'descr': '<f4', " ORDER "'shape': (4,)}", "twice"},
        {"{'descr': '<f4', " ORDER "'shape': (4,), 'extra': 1}", "unknown key 'extra'"},
        {"{'descr': '<f4', " ORDER "'shape': (4,)} more", "behind"},
        {"{'descr': '<f4', " ORDER "'shape': (4,)", "dictionary"},
        {"{'descr' '<f4'}", "dictionary"},
        {"{descr: '<f4'}", "dictionary"},
        {"{'descr", "dictionary"},
        {"[1, 2]", "dictionary"},
        {"", "dictionary"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned char file[512];
        moe_npy_header h;
        moe_status st = {0};
        size_t length = build(file, 1 + (int)i % 3, cases[i].dictionary);
        moe_npy_parse(file, length, (int64_t)length + 16, &h, &st);
        check_refused(&st, cases[i].expected, cases[i].dictionary);
    }
}

/* What stands behind a NUL in a string would not be seen. */
static void test_nul_in_strings(void) {
    static const char *const dictionaries[] = {
        "{'descr': '<f4?;q', 'fortran_order': False, 'shape': (4,)}",
        "{'descr?': '<f4', 'fortran_order': False, 'shape': (4,)}",
        "{'descr': '?', 'fortran_order': False, 'shape': (4,)}",
    };
    for (int i = 0; i < 3; i++) {
        unsigned char file[512];
        moe_npy_header h;
        moe_status st = {0};
        size_t length = build(file, 1, dictionaries[i]);
        *(unsigned char *)memchr(file, '?', length) = 0;
        moe_npy_parse(file, length, (int64_t)length + 16, &h, &st);
        check_refused(&st, "it", dictionaries[i]);
    }
}

static void test_malformed_preambles(void) {
    unsigned char file[512], *exact;
    moe_npy_header h;
    size_t length = build(file, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}");
    /* every truncation, in memory of exactly that size */
    for (size_t cut = 0; cut < length; cut++) {
        moe_status st = {0};
        exact = malloc(cut + !cut);
        memcpy(exact, file, cut);
        moe_npy_parse(exact, cut, (int64_t)cut, &h, &st);
        check_refused(&st, "it ", "truncated");
        free(exact);
    }
    static const struct {
        int at, value;
        int64_t more;
        const char *expected;
    } cases[] = {
        {0, 'N', 16, "not a .npy"},   {6, 0, 16, "version 0.0"}, {6, 4, 16, "version 4.0"},
        {9, 0xff, 16, "ends inside"}, {-1, 0, 15, "bytes long"}, {-1, 0, 17, "bytes long"},
        {-1, 0, 0, "bytes long"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        moe_status st = {0};
        build(file, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}");
        if (cases[i].at >= 0) {
            file[cases[i].at] = (unsigned char)cases[i].value;
        }
        moe_npy_parse(file, length, (int64_t)length + cases[i].more, &h, &st);
        check_refused(&st, cases[i].expected, cases[i].expected);
    }
    moe_status st = {0};
    build(file, 2, "{}");
    file[10] = 2; /* a header of 128 KiB */
    moe_npy_parse(file, sizeof file, 1 << 20, &h, &st);
    check_refused(&st, "65536", "long header");
}

static void test_files(void) {
    moe_npy_header h;
    void *data;
    static const char *const names[] = {"/nonexistent/a.npy", "/tmp", "/dev/zero"};
    static const char *const expected[] = {"cannot be opened", "not a regular", "not a regular"};
    for (int i = 0; i < 3; i++) {
        moe_status st = {0};
        CHECK(moe_npy_read(names[i], &h, &data, &st) == MOE_USER && data == NULL);
        check_refused(&st, expected[i], names[i]);
        CHECK(strstr(st.message, names[i]) == st.message);
    }
    moe_status empty = {0}, first = {.code = MOE_ERROR, .message = "first"};
    write_file("", 0);
    CHECK(moe_npy_read(path, &h, &data, &empty) == MOE_USER);
    check_refused(&empty, "not a .npy", "empty file");
    CHECK(moe_npy_read(path, &h, &data, &first) == MOE_ERROR &&
          strcmp(first.message, "first") == 0);
    unlink(path);
    moe_status pipe = {0};
    CHECK(mkfifo(path, 0600) == 0);
    CHECK(moe_npy_read(path, &h, &data, &pipe) == MOE_USER);
    check_refused(&pipe, "not a regular", "pipe");
    CHECK_EQ(moe_alloc_live_bytes(), 0);
}

static void test_status(void) {
    moe_status st = {0};
    CHECK(moe_fail(&st, MOE_USER, "a\nb%c%s", 127, "\t") == MOE_USER);
    CHECK(strcmp(st.message, "a?b??") == 0);
    CHECK(moe_fail(&st, MOE_ERROR, "later") == MOE_USER && strcmp(st.message, "a?b??") == 0);
}

int main(void) {
    snprintf(path, sizeof path, "/tmp/moesim_test_npy_%ld", (long)getpid());
    RUN(test_round_trip);
    RUN(test_elements);
    RUN(test_accepted);
    RUN(test_malformed_dictionaries);
    RUN(test_nul_in_strings);
    RUN(test_malformed_preambles);
    RUN(test_files);
    RUN(test_status);
    unlink(path);
    return check_verdict();
}
