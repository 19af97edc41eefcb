/* comm.c: start and end of MPI, agreement on failures, sums of integers, Alltoallv of any size
 * (files that all ranks write together: comm_file.c). There is no sum of floating-point numbers,
 * because it would depend on the number of ranks (base/exact.h). */
#include "world/comm.h"

#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "world/board.h"

enum { FEW_RANKS = 64 }; /* counts of a call for more ranks stand in comm->many */

/* --- start and end --- */

static long environment_number(const char *name) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : 0;
}

/* How many ranks share this host, and whether all do, as far as what started them says so in the
 * environment: mpirun, or srun without mpirun, whose numbers of tasks are "4(x2),3". A rank that
 * was started by neither and has no PMIx to ask for others is alone. */
static long ranks_on_host(bool *all) {
    const long local = environment_number("OMPI_COMM_WORLD_LOCAL_SIZE"),
               world = environment_number("OMPI_COMM_WORLD_SIZE");
    if (world == 0 && getenv("PMIX_RANK")) {
        *all = environment_number("SLURM_STEP_NUM_NODES") == 1;
        return environment_number("SLURM_STEP_TASKS_PER_NODE");
    }
    *all = local == world;
    return local;
}

/* Open MPI reads these in MPI_Init. Ranks that share cores must yield: with declared slots mpirun
 * does not see the oversubscription, and an iteration takes about 1000 times as long. On one host
 * nothing but shared memory is needed, which starts faster. No file pointer is shared here, and the
 * `sm` kind of them, which is made for every file all the same, has a buffer that the name of a
 * file in a long path overflows (4.1.4). */
static void set_open_mpi_parameters(void) {
    bool one_host;
    long local = ranks_on_host(&one_host);
    setenv("OMPI_MCA_sharedfp", "individual", 0);
    if (local > sysconf(_SC_NPROCESSORS_ONLN)) {
        setenv("OMPI_MCA_mpi_yield_when_idle", "1", 1);
    }
    if (one_host && !getenv("OMPI_MCA_pml") && !getenv("OMPI_MCA_btl")) {
#if defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION >= 5
        setenv("OMPI_MCA_btl", "self,sm", 1);
#else
        setenv("OMPI_MCA_btl", "self,vader", 1);
#endif
        setenv("OMPI_MCA_pml", "ob1", 1);
    }
}

void moe_comm_abort(int code) {
    MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
}

/* Collective. Which ranks share this rank's host, and how the ranks are dealt out to the hosts. */
static void find_hosts(moe_comm *comm) {
    MPI_Comm host;
    MPI_Comm_split_type(comm->comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, &comm->local_rank);
    MPI_Comm_size(host, &comm->local_size);
    int first = comm->local_rank == 0, start = comm->rank;
    MPI_Bcast(&start, 1, MPI_INT, 0, host);
    comm->host = moe_host_new(comm, host);
    MPI_Allreduce(&first, &comm->num_hosts, 1, MPI_INT, MPI_SUM, comm->comm);
    int odd[2] = {comm->local_size * comm->num_hosts != comm->size,
                  comm->rank != start + comm->local_rank};
    MPI_Allreduce(MPI_IN_PLACE, odd, 2, MPI_INT, MPI_MAX, comm->comm);
    comm->hosts_are_equal = odd[0] == 0;
    comm->hosts_are_in_turn = odd[1] == 0;
}

/* Open MPI's plug-in for PMIx, in the list of what is loaded; data: char [PATH_MAX]. */
static int find_pmix(struct dl_phdr_info *info, size_t size, void *data) {
    const char *name = info->dlpi_name ? info->dlpi_name : "";
    (void)size;
    if (!strstr(name, "/mca_pmix_") || strlen(name) >= PATH_MAX) {
        return 0;
    }
    strcpy(data, name);
    return 1;
}

/* MPI_Finalize unloads that plug-in while a thread of Open MPI may still have one of its functions
 * before it: news of the end of the job that came late. On a busy host one run in some hundreds
 * then ended in a segmentation fault after all its work (4.1.4). It is kept loaded. */
