/* defaults.c: linked into every program of the AddressSanitizer build only: options and what it
 * must overlook, so that such a program can be run by hand or under mpirun without any environment.
 * ASAN_OPTIONS, LSAN_OPTIONS and UBSAN_OPTIONS still win. */

const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "abort_on_error=1:detect_leaks=1";
}

const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void) {
    return "print_stacktrace=1";
}

const char *__lsan_default_options(void);
const char *__lsan_default_options(void) {
    return "print_suppressions=0:fast_unwind_on_malloc=0";
}

/* Allocations that the libraries below moesim keep until the process ends (Open MPI 4.1, PMIx,
 * hwloc, libevent), and what the sanitizer itself allocates to find a thread's stack, which it may
 * still hold where a thread of the BLAS starts as the program ends. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libmpi.so\nleak:libopen-rte.so\nleak:libopen-pal.so\nleak:mca_\nleak:"
           "libpmix\nleak:libevent\nleak:libhwloc\nleak:"
           "libltdl\nleak:libdl\nleak:GetThreadStackTopAndBottom\n";
}

/* Open MPI unloads its plugins at the end of a run, and LeakSanitizer then no longer knows whose
 * allocations it sees: they stay mapped. */
int dlclose(void *handle);
int dlclose(void *handle) {
    (void)handle;
    return 0;
}
