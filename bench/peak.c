/* peak.c: peak FOLDER PROGRAM [ARGUMENT...]: runs the program and writes its largest resident
 * memory in KiB to FOLDER/<rank>.
 *
 * bench: part of memory */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    char path[4096];
    int status = 0;
    struct rusage usage;
    if (argc < 3) {
        return 2;
    }
    pid_t child = fork();
    if (child == 0) {
        execvp(argv[2], argv + 2);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, &usage) < 0) {
        return 1;
    }
    snprintf(path, sizeof path, "%s/%s", argv[1], rank ? rank : "0");
    FILE *file = fopen(path, "w");
    if (!file) {
        return 1;
    }
    fprintf(file, "%ld\n", usage.ru_maxrss);
    fclose(file);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
