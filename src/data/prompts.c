/* prompts.c: reads the prompts that are continued. */
#include "data/prompts.h"

#include <string.h>

#include "base/alloc.h"
#include "data/text.h"

enum { MOST_BYTES = 64 << 20 /* of a file of prompts */ };

/* --- generate.prompt --- */

/* The byte that a backslash and this letter stand for; -1: none. */
static int escaped(char letter) {
    switch (letter) {
    case 'n':
        return '\n';
    case 't':
        return '\t';
    case 's':
        return ' ';
    case '\\':
        return '\\';
    default:
        return -1;
    }
}

static int read_value(const char *text, moe_prompts *p, moe_status *st) {
    p->bytes = moe_alloc((int64_t)strlen(text), 1, "prompt");
    p->begin = moe_alloc_zero(2, sizeof *p->begin, "prompt");
    p->num = 1;
    for (const char *at = text; *at != '\0'; at++) {
        int byte = (unsigned char)*at;
        if (byte == '\\' && (byte = escaped(*++at)) < 0) {
            return moe_fail(st, MOE_USER,
                            "generate.prompt = %.60s: a backslash stands in front of n (a line "
                            "end), t (a tab), s (a blank) or another backslash",
                            text);
        }
        p->bytes[p->begin[1]++] = (uint8_t)byte;
    }
    return MOE_OK;
}

/* --- generate.prompts --- */

/* The lines of the text that are not empty; with p->begin = NULL they are only counted. They are
 * moved together where the text stands. */
static void cut_lines(moe_prompts *p, int64_t length) {
    int64_t num = 0, end = 0;
    for (int64_t at = 0; at < length;) {
        const uint8_t *line = p->bytes + at, *newline = memchr(line, '\n', (size_t)(length - at));
        int64_t bytes = newline ? newline - line : length - at;
        at += bytes + 1;
        bytes -= bytes > 0 && line[bytes - 1] == '\r';
        if (bytes == 0) {
            continue;
        }
        num++;
        if (p->begin) {
            memmove(p->bytes + end, line, (size_t)bytes);
            end += bytes;
            p->begin[num] = end;
        }
    }
    p->num = num;
}

static int read_lines(const char *path, moe_prompts *p, moe_status *st) {
    moe_status inner = {0};
    int32_t files = 0;
    int64_t *offset = NULL;
    if (strchr(path, ':')) {
        return moe_fail(st, MOE_USER, "generate.prompts = %s: one file is expected", path);
    }
    if (moe_text_read(path, MOST_BYTES, &p->bytes, &files, &offset, &inner) != MOE_OK) {
        return moe_fail(st, inner.code, "generate.prompts: %s", inner.message);
    }
    cut_lines(p, offset[files]);
    if (p->num == 0) {
        moe_fail(st, MOE_USER, "generate.prompts = %s: it has no line that is not empty", path);
    } else {
        p->begin = moe_alloc_zero(p->num + 1, sizeof *p->begin, "prompts");
        cut_lines(p, offset[files]);
    }
    moe_free(offset);
    return st->code;
}

/* --- both --- */

static int check(const moe_config *c, int64_t most, moe_prompts *p, moe_status *st) {
    for (int64_t i = 0; i < p->num && st->code == MOE_OK; i++) {
        const int64_t bytes = p->begin[i + 1] - p->begin[i];
        p->longest = bytes > p->longest ? bytes : p->longest;
        if (bytes > most) {
            moe_fail(st, MOE_USER,
                     "%s: prompt %lld has %lld bytes, where a sequence, and so the cache, has "
                     "room for data.sequence_length = %lld tokens: a shorter prompt, or --set "
                     "data.sequence_length=... (places that no training has seen)",
                     c->generate.prompts[0] ? "generate.prompts" : "generate.prompt", (long long)i,
                     (long long)bytes, (long long)most);
        }
    }
    return st->code;
}

/* Collective. All ranks get what rank 0 has read. */
static void share(const moe_comm *comm, moe_prompts *p) {
    moe_comm_bcast(comm, &p->num, sizeof p->num, 0);
    moe_comm_bcast(comm, &p->longest, sizeof p->longest, 0);
    if (comm->rank != 0) {
        p->begin = moe_alloc(p->num + 1, sizeof *p->begin, "prompts");
    }
    moe_comm_bcast(comm, p->begin, (p->num + 1) * (int64_t)sizeof *p->begin, 0);
    if (comm->rank != 0) {
        p->bytes = moe_alloc(p->begin[p->num], 1, "prompts");
    }
    moe_comm_bcast(comm, p->bytes, p->begin[p->num], 0);
}

int moe_prompts_read(const moe_comm *comm,
                     const moe_config *c,
                     int64_t most,
                     moe_prompts *p,
                     moe_status *st) {
    *p = (moe_prompts){0};
    if (comm->rank == 0) {
        const int code = c->generate.prompts[0] ? read_lines(c->generate.prompts, p, st)
                                                : read_value(c->generate.prompt, p, st);
        if (code == MOE_OK) {
            check(c, most, p, st);
        }
    }
    if (moe_comm_agree(comm, st) == MOE_OK) {
        share(comm, p);
    }
    return st->code;
}

void moe_prompts_free(moe_prompts *p) {
    moe_free(p->begin);
    moe_free(p->bytes);
    *p = (moe_prompts){0};
}
