/* regions.c: parallel regions of one thread without a team. A tiny step has some forty regions, and
 * libgomp makes a team for each, even of one thread: half a microsecond. The linker puts this
 * function before libgomp's (CMakeLists.txt, --wrap); nothing changes in a program that is linked
 * without that option, or with another OpenMP.
 *
 * A region inside another one keeps its team, because libgomp notes there, for each region by
 * itself, the number of the thread and the loop that it is in the middle of. */
#include <omp.h>
#include <stdbool.h>

void __real_GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags);
void __wrap_GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags);

static _Thread_local bool is_inside; /* a region without a team */

void __wrap_GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags) {
    const unsigned most = threads ? threads : (unsigned)omp_get_max_threads();
    if (most == 1 && !is_inside && !omp_in_parallel()) {
        is_inside = true;
        body(data);
        is_inside = false;
    } else {
        __real_GOMP_parallel(body, data, threads, flags);
    }
}
