/* mpi_checkpoint.c: what is written under some ranks comes back bit for bit under any other;
 * whatever is damaged, missing or of another model is recognised on all ranks; a full disk leaves
 * the older ones alone.
 *
 * ctest: f64 */
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "check.h"
#include "config/config.h"
#include "train/checkpoint.h"

/* The table has more than one slice of 1 MiB. */
enum { EXPERTS = 24, TENSORS = 4, TABLE = 300000, HISTORY = 5 };

typedef struct made {
    moe_parameters all;
    moe_parameter p[TENSORS];
    int32_t id[EXPERTS];
    double bias[EXPERTS];
    int64_t history[HISTORY];
    moe_blob blob[2];
} made;

/* --- parameters made of keyed values --- */

/* From -1/2 to 1/2; of the optimiser's mean of squares, part 2, from 0 to 1. */
static real keyed(int tensor, int part, int64_t element) {
    uint64_t bits = moe_rng_bits((moe_rng){11, MOE_RNG_TEST}, (uint64_t)(tensor * 3 + part),
                                 (uint64_t)element, 0);
    return (real)((double)(bits >> 11) * 0x1p-53 - (part == 2 ? 0 : 0.5));
}

/* The global number of element i of what this rank holds of a tensor. */
static int64_t global_element(const moe_parameter *p, int64_t i) {
    return p->expert ? p->id[i / p->size] * p->size + i % p->size : i;
}

static void make(made *m, const moe_comm *comm, bool with_state, bool filled) {
    static const struct {
        const char *name;
        bool expert;
        int64_t size;
    } tensors[TENSORS] = {{"embedding", false, TABLE},
                          {"layer0.gate", false, 7 * EXPERTS},
                          {"layer0.experts.w1", true, 33},
                          {"layer0.experts.w2", true, 5}};
    memset(m, 0, sizeof *m);
    int held = 0;
    for (int e = EXPERTS - 1; e >= 0; e--) {
        if ((e * 5 + 1) % comm->size == comm->rank) {
            m->id[held++] = e;
        }
    }
    m->all = (moe_parameters){.p = m->p, .num = TENSORS};
    for (int t = 0; t < TENSORS; t++) {
        moe_parameter *p = &m->p[t];
        *p = (moe_parameter){
            .expert = tensors[t].expert, .size = tensors[t].size, .count = 1, .count_global = 1};
        snprintf(p->name, sizeof p->name, "%s", tensors[t].name);
        if (p->expert) {
            p->count = held;
            p->count_global = EXPERTS;
            p->id = m->id;
        }
        real **part[] = {&p->value, &p->m, &p->v};
        for (int i = 0; i < (with_state ? 3 : 1); i++) {
            *part[i] = moe_alloc_zero(p->count * p->size, sizeof(real), "test");
            for (int64_t j = 0; j < p->count * p->size && filled; j++) {
                (*part[i])[j] = keyed(t, i, global_element(p, j));
            }
        }
    }
    for (int i = 0; i < EXPERTS && filled; i++) {
        m->bias[i] = 0.1 * i;
    }
    for (int i = 0; i < HISTORY && filled; i++) {
        m->history[i] = 100 + i;
    }
    m->blob[0] = moe_blob_of("bias", m->bias, sizeof m->bias);
    /* only rank 0 has the history */
    m->blob[1] = moe_blob_of("history", comm->rank == 0 ? m->history : NULL, sizeof m->history);
}

static int64_t wrong_values(const made *m) {
    int64_t wrong = 0;
    for (int t = 0; t < TENSORS; t++) {
        const moe_parameter *p = &m->p[t];
        const real *part[] = {p->value, p->m, p->v};
        for (int i = 0; i < 3 && part[i]; i++) {
            for (int64_t j = 0; j < p->count * p->size; j++) {
                wrong += part[i][j] != keyed(t, i, global_element(p, j));
            }
        }
    }
    return wrong;
}

static void forget(made *m) {
    for (int t = 0; t < TENSORS; t++) {
        moe_free(m->p[t].value);
        moe_free(m->p[t].m);
        moe_free(m->p[t].v);
    }
}

