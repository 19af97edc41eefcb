/* npy.c: headers as bytes, and reading a file.
 *
 * A file consists of "\x93NUMPY", the version (2 bytes), the length of the header (2 bytes in
 * version 1, 4 in versions 2 and 3), the header and the data. The header is a Python dictionary
 * with spaces and a newline behind it:
 *     {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } */
#include "base/npy.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/file.h"

enum { MAGIC_LENGTH = 6, HEADER_MAX = 65536 };

static const struct {
    const char *name, *descr;
    size_t size;
} dtypes[] = {
    [MOE_F16] = {"float16", "<f2", 2}, [MOE_F32] = {"float32", "<f4", 4},
    [MOE_F64] = {"float64", "<f8", 8}, [MOE_I8] = {"int8", "|i1", 1},
    [MOE_U8] = {"uint8", "|u1", 1},    [MOE_I16] = {"int16", "<i2", 2},
    [MOE_U16] = {"uint16", "<u2", 2},  [MOE_I32] = {"int32", "<i4", 4},
    [MOE_U32] = {"uint32", "<u4", 4},  [MOE_I64] = {"int64", "<i8", 8},
    [MOE_U64] = {"uint64", "<u8", 8},  [MOE_BOOL] = {"bool", "|b1", 1},
};
enum { NUM_DTYPES = sizeof dtypes / sizeof *dtypes };

size_t moe_dtype_size(enum moe_dtype dtype) {
    return dtypes[dtype].size;
}
const char *moe_dtype_name(enum moe_dtype dtype) {
    return dtypes[dtype].name;
}

bool moe_dtype_is_float(enum moe_dtype dtype) {
    return dtype == MOE_F16 || dtype == MOE_F32 || dtype == MOE_F64;
}

typedef struct moe_npy_text {
    const char *at, *end;
} moe_npy_text; /* what is left of the dictionary */

static void skip_space(moe_npy_text *t) {
    while (t->at < t->end &&
           (*t->at == ' ' || *t->at == '\n' || *t->at == '\t' || *t->at == '\r')) {
        t->at++;
    }
}

/* Takes the character c, and white space before it. */
static bool take(moe_npy_text *t, char c) {
    skip_space(t);
    if (t->at == t->end || *t->at != c) {
        return false;
    }
    t->at++;
    return true;
}

static bool take_word(moe_npy_text *t, const char *word) {
    size_t length = strlen(word);
    skip_space(t);
    if ((size_t)(t->end - t->at) < length || memcmp(t->at, word, length) != 0) {
        return false;
    }
    t->at += length;
    return true;
}

/* Takes a string in single or double quotes, of less than `capacity` characters and without a NUL,
 * which would end it too early. */
static bool take_string(moe_npy_text *t, char *out, size_t capacity) {
    skip_space(t);
    if (t->at == t->end || (*t->at != '\'' && *t->at != '"')) {
        return false;
    }
    char quote = *t->at++;
    const char *close = memchr(t->at, quote, (size_t)(t->end - t->at));
    if (!close || (size_t)(close - t->at) >= capacity ||
        memchr(t->at, 0, (size_t)(close - t->at))) {
        return false;
    }
    memcpy(out, t->at, (size_t)(close - t->at));
    out[close - t->at] = 0;
    t->at = close + 1;
    return true;
}

static int take_dtype(moe_npy_text *t, moe_npy_header *out, moe_status *st) {
    char descr[16];
    if (!take_string(t, descr, sizeof descr)) {
        return moe_fail(st, MOE_USER, "its dtype is not a plain number type such as '<f4'");
    }
    if (descr[0] == '>') {
        return moe_fail(st, MOE_USER,
                        "dtype '%s' is big endian; only little endian is read (NumPy: "
                        "array.astype(array.dtype.newbyteorder('<')))",
                        descr);
    }
    for (int d = 0; d < NUM_DTYPES; d++) {
        bool any_order =
            dtypes[d].size == 1 && (descr[0] == '<' || descr[0] == '|' || descr[0] == '=');
        if (strcmp(descr, dtypes[d].descr) == 0 ||
            (any_order && strcmp(descr + 1, dtypes[d].descr + 1) == 0)) {
            out->dtype = (enum moe_dtype)d;
            return MOE_OK;
        }
    }
    return moe_fail(
        st, MOE_USER,
        "dtype '%s' is not supported; allowed are float16, float32, float64, integers and bool",
        descr);
}