static void keep_pmix_loaded(void) {
    char path[PATH_MAX];
    if (dl_iterate_phdr(find_pmix, path)) {
        dlopen(path, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
    }
}

void moe_comm_init(moe_comm *comm, int *argc, char ***argv) {
    set_open_mpi_parameters();
    int provided;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    keep_pmix_loaded();
    moe_set_abort_hook(moe_comm_abort);
    comm->comm = MPI_COMM_WORLD;
    comm->max_count = INT_MAX;
    MPI_Comm_rank(comm->comm, &comm->rank);
    MPI_Comm_size(comm->comm, &comm->size);
    comm->many = comm->size > FEW_RANKS ? calloc((size_t)comm->size, 4 * sizeof *comm->many) : NULL;
    if (comm->size > FEW_RANKS && !comm->many) {
        moe_out_of_memory("counts of MPI calls", 4 * sizeof *comm->many * (unsigned)comm->size);
    }
    find_hosts(comm);
}

/* Not MPI_Wtime, which may count from another moment in each process. */
double moe_comm_time(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Rank 0 asks, rank q answers with its time; rank 0's time at that moment is taken to be the middle
 * between question and answer. Of several rounds the quickest counts: its error is at most half its
 * duration (F. Cristian, Probabilistic clock synchronization, 1989). */
static double offset_of(const moe_comm *comm, int q) {
    enum { ROUNDS = 16, TAG = 1 };
    double offset = 0, shortest = -1;
    for (int i = 0; i < ROUNDS; i++) {
        double theirs = 0, asked = moe_comm_time();
        if (comm->rank == 0) {
            MPI_Send(NULL, 0, MPI_BYTE, q, TAG, comm->comm);
            MPI_Recv(&theirs, 1, MPI_DOUBLE, q, TAG, comm->comm, MPI_STATUS_IGNORE);
            double answered = moe_comm_time();
            if (shortest < 0 || answered - asked < shortest) {
                shortest = answered - asked;
                offset = theirs - (asked + answered) / 2;
            }
        } else {
            MPI_Recv(NULL, 0, MPI_BYTE, 0, TAG, comm->comm, MPI_STATUS_IGNORE);
            theirs = moe_comm_time();
            MPI_Send(&theirs, 1, MPI_DOUBLE, 0, TAG, comm->comm);
        }
    }
    return offset;
}

double moe_comm_clock_offset(const moe_comm *comm) {
    double offset = 0, theirs = 0;
    if (comm->num_hosts == 1) {
        return 0;
    }
    for (int q = 1; q < comm->size; q++) {
        if (comm->rank != 0 && comm->rank != q) {
            continue;
        }
        offset = offset_of(comm, q);
        if (comm->rank == 0) {
            MPI_Send(&offset, 1, MPI_DOUBLE, q, 2, comm->comm);
        } else {
            MPI_Recv(&theirs, 1, MPI_DOUBLE, 0, 2, comm->comm, MPI_STATUS_IGNORE);
        }
    }
    return theirs;
}

/* --- agreement, broadcast, integer reductions --- */

int moe_comm_lowest_rank(const moe_comm *comm, bool flag) {
    int lowest = flag ? comm->rank : comm->size;
    MPI_Allreduce(MPI_IN_PLACE, &lowest, 1, MPI_INT, MPI_MIN, comm->comm);
    return lowest < comm->size ? lowest : -1;
}

int moe_comm_agree(const moe_comm *comm, moe_status *st) {
    int first = moe_comm_lowest_rank(comm, st->code != MOE_OK);
    if (first < 0) {
        return MOE_OK;
    }
    MPI_Bcast(st, (int)sizeof *st, MPI_BYTE, first, comm->comm);
    return st->code;
}

void moe_comm_barrier(const moe_comm *comm) {
    MPI_Barrier(comm->comm);
}

/* How many of `left` elements one MPI call takes. */
static int narrow(const moe_comm *comm, int64_t left) {
    return (int)(left < comm->max_count ? left : comm->max_count);
}

/* Narrows counts and offsets to MPI's int; asserts that none exceeds `limit`. */
static void narrow_all(const int64_t *from, int *to, int n, int64_t limit) {
    for (int i = 0; i < n; i++) {
        MOE_ASSERT(from[i] >= 0 && from[i] <= limit);
        to[i] = (int)from[i];
    }
}

void moe_comm_bcast(const moe_comm *comm, void *bytes, int64_t count, int root) {
    for (int64_t done = 0; done < count;) {
        int n = narrow(comm, count - done);
        MPI_Bcast((char *)bytes + done, n, MPI_BYTE, root, comm->comm);
        done += n;
    }
}

/* The host whose board carries a message of so many bytes to all ranks; NULL: MPI carries it. */
static moe_host *board_for(const moe_comm *comm, int64_t bytes) {
    moe_host *h = comm->host;
    return h && h->board && h->size == comm->size && bytes <= MOE_BOARD_BYTES ? h : NULL;
}

static void add(int64_t *values, const int64_t *others, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        values[i] += others[i];
    }
}

static void raise(int64_t *values, const int64_t *others, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        values[i] = others[i] > values[i] ? others[i] : values[i];
    }
}