static void make_config(moe_config *c, int32_t ranks) {
    static const char text[] =
        "[run]\nsteps = 40\n[model]\nnum_experts = 24\nhidden_size = 7\n[cluster]\ndevices = 24\n";
    moe_status st = {0};
    moe_config_defaults(c);
    moe_config_parse(c, text, sizeof text - 1, "configs/some name.ini", &st);
    CHECK_MSG(moe_config_resolve(c, ranks, &st) == MOE_OK, "%s", st.message);
}

/* --- files --- */

static void path_of(const char *folder, int step, const char *end, char path[256]) {
    snprintf(path, 256, "%.200s/checkpoints/step-%08d.moe%s", folder, step, end);
}

static bool exists(const char *folder, int step, const char *end) {
    char path[256];
    path_of(folder, step, end, path);
    return access(path, F_OK) == 0;
}

static int64_t size_of(const char *path) {
    struct stat about;
    return stat(path, &about) == 0 ? about.st_size : -1;
}

/* Rank 0 inverts one bit of a byte; done twice, the file is as it was. */
static void flip(const moe_comm *comm, const char *path, int64_t at) {
    moe_comm_barrier(comm);
    if (comm->rank == 0) {
        unsigned char byte = 0;
        int file = open(path, O_RDWR);
        CHECK(file >= 0 && pread(file, &byte, 1, at) == 1);
        byte ^= (unsigned char)(1u << ((uint64_t)at % 8));
        CHECK(pwrite(file, &byte, 1, at) == 1 && close(file) == 0);
    }
    moe_comm_barrier(comm);
}

static void resize(const moe_comm *comm, const char *path, int64_t bytes) {
    moe_comm_barrier(comm);
    if (comm->rank == 0) {
        CHECK(truncate(path, bytes) == 0);
    }
    moe_comm_barrier(comm);
}

static int write_step(const moe_comm *comm,
                      const char *folder,
                      const made *m,
                      int64_t step,
                      moe_status *st) {
    moe_config c;
    make_config(&c, comm->size);
    return moe_checkpoint_write(comm, folder, &c, step, &m->all, m->blob, 2, st);
}

static void must_write(const moe_comm *comm, const char *folder, const made *m, int64_t step) {
    moe_status st = {0};
    CHECK_MSG(write_step(comm, folder, m, step, &st) == MOE_OK, "%s", st.message);
}

/* The step of the checkpoint that is found, or 0 with *st when there is none. word [512]. */
static int64_t find(const moe_comm *comm, const char *folder, char *word, moe_status *st) {
    moe_checkpoint found;
    int64_t step = moe_checkpoint_find(comm, folder, &found, word, st) == MOE_OK ? found.step : 0;
    moe_checkpoint_free(&found);
    moe_comm_barrier(comm);
    return step;
}

/* --- what must work --- */

static void check_checksum(void) {
    unsigned char bytes[101];
    for (int i = 0; i < 101; i++) {
        bytes[i] = (unsigned char)i;
    }
    CHECK(moe_checksum(NULL, 0) == 0xef46db3751d8e999u);
    CHECK(moe_checksum("a", 1) == 0xd24ec4f1a98c6e5bu);
    CHECK(moe_checksum("Nobody inspects the spammish repetition", 39) == 0xfbcea83c8a378bf1u);
    for (int n = 0; n <= 101; n++) {
        uint64_t sum = moe_checksum(bytes, n);
        for (int i = 0; i < 8 * n; i++) {
            bytes[i / 8] ^= (unsigned char)(1 << i % 8);
            CHECK_MSG(moe_checksum(bytes, n) != sum, "bit %d of %d bytes", i, n);
            bytes[i / 8] ^= (unsigned char)(1 << i % 8);
        }
    }
}

static void check_read(const moe_comm *comm, const char *path) {
    made m;
    moe_status st = {0};
    make(&m, comm, true, false);
    CHECK_MSG(moe_checkpoint_read(comm, path, &m.all, m.blob, 2, &st) == MOE_OK, "%s", st.message);
    CHECK_EQ(wrong_values(&m), 0);
    CHECK(m.bias[3] == 0.1 * 3 && m.bias[EXPERTS - 1] == 0.1 * (EXPERTS - 1));
    CHECK_EQ(m.history[HISTORY - 1], comm->rank == 0 ? 100 + HISTORY - 1 : 0);
    forget(&m);
}