static int take_order(moe_npy_text *t, moe_status *st) {
    if (take_word(t, "False")) {
        return MOE_OK;
    }
    if (take_word(t, "True")) {
        return moe_fail(st, MOE_USER,
                        "it is in Fortran order; only C order is read (NumPy: "
                        "numpy.ascontiguousarray(array))");
    }
    return moe_fail(st, MOE_USER, "fortran_order is neither True nor False");
}

/* Takes one number of the shape. */
static int take_extent(moe_npy_text *t, int64_t *extent, moe_status *st) {
    skip_space(t);
    if (t->at < t->end && *t->at == '-') {
        return moe_fail(st, MOE_USER, "its shape has a negative number");
    }
    const char *first = t->at;
    for (*extent = 0; t->at < t->end && *t->at >= '0' && *t->at <= '9'; t->at++) {
        if (__builtin_mul_overflow(*extent, 10, extent) ||
            __builtin_add_overflow(*extent, *t->at - '0', extent)) {
            return moe_fail(st, MOE_USER, "its shape has a number of 2^63 or more");
        }
    }
    if (t->at == first) {
        return moe_fail(st, MOE_USER, "its shape is not a tuple of numbers");
    }
    if (*first == '0' && t->at > first + 1) {
        return moe_fail(st, MOE_USER, "its shape has a number that begins with 0");
    }
    return MOE_OK;
}

static int take_shape(moe_npy_text *t, moe_npy_header *out, moe_status *st) {
    if (!take(t, '(')) {
        return moe_fail(st, MOE_USER, "its shape is not a tuple of numbers");
    }
    for (out->num_dims = 0; !take(t, ')'); out->num_dims++) {
        if (out->num_dims == MOE_NPY_MAX_DIMS) {
            return moe_fail(st, MOE_USER, "it has more than %d dimensions", MOE_NPY_MAX_DIMS);
        }
        if (take_extent(t, &out->shape[out->num_dims], st)) {
            return st->code;
        }
        if (!take(t, ',')) {
            if (take(t, ')') && out->num_dims++ > 0) {
                return MOE_OK;
            }
            return moe_fail(st, MOE_USER, "its shape is not a tuple of numbers");
        }
    }
    return MOE_OK;
}

static int take_dictionary(moe_npy_text *t, moe_npy_header *out, moe_status *st) {
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    unsigned seen = 0;
    if (!take(t, '{')) {
        return moe_fail(st, MOE_USER, "its header is not a Python dictionary");
    }
    while (!take(t, '}')) {
        char key[24];
        unsigned k = 0;
        if (!take_string(t, key, sizeof key) || !take(t, ':')) {
            return moe_fail(
                st, MOE_USER,
                "its header is not a Python dictionary of descr, fortran_order and shape");
        }
        while (k < 3 && strcmp(key, keys[k]) != 0) {
            k++;
        }
        if (k == 3 || seen & 1u << k) {
            return moe_fail(st, MOE_USER, "its header has %s key '%s'",
                            k == 3 ? "an unknown" : "twice the", key);
        }
        seen |= 1u << k;
        int code = k == 0   ? take_dtype(t, out, st)
                   : k == 1 ? take_order(t, st)
                            : take_shape(t, out, st);
        if (code != MOE_OK) {
            return code;
        }
        if (take(t, ',')) {
            continue;
        }
        if (take(t, '}')) {
            break;
        }
        return moe_fail(st, MOE_USER,
                        "its header is not a Python dictionary of descr, fortran_order and shape");
    }
    skip_space(t);
    if (t->at != t->end) {
        return moe_fail(st, MOE_USER, "its header has text behind the dictionary");
    }
    for (int k = 0; k < 3; k++) {
        if (!(seen & 1u << k)) {
            return moe_fail(st, MOE_USER, "its header has no '%s'", keys[k]);
        }
    }
    return MOE_OK;
}

