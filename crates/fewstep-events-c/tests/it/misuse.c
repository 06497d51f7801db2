/* Every mistake that the library can see: each ends in a status and a sentence. */
#include "fewstep_events.h"

#include <stdio.h>

static void say(fewstep_status status) {
    printf("%d %s\n", (int)status, fewstep_last_error());
}

int main(int argc, char **argv) {
    fewstep_model *model = NULL;
    const char *name = NULL;
    float scores[3];
    uint8_t pixels[72] = {0};
    if (argc != 2)
        return 2;
    say(fewstep_model_open(argv[1], NULL));
    say(fewstep_model_open(NULL, &model));
    say(fewstep_model_open("nowhere.fewstep", &model));
    say(fewstep_model_from_memory(NULL, 5, &model));
    if (model)
        return 3;
    say(fewstep_model_run(NULL, pixels, 72, 1, scores, 3));
    if (fewstep_model_open(argv[1], &model) != FEWSTEP_STATUS_OK)
        return 4;
    say(fewstep_model_run(model, NULL, 72, 1, scores, 3));
    say(fewstep_model_run(model, pixels, 72, 1, NULL, 3));
    say(fewstep_model_run(model, pixels, 71, 1, scores, 3));
    say(fewstep_model_run(model, pixels, 72, 1, scores, 2));
    say(fewstep_model_run(model, pixels, 72, 0, scores, 3));
    say(fewstep_model_class_name(model, 3, &name));
    printf("%d ", (int)fewstep_model_class_name(model, 2, &name));
    printf("%s\n", name);
    fewstep_model_free(model);
    fewstep_model_free(NULL);
    return 0;
}