static void check_round_trip(const moe_comm *comm,
                             const moe_comm *self,
                             const char *folder,
                             const made *m) {
    moe_checkpoint found;
    moe_status st = {0};
    moe_config c;
    char word[512] = "-";
    must_write(comm, folder, m, 10);
    CHECK(moe_checkpoint_find(comm, folder, &found, word, &st) == MOE_OK);
    CHECK_EQ(found.step, 10);
    CHECK_STR(found.name, "some name");
    CHECK_STR(word, "");
    CHECK_MSG(moe_checkpoint_config(&found, &c, &st) == MOE_OK &&
                  moe_config_resolve(&c, comm->size, &st) == MOE_OK,
              "%s", st.message);
    CHECK(c.model.num_experts == EXPERTS && c.run.steps == 40 && strcmp(c.name, "some name") == 0);
    CHECK(moe_checkpoint_same_run(&c, found.config_text, &st) == MOE_OK);
    check_read(comm, found.path);
    check_read(self, found.path); /* each rank alone, all experts on it */
    moe_checkpoint_free(&found);
}

/* Written by one rank alone, the data are the same bytes (the texts differ in the comment about
 * ranks). */
static void check_same_bytes(const moe_comm *comm, const moe_comm *self, const char *folder) {
    char other[256], path[2][256];
    snprintf(other, sizeof other, "%.200s/folded", folder);
    if (comm->rank == 0 && mkdir(other, 0777) == 0) {
        made m;
        moe_status st = {0};
        make(&m, self, true, true);
        must_write(self, other, &m, 10);
        path_of(folder, 10, "", path[0]);
        path_of(other, 10, "", path[1]);
        int64_t tail = 3 * (int64_t)sizeof(real) * (TABLE + 7 * EXPERTS + 38 * EXPERTS) +
                       (int64_t)sizeof m.bias + (int64_t)sizeof m.history;
        unsigned char *bytes[2];
        for (int i = 0; i < 2; i++) {
            bytes[i] = moe_alloc_zero(tail, 1, "test");
            int file = open(path[i], O_RDONLY);
            CHECK(pread(file, bytes[i], (size_t)tail, size_of(path[i]) - tail) == tail &&
                  close(file) == 0);
        }
        CHECK(memcmp(bytes[0], bytes[1], (size_t)tail) == 0);
        CHECK(moe_checkpoint_remove(other, &st) == MOE_OK && rmdir(other) == 0);
        moe_free(bytes[0]);
        moe_free(bytes[1]);
        forget(&m);
    }
    moe_comm_barrier(comm);
}

static void check_keeps_two(const moe_comm *comm, const char *folder, const made *m) {
    char path[256], word[512];
    moe_status st = {0};
    path_of(folder, 12, ".tmp", path);
    if (comm->rank == 0) {
        int file = open(path, O_WRONLY | O_CREAT, 0666);
        CHECK(file >= 0 && write(file, "MOESIMCK", 8) == 8 && close(file) == 0);
    }
    moe_comm_barrier(comm);
    CHECK_EQ(find(comm, folder, word, &st), 10);
    must_write(comm, folder, m, 20);
    CHECK(exists(folder, 10, "") && exists(folder, 20, "") && !exists(folder, 12, ".tmp"));
    moe_comm_barrier(comm);
    must_write(comm, folder, m, 30);
    CHECK(!exists(folder, 10, "") && exists(folder, 20, "") && exists(folder, 30, ""));
    moe_comm_barrier(comm);
    must_write(comm, folder, m, 25); /* went on from 20: 30 is of another future */
    CHECK(exists(folder, 20, "") && exists(folder, 25, "") && !exists(folder, 30, "") &&
          !exists(folder, 25, ".tmp"));
    CHECK_EQ(find(comm, folder, word, &st), 25);
}

/* --- what is damaged: the folder has steps 20 and 25 --- */