/* Finds where the header begins and ends in the file, from the first 12 bytes. */
static int find_header(const unsigned char *bytes,
                       size_t length,
                       size_t *start,
                       size_t *end,
                       moe_status *st) {
    if (length < MAGIC_LENGTH + 4 || memcmp(bytes, "\x93NUMPY", MAGIC_LENGTH) != 0) {
        return moe_fail(st, MOE_USER,
                        "it is not a .npy file (no \\x93NUMPY at its start; "
                        "numpy.save writes one)");
    }
    int major = bytes[6];
    if (major < 1 || major > 3) {
        return moe_fail(st, MOE_USER, ".npy version %d.%d is unknown; allowed are 1.0 to 3.0",
                        major, bytes[7]);
    }
    *start = major == 1 ? 10 : 12;
    if (length < *start) {
        return moe_fail(st, MOE_USER, "it ends inside its header");
    }
    size_t header = bytes[8] | (size_t)bytes[9] << 8;
    if (major > 1) {
        header |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    }
    if (header > HEADER_MAX) {
        return moe_fail(st, MOE_USER, "its header of %zu bytes is longer than %d", header,
                        HEADER_MAX);
    }
    *end = *start + header;
    if (length < *end) {
        return moe_fail(st, MOE_USER, "it ends inside its header");
    }
    return MOE_OK;
}

/* A shape with a 0 has no elements, but its other numbers must not overflow either. */
static int count_elements(moe_npy_header *out, int64_t file_size, moe_status *st) {
    int64_t bytes = (int64_t)moe_dtype_size(out->dtype), file_end;
    bool overflow = false, empty = false;
    for (int d = 0; d < out->num_dims; d++) {
        empty |= out->shape[d] == 0;
        overflow |= __builtin_mul_overflow(bytes, out->shape[d] ? out->shape[d] : 1, &bytes);
    }
    overflow |= __builtin_add_overflow(bytes, out->data_offset, &file_end);
    if (overflow) {
        return moe_fail(st, MOE_USER,
                        "its shape is too large: the number of bytes does not fit in 63 bits");
    }
    out->count = empty ? 0 : bytes / (int64_t)moe_dtype_size(out->dtype);
    if (empty) {
        file_end = out->data_offset;
    }
    if (file_end != file_size) {
        return moe_fail(st, MOE_USER, "it is %lld bytes long where its header asks for %lld",
                        (long long)file_size, (long long)file_end);
    }
    return MOE_OK;
}

int moe_npy_parse(const unsigned char *bytes,
                  size_t length,
                  int64_t file_size,
                  moe_npy_header *out,
                  moe_status *st) {
    size_t start = 0, end = 0;
    *out = (moe_npy_header){0};
    if (find_header(bytes, length, &start, &end, st)) {
        return st->code;
    }
    moe_npy_text text = {(const char *)bytes + start, (const char *)bytes + end};
    if (take_dictionary(&text, out, st)) {
        return st->code;
    }
    out->data_offset = (int64_t)end;
    return count_elements(out, file_size, st);
}

size_t moe_npy_format(enum moe_dtype dtype,
                      int num_dims,
                      const int64_t *shape,
                      char *out,
                      size_t capacity) {
    char dictionary[256];
    int length =
        snprintf(dictionary, sizeof dictionary,
                 "{'descr': '%s', 'fortran_order': False, 'shape': (", dtypes[dtype].descr);
    MOE_ASSERT(num_dims >= 0 && num_dims <= MOE_NPY_MAX_DIMS);
    for (int d = 0; d < num_dims; d++) {
        length += snprintf(dictionary + length, sizeof dictionary - (size_t)length,
                           d + 1 < num_dims ? "%lld, "
                           : num_dims == 1  ? "%lld,"
                                            : "%lld",
                           (long long)shape[d]);
    }
    length += snprintf(dictionary + length, sizeof dictionary - (size_t)length, "), }");
    size_t total = ((size_t)length + 1 + 10 + 63) / 64 * 64, header = total - 10;
    MOE_ASSERT(total <= capacity);
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = (char)(header & 0xff);
    out[9] = (char)(header >> 8);
    memset(out + 10, ' ', header - 1);
    memcpy(out + 10, dictionary, (size_t)length);
    out[total - 1] = '\n';
    return total;
}

/* Reads the header and leaves the file at its first element. */
static int read_header(FILE *file, int64_t file_size, moe_npy_header *header, moe_status *st) {
    static const size_t front_max = HEADER_MAX + 12;
    unsigned char *front = moe_alloc((int64_t)front_max, 1, ".npy header");
    size_t length = fread(front, 1, front_max, file);
    if (ferror(file)) {
        moe_fail(st, MOE_USER, "it cannot be read: %s", strerror(errno));
    } else if (moe_npy_parse(front, length, file_size, header, st) == MOE_OK &&
               fseeko(file, header->data_offset, SEEK_SET) != 0) {
        moe_fail(st, MOE_USER, "it cannot be read: %s", strerror(errno));
    }
    moe_free(front);
    return st->code;
}

