/* generated_text.c: bytes of a model as characters. */
#include "output/generated_text.h"

#include "base/status.h"

static void put_unknown(FILE *out) {
    fputs("\xEF\xBF\xBD", out);
}

/* Bytes that follow this first byte of a character; -1: no character begins with it. */
static int followers(uint8_t first) {
    if (first < 0x80) {
        return first == '\n' || first == '\t' || (first >= 32 && first != 127) ? 0 : -1;
    }
    return first >= 0xC2 && first <= 0xDF   ? 1
           : first >= 0xE0 && first <= 0xEF ? 2
           : first >= 0xF0 && first <= 0xF4 ? 3
                                            : -1;
}

/* Whether the bytes are the shortest form of a character that is no control and no surrogate. */
static int is_character(const moe_text_stream *t) {
    const uint8_t *b = t->bytes;
    switch (b[0]) {
    case 0xC2:
        return b[1] >= 0xA0;
    case 0xE0:
        return b[1] >= 0xA0;
    case 0xED:
        return b[1] < 0xA0;
    case 0xF0:
        return b[1] >= 0x90;
    case 0xF4:
        return b[1] < 0x90;
    default:
        return 1;
    }
}

void moe_text_stream_end(moe_text_stream *t, FILE *out) {
    if (t->have > 0) {
        put_unknown(out);
    }
    *t = (moe_text_stream){.have = 0};
}

void moe_text_stream_put(moe_text_stream *t, uint8_t byte, FILE *out) {
    if (t->have > 0 && (byte & 0xC0) != 0x80) {
        moe_text_stream_end(t, out);
    }
    if (t->have == 0) {
        t->need = followers(byte) + 1;
        if (t->need == 0) {
            put_unknown(out);
            return;
        }
    }
    t->bytes[t->have++] = byte;
    if (t->have < t->need) {
        return;
    }
    if (is_character(t)) {
        fwrite(t->bytes, 1, (size_t)t->have, out);
    } else {
        put_unknown(out);
    }
    t->have = 0;
}

char *moe_generated_text(const moe_generated_texts *all) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    if (!out) {
        moe_out_of_memory("the generated text", 0);
    }
    for (int64_t q = 0; q < all->sequences; q++) {
        moe_text_stream stream = {.have = 0};
        fprintf(out, "=== sequence %lld, device %lld ===\n", (long long)q,
                (long long)(q / all->per_device));
        for (int64_t i = 0; i < all->length[q]; i++) {
            moe_text_stream_put(&stream, all->text[q * all->room + i], out);
        }
        moe_text_stream_end(&stream, out);
        fputc('\n', out);
    }
    if (fclose(out) != 0) {
        moe_out_of_memory("the generated text", 0);
    }
    return text;
}