static void check_previous_is_used(const moe_comm *comm,
                                   const char *folder,
                                   const char *what,
                                   int64_t at) {
    char word[512];
    moe_status st = {0};
    CHECK_MSG(find(comm, folder, word, &st) == 20, "%s %lld: %s", what, (long long)at, st.message);
    CHECK_MSG(strstr(word, "step-00000025.moe") && strstr(word, "after 20 steps"), "%s %lld: %s",
              what, (long long)at, word);
}

static void check_damage(const moe_comm *comm, const char *folder) {
    char path[256];
    path_of(folder, 25, "", path);
    int64_t size = size_of(path),
            at[24] = {0, 7, 8, 15, 16, 24, 32, 39, 40, 41, size - 1, size / 2};
    for (int i = 12; i < 24; i++) {
        uint64_t bits = moe_rng_bits((moe_rng){5, MOE_RNG_TEST}, (uint64_t)i, 0, 0);
        /* anywhere in the file, and in the header */
        at[i] = (int64_t)(bits % (uint64_t)(i < 18 ? size : 4000));
    }
    for (int i = 0; i < 24; i++) {
        flip(comm, path, at[i]);
        check_previous_is_used(comm, folder, "flipped byte", at[i]);
        if (at[i] > 4000 + size / 4) { /* surely in a block */
            made m;
            moe_status st = {0};
            make(&m, comm, true, false);
            CHECK(moe_checkpoint_read(comm, path, &m.all, m.blob, 2, &st) == MOE_USER &&
                  strstr(st.message, "checksum"));
            forget(&m);
        }
        flip(comm, path, at[i]);
    }
    check_read(comm, path);
}

static void check_truncation(const moe_comm *comm, const char *folder, const made *m) {
    char path[256];
    path_of(folder, 25, "", path);
    int64_t size = size_of(path), length[] = {size + 1, size - 1, size / 2, 100, 40, 39, 1, 0};
    for (int i = 0; i < 8; i++) {
        resize(comm, path, length[i]);
        check_previous_is_used(comm, folder, "length", length[i]);
    }
    must_write(comm, folder, m, 25);
    check_read(comm, path);
}

static void check_none_whole(const moe_comm *comm, const char *folder, const made *m) {
    char path[2][256], word[512];
    moe_status st = {0};
    moe_status none = {0};
    moe_status empty = {0};
    for (int i = 0; i < 2; i++) {
        path_of(folder, 20 + 5 * i, "", path[i]);
        flip(comm, path[i], size_of(path[i]) - 1 - i);
    }
    CHECK_EQ(find(comm, folder, word, &st), 0);
    CHECK_MSG(st.code == MOE_USER && strstr(st.message, folder) &&
                  strstr(st.message, "step-00000020"),
              "%s", st.message);
    CHECK_EQ(find(comm, "/no/such/folder", word, &none), 0);
    CHECK_MSG(none.code == MOE_USER && strstr(none.message, "/no/such/folder"), "%s", none.message);
    CHECK_EQ(find(comm, "/", word, &empty), 0);
    CHECK_MSG(empty.code == MOE_USER && strstr(empty.message, "no checkpoints"), "%s",
              empty.message);
    must_write(comm, folder, m, 20);
    must_write(comm, folder, m, 25);
}

/* --- what belongs to another run --- */

/* Reads step 25 into *m, which must be refused on all ranks with these words. */
static void check_refused(const moe_comm *comm,
                          const char *folder,
                          made *m,
                          int num_blobs,
                          const char *first,
                          const char *second) {
    char path[256];
    moe_status st = {0};
    path_of(folder, 25, "", path);
    CHECK_EQ(moe_checkpoint_read(comm, path, &m->all, m->blob, num_blobs, &st), MOE_USER);
    CHECK_MSG(strstr(st.message, first) && strstr(st.message, second) && strstr(st.message, path),
              "%s", st.message);
}

