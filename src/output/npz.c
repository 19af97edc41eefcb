/* npz.c: a zip archive with sizes of 64 bits (APPNOTE.TXT of PKWARE, sections 4.3 and 4.5.3), as
 * NumPy writes it. Each file has a header in front of it and a line in the directory at the end. */
#include "output/npz.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/npy.h"

enum { MOST_FILES = 5, HEADER = 128, WIDE = -1 }; /* WIDE: the size stands in the extra field */

typedef struct zipped_file {
    const char *name;
    char header[HEADER]; /* of the .npy file */
    size_t header_bytes;
    const void *data;
    int64_t data_bytes;
    uint32_t crc;
    int64_t begin; /* in the archive */
} zipped_file;

typedef struct archive {
    FILE *file;
    int64_t written;
    zipped_file content[MOST_FILES];
    int num_files;
} archive;

/* --- bytes --- */

static void put_bytes(archive *a, const void *bytes, int64_t count) {
    if (count > 0) {
        fwrite(bytes, 1, (size_t)count, a->file);
    }
    a->written += count;
}

/* An unsigned number, little endian. */
static void put(archive *a, int64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)((uint64_t)value >> (8 * i));
        put_bytes(a, &byte, 1);
    }
}

/* CRC-32 of ISO 3309, as zip uses it. */
static uint32_t crc_of(uint32_t crc, const void *bytes, int64_t count) {
    uint32_t table[256];
    const unsigned char *byte = bytes;
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) {
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
        }
    }
    crc = ~crc;
    for (int64_t i = 0; i < count; i++) {
        crc = table[(crc ^ byte[i]) & 255] ^ crc >> 8;
    }
    return ~crc;
}

/* --- the archive --- */

static int64_t file_bytes(const zipped_file *f) {
    return (int64_t)f->header_bytes + f->data_bytes;
}

/* What header and line of the directory have in common: version 4.5, no flags, stored, 1 Jan 1980.
 */
static void put_description(archive *a, const zipped_file *f, int extra_bytes) {
    put(a, 45, 2);
    put(a, 0, 2);
    put(a, 0, 2);
    put(a, 0, 2);
    put(a, 33, 2);
    put(a, f->crc, 4);
    put(a, WIDE, 4);
    put(a, WIDE, 4);
    put(a, (int64_t)strlen(f->name), 2);
    put(a, extra_bytes, 2);
}

static void put_sizes(archive *a, const zipped_file *f, int extra_bytes) {
    put(a, 1, 2);
    put(a, extra_bytes - 4, 2);
    put(a, file_bytes(f), 8);
    put(a, file_bytes(f), 8);
}

static void put_file(archive *a, zipped_file *f) {
    f->begin = a->written;
    f->crc = crc_of(crc_of(0, f->header, (int64_t)f->header_bytes), f->data, f->data_bytes);
    put(a, 0x04034b50, 4);
    put_description(a, f, 20);
    put_bytes(a, f->name, (int64_t)strlen(f->name));
    put_sizes(a, f, 20);
    put_bytes(a, f->header, (int64_t)f->header_bytes);
    put_bytes(a, f->data, f->data_bytes);
}

static void put_line(archive *a, const zipped_file *f) {
    put(a, 0x02014b50, 4);
    put(a, 45, 2);
    put_description(a, f, 28);
    put(a, 0, 2); /* comment, disk, attributes */
    put(a, 0, 2);
    put(a, 0, 2);
    put(a, 0, 4);
    put(a, WIDE, 4);
    put_bytes(a, f->name, (int64_t)strlen(f->name));
    put_sizes(a, f, 28);
    put(a, f->begin, 8);
}

