/* text.c: finds the files first, with their sizes, so that the memory is known before any of it is
 * taken; then reads them. */
#include "data/text.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/file.h"

typedef struct text_file {
    struct text_file *next;
    int64_t bytes;
    char path[];
} text_file;

typedef struct text_list {
    text_file *first;
    int64_t num_files, bytes;
} text_list;

static void add_file(text_list *list, const char *path, int64_t bytes) {
    size_t length = strlen(path) + 1;
    text_file *file = moe_alloc((int64_t)(sizeof *file + length), 1, "text files");
    file->bytes = bytes;
    file->next = list->first;
    memcpy(file->path, path, length);
    list->first = file;
    list->num_files++;
    list->bytes += bytes;
}

static void find(text_list *list, const char *path, bool top, moe_status *st);

static void find_in_folder(text_list *list, const char *folder, moe_status *st) {
    DIR *open_folder = opendir(folder);
    if (!open_folder) {
        moe_fail(st, MOE_USER, "%s: the folder cannot be read: %s", folder, strerror(errno));
        return;
    }
    for (struct dirent *entry; st->code == MOE_OK && (entry = readdir(open_folder));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            continue;
        }
        int64_t room = (int64_t)(strlen(folder) + strlen(entry->d_name)) + 2;
        char *path = moe_alloc(room, 1, "text files");
        snprintf(path, (size_t)room, "%s/%s", folder, entry->d_name);
        find(list, path, false, st);
        moe_free(path);
    }
    closedir(open_folder);
}

/* Pipes, sockets and devices are passed over inside a folder and refused where the user has named
 * them (top). */
static void find(text_list *list, const char *path, bool top, moe_status *st) {
    struct stat about, link;
    if (stat(path, &about) != 0 || lstat(path, &link) != 0) {
        moe_fail(st, MOE_USER, "%s: it cannot be read: %s", path, strerror(errno));
    } else if (S_ISDIR(about.st_mode) && (top || !S_ISLNK(link.st_mode))) {
        find_in_folder(list, path, st);
    } else if (S_ISREG(about.st_mode)) {
        add_file(list, path, about.st_size);
    } else if (top) {
        moe_fail(st, MOE_USER, "%s: it is neither a regular file nor a folder", path);
    }
}

static int compare_paths(const void *a, const void *b) {
    const text_file *const *x = a, *const *y = b;
    return strcmp((*x)->path, (*y)->path);
}

static void read_file(const text_file *file, uint8_t *out, moe_status *st) {
    const char *why;
    FILE *open_file = moe_file_stream(file->path, &why);
    if (!open_file) {
        moe_fail(st, MOE_USER, "%s: it cannot be read: %s", file->path, why);
        return;
    }
    if (fread(out, 1, (size_t)file->bytes, open_file) != (size_t)file->bytes) {
        moe_fail(st, MOE_USER, "%s: it cannot be read: %s", file->path,
                 ferror(open_file) ? strerror(errno) : "it became shorter meanwhile");
    }
    fclose(open_file);
}

/* Reads the files in the order of their paths. */
static void read_list(const text_list *list, uint8_t *out, moe_status *st) {
    const text_file **sorted = moe_alloc(list->num_files, sizeof *sorted, "text files");
    int64_t n = 0;
    for (const text_file *file = list->first; file; file = file->next) {
        sorted[n++] = file;
    }
    qsort(sorted, (size_t)n, sizeof *sorted, compare_paths);
    for (int64_t i = 0; i < n && st->code == MOE_OK; i++) {
        read_file(sorted[i], out, st);
        out += sorted[i]->bytes;
    }
    moe_free(sorted);
}

static void free_list(text_list *list) {
    while (list->first) {
        text_file *file = list->first;
        list->first = file->next;
        moe_free(file);
    }
}

/* Finds the files of one domain. */
static void find_domain(text_list *list, const char *path, moe_status *st) {
    if (path[0] == '\0') {
        moe_fail(st, MOE_USER, "there is a ':' without a file or folder on both sides");
    }
    if (st->code == MOE_OK) {
        find(list, path, true, st);
    }
    if (st->code == MOE_OK && list->bytes == 0) {
        moe_fail(st, MOE_USER, "%s: it holds no text (%lld files)", path,
                 (long long)list->num_files);
    }
}

/* Cuts `paths` at every ':'; returns the number of pieces. */
static int32_t cut_at_colons(char *paths) {
    int32_t num = 1;
    for (char *at = strchr(paths, ':'); at; at = strchr(at + 1, ':')) {
        *at = '\0';
        num++;
    }
    return num;
}

/* Finds the files of all domains, whose paths stand one behind the other, each with its 0 at the
 * end. */
static void find_domains(text_list *list,
                         const char *path,
                         int32_t num_domains,
                         int64_t *offset,
                         moe_status *st) {
    offset[0] = 0;
    for (int32_t i = 0; i < num_domains && st->code == MOE_OK; i++) {
        find_domain(&list[i], path, st);
        offset[i + 1] = offset[i] + list[i].bytes;
        path += strlen(path) + 1;
    }
}

int moe_text_read(const char *paths,
                  int64_t most_bytes,
                  uint8_t **text,
                  int32_t *num_domains,
                  int64_t **domain_offset,
                  moe_status *st) {
    char *path = moe_alloc((int64_t)strlen(paths) + 1, 1, "text files");
    memcpy(path, paths, strlen(paths) + 1);
    int32_t num = cut_at_colons(path);
    text_list *list = moe_alloc_zero(num, sizeof *list, "text files");
    int64_t *offset = moe_alloc_zero(num + 1, sizeof *offset, "text files");
    *text = NULL;
    *num_domains = num;
    *domain_offset = offset;
    find_domains(list, path, num, offset, st);
    if (st->code == MOE_OK && most_bytes >= 0 && offset[num] > most_bytes) {
        moe_fail(st, MOE_USER, "%s: it holds %lld bytes of text; memory is free for %lld", paths,
                 (long long)offset[num], (long long)most_bytes);
    }
    if (st->code == MOE_OK) {
        *text = moe_alloc(offset[num], 1, "text");
    }
    for (int32_t i = 0; i < num; i++) {
        if (st->code == MOE_OK) {
            read_list(&list[i], *text + offset[i], st);
        }
        free_list(&list[i]);
    }
    moe_free(list);
    moe_free(path);
    if (st->code != MOE_OK) {
        moe_free(*text);
        moe_free(*domain_offset);
        *text = NULL;
        *domain_offset = NULL;
        *num_domains = 0;
    }
    return st->code;
}