static void check_other_model(const moe_comm *comm, const char *folder) {
    made m;
    make(&m, comm, true, false);
    m.p[2].size = 32;
    check_refused(comm, folder, &m, 2, "layer0.experts.w1", "24 x 33");
    m.p[2].size = 33;
    m.p[3].count_global = EXPERTS + 1;
    check_refused(comm, folder, &m, 2, "layer0.experts.w2", "25 x 5");
    m.p[3].count_global = EXPERTS;
    m.p[1].name[5] = '1';
    check_refused(comm, folder, &m, 2, "layer1.gate", "lacks");
    m.p[1].name[5] = '0';
    m.all.num--;
    check_refused(comm, folder, &m, 2, "layer0.experts.w2", "which this run does not");
    m.all.num++;
    check_refused(comm, folder, &m, 1, "history", "state");
    m.blob[0].bytes -= 8;
    check_refused(comm, folder, &m, 2, "bias", "192");
    m.blob[0].bytes += 8;
    real *keep = m.p[0].v;
    m.p[0].v = NULL;
    check_refused(comm, folder, &m, 2, "optimiser state v of embedding", "train.optimizer");
    m.p[0].v = keep;
    forget(&m);
    make(&m, comm, false, false);
    check_refused(comm, folder, &m, 2, "optimiser state m of embedding", "train.optimizer");
    forget(&m);
    moe_status st = {0};
    CHECK(moe_checkpoint_read(comm, "/no/such.moe", &m.all, m.blob, 2, &st) == MOE_USER &&
          strstr(st.message, "/no/such.moe"));
}

/* A checkpoint without any tensor, made to say that it is of the other precision. */
static void check_other_precision(const moe_comm *comm, const char *folder) {
    char path[256], *header = NULL, word[512];
    moe_config c;
    moe_parameters nothing = {0};
    moe_status st = {0};
    make_config(&c, comm->size);
    CHECK(moe_checkpoint_write(comm, folder, &c, 26, &nothing, NULL, 0, &st) == MOE_OK);
    /* a second time, over itself */
    CHECK(moe_checkpoint_write(comm, folder, &c, 26, &nothing, NULL, 0, &st) == MOE_OK);
    path_of(folder, 26, "", path);
    if (comm->rank == 0) {
        int64_t size = size_of(path);
        header = moe_alloc(size, 1, "test");
        int file = open(path, O_RDWR);
        CHECK(pread(file, header, (size_t)size, 0) == size);
        char *said = memmem(header, (size_t)size, "\"real\":", 7);
        CHECK(said != NULL);
        if (said) {
            said[7] = sizeof(real) == 4 ? '8' : '4';
        }
        uint64_t sum = moe_checksum(header + 16, size - 16);
        memcpy(header + 8, &sum, sizeof sum);
        CHECK(pwrite(file, header, (size_t)size, 0) == size && close(file) == 0);
        moe_free(header);
    }
    moe_comm_barrier(comm);
    CHECK_EQ(find(comm, folder, word, &st), 26);
    CHECK(moe_checkpoint_read(comm, path, &nothing, NULL, 0, &st) == MOE_USER);
    CHECK_MSG(strstr(st.message, sizeof(real) == 4 ? "go on with moesim-f64" : "go on with moesim"),
              "%s", st.message);
}

static void check_same_run(const moe_comm *comm) {
    static const struct {
        const char *set, *word; /* NULL: allowed */
    } cases[] = {{"model.hidden_size=8",
                  "model.hidden_size was 7 when the checkpoint was written and is 8 now"},
                 {"router.top_k=3", "router.top_k was 6"},
                 {"balance.alpha_expert=0.5", "balance.alpha_expert was 0"},
                 {"data.tokens_per_device=8", "data.tokens_per_device"},
                 {"train.learning_rate=0.1", "train.learning_rate was 0.003"},
                 {"train.optimizer=sgd",
                  "train.optimizer was adamw when the checkpoint was written and is sgd now"},
                 {"cluster.devices=48", "cluster.devices was 24"},
                 {"cluster.devices_per_node=8", "cluster.devices_per_node was 24"},
                 {"run.seed=2", "run.seed was 1"},
                 {"run.steps=39", "it may only rise"},
                 {"run.steps=41", NULL},
                 {"run.threads=2", NULL},
                 {"exchange.mode=selection", NULL},
                 {"output.every=7", NULL},
                 {"train.checkpoint_every=9", NULL},
                 {"train.validation_every=9", NULL},
                 {"cluster.inter_gbps=9", NULL}};
    moe_config then;
    char *text = NULL;
    size_t length;
    make_config(&then, comm->size);
    FILE *memory = open_memstream(&text, &length);
    moe_config_print(&then, memory);
    fclose(memory);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        moe_config now = then;
        moe_status st = {0};
        CHECK(moe_config_set(&now, cases[i].set, &st) == MOE_OK);
        CHECK_MSG(moe_checkpoint_same_run(&now, text, &st) == (cases[i].word ? MOE_USER : MOE_OK),
                  "%s: %s", cases[i].set, st.message);
        if (cases[i].word) {
            CHECK_MSG(strstr(st.message, cases[i].word), "%s: %s", cases[i].set, st.message);
        }
    }
    moe_config now = then;
    moe_status st = {0};
    moe_config_set(&now, "run.steps=41", &st);
    moe_config_set(&now, "train.schedule=cosine", &st);
    CHECK(moe_checkpoint_same_run(&now, text, &st) == MOE_USER);
    free(text);
}