static void reduce_on_board(moe_host *h,
                            int64_t *values,
                            int64_t count,
                            void (*join)(int64_t *values, const int64_t *others, int64_t count)) {
    moe_board_show(h, values, count * (int64_t)sizeof *values);
    for (int p = 0; p < h->size; p++) {
        if (p != h->rank) {
            join(values, (const int64_t *)(const void *)moe_board_of(h, p), count);
        }
    }
}

static void reduce_in_place(const moe_comm *comm,
                            void *values,
                            int64_t count,
                            MPI_Datatype type,
                            size_t size,
                            MPI_Op op) {
    for (int64_t done = 0; done < count;) {
        int n = narrow(comm, count - done);
        MPI_Allreduce(MPI_IN_PLACE, (char *)values + done * (int64_t)size, n, type, op, comm->comm);
        done += n;
    }
}

void moe_comm_sum_i64(const moe_comm *comm, int64_t *values, int64_t count) {
    moe_host *h = board_for(comm, count * (int64_t)sizeof *values);
    if (h) {
        reduce_on_board(h, values, count, add);
    } else {
        reduce_in_place(comm, values, count, MPI_INT64_T, sizeof *values, MPI_SUM);
    }
}

void moe_comm_max_i64(const moe_comm *comm, int64_t *values, int64_t count) {
    moe_host *h = board_for(comm, count * (int64_t)sizeof *values);
    if (h) {
        reduce_on_board(h, values, count, raise);
    } else {
        reduce_in_place(comm, values, count, MPI_INT64_T, sizeof *values, MPI_MAX);
    }
}

void moe_comm_max_f64(const moe_comm *comm, double *values, int64_t count) {
    reduce_in_place(comm, values, count, MPI_DOUBLE, sizeof *values, MPI_MAX);
}

void moe_comm_alltoall(const moe_comm *comm, const void *send, void *recv, int64_t bytes) {
    MOE_ASSERT(bytes <= INT_MAX);
    MPI_Alltoall(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, comm->comm);
}

/* Memory for 4 ints of each rank: on the caller's stack, or, where there are many ranks, in
 * comm->many. */
static int *ints_for(const moe_comm *comm, int few[4 * FEW_RANKS]) {
    return comm->size > FEW_RANKS ? comm->many : few;
}

static void gather_on_board(moe_host *h, const void *send, char *recv, const int64_t *counts) {
    moe_board_show(h, send, counts[h->rank]);
    for (int p = 0; p < h->size; recv += counts[p++]) {
        if (counts[p] > 0) {
            memcpy(recv, moe_board_of(h, p), (size_t)counts[p]);
        }
    }
}