static void put_directory(archive *a) {
    int64_t begin = a->written;
    for (int i = 0; i < a->num_files; i++) {
        put_line(a, &a->content[i]);
    }
    int64_t end = a->written;
    put(a, 0x06064b50, 4); /* the end of the directory in 64 bits, and where it stands */
    put(a, 44, 8);
    put(a, 45, 2);
    put(a, 45, 2);
    put(a, 0, 4);
    put(a, 0, 4);
    put(a, a->num_files, 8);
    put(a, a->num_files, 8);
    put(a, end - begin, 8);
    put(a, begin, 8);
    put(a, 0x07064b50, 4);
    put(a, 0, 4);
    put(a, end, 8);
    put(a, 1, 4);
    put(a, 0x06054b50, 4); /* the same in 32 bits, which says: see above */
    put(a, 0, 2);
    put(a, 0, 2);
    put(a, a->num_files, 2);
    put(a, a->num_files, 2);
    put(a, WIDE, 4);
    put(a, WIDE, 4);
    put(a, 0, 2);
}

/* --- a sparse matrix --- */

static void add_integers(archive *a, const char *name, const int64_t *data, int64_t count) {
    zipped_file *f = &a->content[a->num_files++];
    *f = (zipped_file){.name = name, .data = data, .data_bytes = count * (int64_t)sizeof *data};
    f->header_bytes = moe_npy_format(MOE_I64, 1, &count, f->header, sizeof f->header);
}

/* A .npy file of the text "csr" alone: no dimension, three bytes. */
static void add_format(archive *a) {
    zipped_file *f = &a->content[a->num_files++];
    *f = (zipped_file){.name = "format.npy", .data = "csr", .data_bytes = 3};
    f->header_bytes = HEADER;
    snprintf(f->header + 10, HEADER - 10, "%-*s", HEADER - 11,
             "{'descr': '|S3', 'fortran_order': False, 'shape': (), }");
    memcpy(f->header, "\x93NUMPY\x01\x00", 8);
    f->header[8] = HEADER - 10;
    f->header[HEADER - 1] = '\n';
}

typedef struct csr { /* see npz.h */
    int64_t cells, *data, *indices, *indptr;
} csr;

/* Owner: the caller, csr_free. */
static csr csr_of(const moe_sparse *const *matrix, int32_t num, int32_t rows) {
    csr c = {0};
    for (int32_t m = 0; m < num; m++) {
        c.cells += matrix[m]->num_cells;
    }
    c.data = moe_alloc(c.cells, sizeof *c.data, "pairs of devices");
    c.indices = moe_alloc(c.cells, sizeof *c.indices, "pairs of devices");
    c.indptr = moe_alloc_zero((int64_t)num * rows + 1, sizeof *c.indptr, "pairs of devices");
    int64_t at = 0;
    for (int32_t m = 0; m < num; m++) {
        for (int64_t i = 0; i < matrix[m]->num_cells; i++) {
            const moe_sparse_cell *cell = &matrix[m]->cell[i];
            c.data[at] = cell->count;
            c.indices[at++] = cell->column;
            c.indptr[(int64_t)m * rows + cell->row + 1]++;
        }
    }
    for (int64_t row = 0; row < (int64_t)num * rows; row++) {
        c.indptr[row + 1] += c.indptr[row];
    }
    return c;
}

static void csr_free(csr *c) {
    moe_free(c->data);
    moe_free(c->indices);
    moe_free(c->indptr);
}

int moe_npz_write_sparse(const char *path,
                         const moe_sparse *const *matrix,
                         int32_t num,
                         int32_t rows,
                         int32_t columns,
                         moe_status *st) {
    archive a = {.file = moe_file_create_stream(path)};
    if (!a.file) {
        return moe_fail(st, MOE_ERROR, "%s cannot be written: %m", path);
    }
    csr c = csr_of(matrix, num, rows);
    const int64_t shape[2] = {(int64_t)num * rows, columns};
    add_integers(&a, "data.npy", c.data, c.cells);
    add_integers(&a, "indices.npy", c.indices, c.cells);
    add_integers(&a, "indptr.npy", c.indptr, shape[0] + 1);
    add_integers(&a, "shape.npy", shape, 2);
    add_format(&a);
    for (int i = 0; i < a.num_files; i++) {
        put_file(&a, &a.content[i]);
    }
    put_directory(&a);
    csr_free(&c);
    bool failed = ferror(a.file) != 0;
    if (fclose(a.file) != 0 || failed) {
        return moe_fail(st, MOE_ERROR, "%s cannot be written: %m", path);
    }
    return MOE_OK;
}