/* --- a full disk --- */

static void check_full_disk(const moe_comm *comm, const char *folder, const made *m) {
    char small[256], path[256], word[512];
    int64_t mounted = 0;
    snprintf(small, sizeof small, "%.200s/small", folder);
    if (comm->rank == 0) {
        mounted = mkdir(small, 0777) == 0 && mount("tmpfs", small, "tmpfs", 0, "size=2m") == 0;
    }
    moe_comm_max_i64(comm, &mounted, 1);
    if (mounted) {
        made few = *m;
        moe_status st = {0};
        moe_status ok = {0};
        moe_status direct = {0};
        few.all.p++; /* without the large table */
        few.all.num--;
        must_write(comm, small, &few, 3);
        CHECK_EQ(write_step(comm, small, m, 6, &st), MOE_ERROR);
        CHECK_MSG(strstr(st.message, "step-00000006.moe") && strstr(st.message, "No space left"),
                  "%s", st.message);
        CHECK(!exists(small, 6, "") && !exists(small, 6, ".tmp"));
        moe_comm_barrier(comm);
        CHECK_EQ(find(comm, small, word, &ok), 3);
        CHECK_STR(word, "");
        moe_file_piece piece = {m->p[0].value, comm->rank * (int64_t)(TABLE * sizeof(real)),
                                TABLE * sizeof(real)};
        snprintf(path, sizeof path, "%.240s/direct", small);
        int64_t total = comm->size * piece.bytes;
        if (total > 2 << 20) {
            CHECK_MSG(moe_comm_write_blocks(comm, path, total, &piece, 1, &direct) == MOE_ERROR,
                      "%lld", (long long)total);
        }
        moe_comm_barrier(comm);
        if (comm->rank == 0) {
            CHECK(umount2(small, MNT_DETACH) == 0);
        }
    } else if (comm->rank == 0) {
        printf("skipped: a full disk (a small tmpfs cannot be mounted)\n");
    }
    if (comm->rank == 0) {
        rmdir(small);
    }
}

int main(int argc, char **argv) {
    moe_comm comm, self = {.size = 1, .local_size = 1, .num_hosts = 1};
    char folder[] = "/tmp/moesim-test-checkpoint-XXXXXX";
    moe_comm_init(&comm, &argc, &argv);
    self.comm = MPI_COMM_SELF;
    self.max_count = comm.max_count;
    if (comm.rank == 0) {
        CHECK(mkdtemp(folder) != NULL);
    }
    moe_comm_bcast(&comm, folder, sizeof folder, 0);
    made m;
    make(&m, &comm, true, true);
    if (comm.rank == 0) {
        RUN(check_checksum);
    }
    RUN(check_round_trip, &comm, &self, folder, &m);
    RUN(check_same_bytes, &comm, &self, folder);
    RUN(check_keeps_two, &comm, folder, &m);
    RUN(check_damage, &comm, folder);
    RUN(check_truncation, &comm, folder, &m);
    RUN(check_none_whole, &comm, folder, &m);
    RUN(check_other_model, &comm, folder);
    RUN(check_other_precision, &comm, folder);
    RUN(check_same_run, &comm);
    RUN(check_full_disk, &comm, folder, &m);
    moe_status st = {0};
    if (comm.rank == 0) {
        CHECK(moe_checkpoint_remove(folder, &st) == MOE_OK && rmdir(folder) == 0);
    }
    forget(&m);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
