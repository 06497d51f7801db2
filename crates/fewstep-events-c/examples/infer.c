/* Runs a model on images: `infer MODEL PIXELS [THREADS]`. PIXELS is a file of bytes, image after image, [height, width, channels]
 * each. Prints, for each image, its class and the scores. */
#include "fewstep_events.h"

#include <stdio.h>
#include <stdlib.h>

static void quit_unless_ok(fewstep_status status) {
    if (status != FEWSTEP_STATUS_OK) {
        fprintf(stderr, "%s\n", fewstep_last_error());
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: infer MODEL PIXELS [THREADS]\n");
        return 2;
    }
    fewstep_model *model;
    size_t height, width, channels, classes;
    quit_unless_ok(fewstep_model_open(argv[1], &model));
    quit_unless_ok(fewstep_model_input(model, &height, &width, &channels));
    quit_unless_ok(fewstep_model_classes(model, &classes));

    FILE *file = fopen(argv[2], "rb");
    if (!file) {
        perror(argv[2]);
        return 1;
    }
    fseek(file, 0, SEEK_END);
    size_t bytes = (size_t)ftell(file), size = height * width * channels, images = bytes / size;
    rewind(file);
    uint8_t *pixels = malloc(bytes);
    float *scores = malloc(images * classes * sizeof *scores);
    if (!pixels || !scores || fread(pixels, 1, bytes, file) != bytes) {
        fprintf(stderr, "%s: can't be read\n", argv[2]);
        return 1;
    }
    fclose(file);

    size_t threads = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
    quit_unless_ok(fewstep_model_run(model, pixels, bytes, threads, scores, images * classes));
    for (size_t i = 0; i < images; i++) {
        const float *score = scores + i * classes;
        size_t best = 0;
        for (size_t c = 1; c < classes; c++)
            if (score[c] > score[best])
                best = c;
        const char *name;
        quit_unless_ok(fewstep_model_class_name(model, best, &name));
        printf("%s", name ? name : "?");
        for (size_t c = 0; c < classes; c++)
            printf(" %.9g", score[c]);
        printf("\n");
    }
    free(scores);
    free(pixels);
    fewstep_model_free(model);
    return 0;
}