/* Calls MPI_Allgatherv where counts and offsets fit into MPI's int, else broadcasts in pieces. */
void moe_comm_allgatherv(const moe_comm *comm,
                         const void *send,
                         void *recv,
                         const int64_t *counts) {
    int few[4 * FEW_RANKS], *ints = ints_for(comm, few), *offsets = ints + comm->size;
    int64_t total = 0, before = 0, most = 0;
    for (int q = 0; q < comm->size; q++) {
        before += q < comm->rank ? counts[q] : 0;
        total += counts[q];
        most = counts[q] > most ? counts[q] : most;
    }
    moe_host *h = board_for(comm, most);
    if (h) {
        gather_on_board(h, send, recv, counts);
        return;
    }
    if (total <= comm->max_count) {
        narrow_all(counts, ints, comm->size, comm->max_count);
        for (int q = 0, offset = 0; q < comm->size; offset += ints[q++]) {
            offsets[q] = offset;
        }
        MPI_Allgatherv(send, ints[comm->rank], MPI_BYTE, recv, ints, offsets, MPI_BYTE, comm->comm);
        return;
    }
    if (counts[comm->rank]) {
        memmove((char *)recv + before, send, (size_t)counts[comm->rank]);
    }
    for (int64_t q = 0, offset = 0; q < comm->size; offset += counts[q++]) {
        moe_comm_bcast(comm, (char *)recv + offset, counts[q], (int)q);
    }
}

/* --- Alltoallv --- */

/* The datatypes of rows are made once and kept: a run has a few row sizes, and a step has many
 * exchanges. */
enum { MAX_ROW_TYPES = 16 };
static struct {
    int64_t bytes;
    MPI_Datatype type;
} row_types[MAX_ROW_TYPES];
static int num_row_types;

static void free_row_types(void) {
    while (num_row_types > 0) {
        MPI_Type_free(&row_types[--num_row_types].type);
    }
}

static MPI_Datatype row_type(int64_t row_bytes) {
    MOE_ASSERT(row_bytes > 0 && row_bytes <= INT_MAX);
    for (int i = 0; i < num_row_types; i++) {
        if (row_types[i].bytes == row_bytes) {
            return row_types[i].type;
        }
    }
    if (num_row_types == MAX_ROW_TYPES) {
        free_row_types();
    }
    row_types[num_row_types].bytes = row_bytes;
    MPI_Type_contiguous((int)row_bytes, MPI_BYTE, &row_types[num_row_types].type);
    MPI_Type_commit(&row_types[num_row_types].type);
    return row_types[num_row_types++].type;
}

/* Counts and offsets of both sides as MPI takes them: ints [4 * size]. */
static void narrow_blocks(const moe_comm *comm,
                          moe_blocks send,
                          moe_blocks recv,
                          int64_t limit,
                          int *ints) {
    int n = comm->size;
    narrow_all(send.count, ints, n, limit);
    narrow_all(send.offset, ints + n, n, limit);
    narrow_all(recv.count, ints + 2 * n, n, limit);
    narrow_all(recv.offset, ints + 3 * n, n, limit);
}

static void alltoallv_once(const moe_comm *comm,
                           moe_blocks send,
                           moe_blocks recv,
                           MPI_Datatype type,
                           int64_t limit) {
    int n = comm->size, few[4 * FEW_RANKS], *ints = ints_for(comm, few);
    narrow_blocks(comm, send, recv, limit, ints);
    MPI_Alltoallv(send.rows, ints, ints + n, type, recv.rows, ints + 2 * n, ints + 3 * n, type,
                  comm->comm);
}

/* Lays out the staging buffer for the rows done .. done + step - 1 of every block, without gaps:
 * staged and offset [size] describe it. Returns its number of rows. */
static int64_t stage_layout(const moe_comm *comm,
                            const int64_t *count,
                            int64_t done,
                            int64_t step,
                            int64_t *staged,
                            int64_t *offset) {
    int64_t total = 0;
    for (int q = 0; q < comm->size; q++) {
        int64_t left = count[q] - done;
        staged[q] = left < 0 ? 0 : left < step ? left : step;
        offset[q] = total;
        total += staged[q];
    }
    return total;
}

