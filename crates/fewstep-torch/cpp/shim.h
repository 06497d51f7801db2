// Shared by the shim's files: how a C++ exception leaves it. Every function returns null, or a message that the caller frees.
#pragma once
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>

// A message on the heap. Null would mean success, so a machine without a hundred bytes left ends here.
inline char* fewstep_message(const char* text) {
  char* copy = strdup(text);
  if (!copy) std::abort();
  return copy;
}

#define FEWSTEP_TRY(...)                              \
  try {                                               \
    __VA_ARGS__                                       \
    return nullptr;                                   \
  } catch (const c10::Error& e) {                     \
    return fewstep_message(e.what_without_backtrace()); \
  } catch (const std::exception& e) {                 \
    return fewstep_message(e.what());                 \
  } catch (...) {                                     \
    return fewstep_message("an unknown C++ exception"); \
  }
