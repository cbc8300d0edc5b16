// Tells whether a Python dict has changed since it was last looked at, in one comparison. Param
// groups and states are dicts that anyone may change between two steps; looking up each of their
// entries costs more than a small tensor's update.
#pragma once

#include <Python.h>

#include <cstdint>

namespace lrfast::bindings {

constexpr bool kHasDictVersions = PY_VERSION_HEX < 0x030E0000;

// A number that no dict had before its last change. From Python 3.14 on dicts have none: then every
// answer is new, and what was read is read again.
inline uint64_t version_of(PyObject* dict) {
#if PY_VERSION_HEX < 0x030E0000
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#pragma GCC diagnostic pop
#else
  static uint64_t answers = 0;
  (void)dict;
  return ++answers;
#endif
}

}  // namespace lrfast::bindings
