// Shared by the shim's files: how a C++ exception leaves it. Every function returns null, or a message that the caller frees.
#pragma once
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>

#define FEWSTEP_TRY(...)                      \
  try {                                       \
    __VA_ARGS__                               \
    return nullptr;                           \
  } catch (const c10::Error& e) {             \
    return strdup(e.what_without_backtrace()); \
  } catch (const std::exception& e) {         \
    return strdup(e.what());                  \
  }
