/* example.c: what docs/library.md shows of the C interface, compiled as a user would. Routes 64
 * tokens to 8 experts on 4 devices and prints the selections of each expert and the loss. */
#include <math.h>
#include <moesim.h>
#include <stdio.h>

int main(void) {
    char error[MOESIM_ERROR_MAX];
    static float z[64 * 8];
    moesim_array logits, count, loss;
    moesim_layer *layer = moesim_layer_new("router.top_k = 2\ncluster.devices = 4\n", error);
    int i;
    for (i = 0; i < 64 * 8; i++) {
        z[i] = (float)sin(i);
    }
    logits.type = MOESIM_F32;
    logits.num_dims = 2;
    logits.shape[0] = 64;
    logits.shape[1] = 8;
    logits.data = z;
    if (!layer || moesim_layer_set(layer, "logits", &logits, error) ||
        moesim_layer_route(layer, error) ||
        moesim_layer_get(layer, "counts_per_expert", &count, error) ||
        moesim_layer_get(layer, "loss_raw", &loss, error)) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    for (i = 0; i < 8; i++) {
        printf("%lld ", (long long)((const int64_t *)count.data)[i]);
    }
    printf("%.12g\n", ((const double *)loss.data)[0]);
    z[9] = (float)NAN;
    if (moesim_layer_set(layer, "logits", &logits, error) || !moesim_layer_route(layer, error)) {
        return 1;
    }
    printf("%s\n", error);
    moesim_layer_free(layer);
    return 0;
}
