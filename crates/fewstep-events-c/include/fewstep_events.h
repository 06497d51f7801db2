/* fewstep-events: runs spiking networks of few timesteps on a CPU. README.md of crates/fewstep-events-c says how to link it.
 * Made by cbindgen from src/lib.rs; `FEWSTEP_RENEW=1 cargo test -p fewstep-events-c` makes it anew.
 *
 * Every function that can fail returns a status and leaves a sentence for fewstep_last_error(). A model may be used by many
 * threads at a time; free it when none does. */

#ifndef FEWSTEP_EVENTS_H
#define FEWSTEP_EVENTS_H

#include <stddef.h>
#include <stdint.h>

// What became of a call.
typedef enum fewstep_status {
  // Done.
  FEWSTEP_STATUS_OK = 0,
  // An argument is NULL, misaligned, out of range, or of the wrong length.
  FEWSTEP_STATUS_MISUSE = 1,
  // The model can't be read, is damaged, is of another version, or is no model.
  FEWSTEP_STATUS_FILE = 2,
  // There is not enough memory.
  FEWSTEP_STATUS_MEMORY = 3,
  // A mistake in this library.
  FEWSTEP_STATUS_INTERNAL = 4,
} fewstep_status;

// A model that is ready to run. Its contents are private.
typedef struct fewstep_model fewstep_model;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Opens the model file at `path` and puts a model into `*model`, to be freed with `fewstep_model_free`. The file is mapped: replace
// it by renaming another over it, never by writing into it. `*model` is NULL where that fails.
//
// # Safety
// `path` is NULL or a string that ends in NUL; `model` is NULL or points to room for a pointer.
enum fewstep_status fewstep_model_open(const char *path,
                                       struct fewstep_model **model);

// A model from the `len` bytes of a model file, which are copied. Else as `fewstep_model_open`.
//
// # Safety
// `bytes` is NULL or points to `len` bytes; `model` is NULL or points to room for a pointer.
enum fewstep_status fewstep_model_from_memory(const uint8_t *bytes, size_t len, struct fewstep_model **model);

// Height, width and channels of an image.
//
// # Safety
// `model` is NULL or a model that is not freed; the others are NULL or point to room for a number.
enum fewstep_status fewstep_model_input(const struct fewstep_model *model,
                                        size_t *height,
                                        size_t *width,
                                        size_t *channels);

// The number of classes.
//
// # Safety
// `model` is NULL or a model that is not freed; `classes` is NULL or points to room for a number.
enum fewstep_status fewstep_model_classes(const struct fewstep_model *model, size_t *classes);

// The name of a class, in UTF-8, which lives as long as the model. NULL with `FEWSTEP_STATUS_OK` where the file has no names.
//
// # Safety
// `model` is NULL or a model that is not freed; `name` is NULL or points to room for a pointer.
enum fewstep_status fewstep_model_class_name(const struct fewstep_model *model,
                                             size_t number,
                                             const char **name);

// Runs images on a number of threads (1 to 1024).
//
// `pixels` are the bytes [N, height, width, channels] of N images, `pixels_len` in number; `scores` is room for [N, classes] numbers,
// `scores_len` in number. The class of an image is the place of its highest score. Several threads may run one model at a time. What a
// call needs in memory is kept for the next one with as many threads, so that a second call does not ask for any.
//
// # Safety
// `model` is NULL or a model that is not freed before this call returns; `pixels` and `scores` are NULL or of the lengths said, and
// nobody else writes to them or reads the scores meanwhile.
enum fewstep_status fewstep_model_run(const struct fewstep_model *model,
                                      const uint8_t *pixels,
                                      size_t pixels_len,
                                      size_t threads,
                                      float *scores,
                                      size_t scores_len);

// Why this thread's last call that failed did: one sentence in UTF-8, empty before the first. It is good until the next call of this
// library that fails on this thread.
const char *fewstep_last_error(void);

// Frees a model. NULL is nothing.
//
// # Safety
// `model` is NULL or a model that is not freed and that no other call uses.
void fewstep_model_free(struct fewstep_model *model);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FEWSTEP_EVENTS_H */
