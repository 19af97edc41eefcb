/* replay.c: drives a fuzz target without libFuzzer: every file of a corpus, then mutations of them
 * for some seconds.
 *     fuzz_NAME FOLDER [SECONDS [SEED]]    or    fuzz_NAME FILE, which repeats one input
 * So any compiler and every run of the tests exercise the targets a little; libFuzzer (preset fuzz)
 * does it in depth, with coverage as its guide. An input that ends the process is left in
 * ./crash-input; the same seed gives the same inputs. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_SIZE = 8192, MAX_FILES = 4096, SECONDS_PER_INPUT = 10 };

typedef struct input {
    uint8_t *data;
    size_t size;
} input;

static input corpus[MAX_FILES];
static int num_files;
static uint8_t current[MAX_SIZE];
static size_t current_size;
static uint64_t state;

/* splitmix64: Steele, Lea, Flood 2014 */
static uint64_t next_random(void) {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static size_t below(size_t n) {
    return n ? (size_t)(next_random() % n) : 0;
}

/* Makes async-signal-safe calls only. */
static void on_crash(int number) {
    const char text[] = "the target crashed or hung; its input is in ./crash-input\n";
    int file = open("crash-input", O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (file >= 0) {
        if (write(file, current, current_size) < 0) {
            _exit(1);
        }
        close(file);
    }
    if (write(2, text, sizeof text - 1) < 0) {
        _exit(1);
    }
    signal(number, SIG_DFL);
    raise(number);
}

static void run_one(void) {
    /* a copy of exactly this size lets a sanitizer see reads behind its end */
    uint8_t *copy = malloc(current_size ? current_size : 1);
    if (!copy) {
        exit(1);
    }
    memcpy(copy, current, current_size);
    alarm(SECONDS_PER_INPUT);
    LLVMFuzzerTestOneInput(copy, current_size);
    alarm(0);
    free(copy);
}

static bool read_file(const char *path, input *out) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        return false;
    }
    out->data = malloc(MAX_SIZE);
    out->size = out->data ? fread(out->data, 1, MAX_SIZE, file) : 0;
    fclose(file);
    return out->data != NULL;
}

static void use(const input *in) {
    memcpy(current, in->data, in->size);
    current_size = in->size;
}

static void insert(size_t at, const uint8_t *bytes, size_t n) {
    if (n > MAX_SIZE - current_size) {
        n = MAX_SIZE - current_size;
    }
    memmove(current + at + n, current + at, current_size - at);
    memmove(current + at, bytes, n);
    current_size += n;
}

static void cut(size_t at, size_t n) {
    if (n > current_size - at) {
        n = current_size - at;
    }
    memmove(current + at, current + at + n, current_size - at - n);
    current_size -= n;
}

/* Makes one small change: flips a bit, sets or inserts a byte, deletes or doubles a piece, inserts
 * a piece of another input or a word that parsers trip over, or cuts the end off. */
static void mutate(void) {
    static const char *const words[] = {"0",
                                        "-1",
                                        "4294967296",
                                        "9223372036854775807",
                                        "-9223372036854775808",
                                        "1e309",
                                        "nan",
                                        "inf",
                                        "=",
                                        "[",
                                        "]",
                                        ";",
                                        "#",
                                        "\n",
                                        "\r\n",
                                        "\xef\xbb\xbf",
                                        "\t",
                                        "%s",
                                        "\\",
                                        "''",
                                        "(,)",
                                        "18446744073709551616"};
    size_t at = below(current_size + 1), n = 1 + below(16);
    uint8_t byte = (uint8_t)next_random();
    const input *other = &corpus[below((size_t)num_files)];
    const char *word = words[below(sizeof words / sizeof *words)];
    uint8_t piece[16];
    switch (below(8)) {
    case 0:
        if (at < current_size) {
            current[at] ^= (uint8_t)(1u << below(8));
        }
        break;
    case 1:
        if (at < current_size) {
            current[at] = byte;
        }
        break;
    case 2:
        insert(at, &byte, 1);
        break;
    case 3:
        cut(at, n);
        break;
    case 4:
        if (n > current_size - at) {
            n = current_size - at;
        }
        memcpy(piece, current + at, n);
        insert(at, piece, n);
        break;
    case 5: {
        size_t from = below(other->size + 1), length = below(other->size - from + 1);
        insert(at, other->data + from, length < 64 ? length : 64);
        break;
    }
    case 6:
        insert(at, (const uint8_t *)word, strlen(word));
        break;
    default:
        if (below(8) == 0) {
            current_size = at;
        }
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void read_corpus(const char *folder) {
    struct dirent **entries = NULL;
    int count = scandir(folder, &entries, NULL, by_name);
    for (int i = 0; i < count; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.' && num_files < MAX_FILES &&
            read_file(path, &corpus[num_files])) {
            num_files++;
        }
        free(entries[i]);
    }
    free(entries);
}

int main(int argc, char **argv) {
    struct stat info;
    if (argc < 2 || stat(argv[1], &info) != 0) {
        fprintf(stderr,
                "usage: %s CORPUS-FOLDER [SECONDS [SEED]] | FILE; no such file or folder: %s\n",
                argv[0], argc < 2 ? "" : argv[1]);
        return 1;
    }
    const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        signal(signals[i], on_crash);
    }

    if (!S_ISDIR(info.st_mode)) {
        if (!read_file(argv[1], &corpus[0])) {
            return 1;
        }
        use(&corpus[0]);
        run_one();
        return 0;
    }
    read_corpus(argv[1]);
    if (num_files == 0) {
        fprintf(stderr, "%s: a corpus needs at least one file\n", argv[1]);
        return 1;
    }
    for (int i = 0; i < num_files; i++) {
        use(&corpus[i]);
        run_one();
    }
    double seconds = argc > 2 ? atof(argv[2]) : 2, end = now() + seconds;
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    long inputs = 0;
    fprintf(stderr, "%d files, %.3g s of mutations with seed %llu\n", num_files, seconds,
            (unsigned long long)seed);
    for (; now() < end; inputs++) {
        state = seed * 0x100000001b3u + (uint64_t)inputs;
        use(&corpus[below((size_t)num_files)]);
        for (size_t changes = 1 + below(6); changes > 0; changes--) {
            mutate();
        }
        run_one();
    }
    printf("%ld inputs\n", inputs);
    for (int i = 0; i < num_files; i++) {
        free(corpus[i].data);
    }
    return inputs == 0;
}