FILE *moe_npy_open(const char *path, moe_npy_header *header, moe_status *st) {
    struct stat about;
    const char *why;
    moe_status inner = {0};
    FILE *file = moe_file_stream(path, &why);
    if (!file) {
        moe_fail(&inner, MOE_USER, "it cannot be opened: %s", why);
    } else if (fstat(fileno(file), &about) != 0) {
        moe_fail(&inner, MOE_USER, "it cannot be opened: %s", strerror(errno));
    } else {
        read_header(file, about.st_size, header, &inner);
    }
    if (inner.code == MOE_OK) {
        return file;
    }
    if (file) {
        fclose(file);
    }
    moe_fail(st, inner.code, "%s: %s", path, inner.message);
    return NULL;
}

int moe_npy_read(const char *path, moe_npy_header *header, void **data, moe_status *st) {
    *data = NULL;
    FILE *file = moe_npy_open(path, header, st);
    if (!file) {
        return st->code;
    }
    size_t size = moe_dtype_size(header->dtype), count = (size_t)header->count;
    *data = moe_alloc(header->count, size, ".npy file");
    if (count > 0 && fread(*data, size, count, file) != count) {
        moe_fail(st, MOE_USER, "%s: it cannot be read: %s", path,
                 ferror(file) ? strerror(errno) : "it ends too early");
        moe_free(*data);
        *data = NULL;
    }
    fclose(file);
    return st->code;
}

/* The value at element i of an array of this type; the data may be unaligned. */
#define MOE_NPY_ELEMENT(type)                                                         \
    static type moe_npy_##type(const void *data, int64_t i) {                         \
        type value;                                                                   \
        memcpy(&value, (const char *)data + i * (int64_t)sizeof value, sizeof value); \
        return value;                                                                 \
    }
MOE_NPY_ELEMENT(float)
MOE_NPY_ELEMENT(double)
MOE_NPY_ELEMENT(int8_t)
MOE_NPY_ELEMENT(uint8_t)
MOE_NPY_ELEMENT(int16_t)
MOE_NPY_ELEMENT(uint16_t)
MOE_NPY_ELEMENT(int32_t)
MOE_NPY_ELEMENT(uint32_t)
MOE_NPY_ELEMENT(int64_t)
MOE_NPY_ELEMENT(uint64_t)

/* IEEE 754 binary16: 1 bit of sign, 5 of the exponent, 10 of the fraction. Every one is a double.
 */
static double half_value(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent == 31  ? (fraction ? NAN : INFINITY)
                   : exponent == 0 ? ldexp(fraction, -24)
                                   : ldexp(fraction + 1024, exponent - 25);
    return bits >> 15 ? -value : value;
}

int64_t moe_npy_i64(const moe_npy_header *h, const void *data, int64_t i) {
    switch (h->dtype) {
    case MOE_I8:
        return moe_npy_int8_t(data, i);
    case MOE_U8:
        return moe_npy_uint8_t(data, i);
    case MOE_I16:
        return moe_npy_int16_t(data, i);
    case MOE_U16:
        return moe_npy_uint16_t(data, i);
    case MOE_I32:
        return moe_npy_int32_t(data, i);
    case MOE_U32:
        return moe_npy_uint32_t(data, i);
    case MOE_I64:
        return moe_npy_int64_t(data, i);
    case MOE_U64:
        return moe_npy_uint64_t(data, i) > INT64_MAX ? INT64_MAX
                                                     : (int64_t)moe_npy_uint64_t(data, i);
    case MOE_BOOL:
        return moe_npy_uint8_t(data, i) != 0;
    default:
        break;
    }
    moe_bug(__FILE__, __LINE__, "an integer type");
}

double moe_npy_f64(const moe_npy_header *h, const void *data, int64_t i) {
    switch (h->dtype) {
    case MOE_F16:
        return half_value(moe_npy_uint16_t(data, i));
    case MOE_F32:
        return (double)moe_npy_float(data, i);
    case MOE_F64:
        return moe_npy_double(data, i);
    case MOE_U64:
        return (double)moe_npy_uint64_t(data, i);
    default:
        return (double)moe_npy_i64(h, data, i);
    }
}
