/* fail_silent.c: nothing is checked, so the test must fail. With an argument it checks, and passes.
 */
#include "check.h"

int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1) {
        CHECK_EQ(argc, 2);
    }
    return check_verdict();
}