static void stage_copy(const moe_comm *comm,
                       moe_blocks user,
                       char *stage,
                       const int64_t *staged,
                       const int64_t *offset,
                       int64_t done,
                       int64_t row_bytes,
                       bool to_user) {
    for (int q = 0; q < comm->size; q++) {
        char *theirs = (char *)user.rows + (user.offset[q] + done) * row_bytes,
             *ours = stage + offset[q] * row_bytes;
        if (staged[q]) {
            memcpy(to_user ? theirs : ours, to_user ? ours : theirs,
                   (size_t)(staged[q] * row_bytes));
        }
    }
}

static void alltoallv_in_rounds(const moe_comm *comm,
                                moe_blocks send,
                                moe_blocks recv,
                                int64_t row_bytes,
                                MPI_Datatype type) {
    int64_t step = comm->max_count / comm->size > 0 ? comm->max_count / comm->size : 1, longest = 0;
    for (int q = 0; q < comm->size; q++) {
        if (send.count[q] > longest) {
            longest = send.count[q];
        }
    }
    moe_comm_max_i64(comm, &longest, 1);
    int64_t *layout = moe_alloc(4 * comm->size, sizeof *layout, "rounds of an Alltoallv");
    int64_t *sc = layout;
    int64_t *so = sc + comm->size;
    int64_t *rc = so + comm->size;
    int64_t *ro = rc + comm->size;
    /* no round stages more than the first */
    char *out = moe_alloc(stage_layout(comm, send.count, 0, step, sc, so), (size_t)row_bytes,
                          "staging of an Alltoallv");
    char *in = moe_alloc(stage_layout(comm, recv.count, 0, step, rc, ro), (size_t)row_bytes,
                         "staging of an Alltoallv");
    for (int64_t done = 0; done < longest; done += step) {
        stage_layout(comm, send.count, done, step, sc, so);
        stage_layout(comm, recv.count, done, step, rc, ro);
        stage_copy(comm, send, out, sc, so, done, row_bytes, false);
        alltoallv_once(comm, (moe_blocks){out, sc, so}, (moe_blocks){in, rc, ro}, type, INT_MAX);
        stage_copy(comm, recv, in, rc, ro, done, row_bytes, true);
    }
    moe_free(out);
    moe_free(in);
    moe_free(layout);
}

void moe_comm_alltoallv(const moe_comm *comm,
                        moe_blocks send,
                        moe_blocks recv,
                        int64_t row_bytes,
                        int64_t most_rows) {
    MPI_Datatype type = row_type(row_bytes);
    if (most_rows <= comm->max_count) {
        alltoallv_once(comm, send, recv, type, comm->max_count);
    } else {
        alltoallv_in_rounds(comm, send, recv, row_bytes, type);
    }
}

void moe_comm_alltoallv_begin(const moe_comm *comm,
                              moe_blocks send,
                              moe_blocks recv,
                              int64_t row_bytes,
                              int64_t most_rows,
                              int *counts,
                              moe_comm_request *request) {
    MPI_Datatype type = row_type(row_bytes);
    int n = comm->size;
    *request = MPI_REQUEST_NULL;
    if (most_rows > comm->max_count) {
        alltoallv_in_rounds(comm, send, recv, row_bytes, type);
        return;
    }
    narrow_blocks(comm, send, recv, comm->max_count, counts);
    MPI_Ialltoallv(send.rows, counts, counts + n, type, recv.rows, counts + 2 * n, counts + 3 * n,
                   type, comm->comm, request);
}

bool moe_comm_is_done(moe_comm_request *request) {
    int done;
    MPI_Test(request, &done, MPI_STATUS_IGNORE);
    return done != 0;
}

void moe_comm_wait(moe_comm_request *request) {
    MPI_Wait(request, MPI_STATUS_IGNORE);
}

void moe_comm_finalize(moe_comm *comm) {
    moe_host_free(comm->host);
    comm->host = NULL;
    comm->comm = MPI_COMM_NULL;
    free(comm->many);
    comm->many = NULL;
    free_row_types();
    moe_set_abort_hook(NULL);
    MPI_Finalize();
}
