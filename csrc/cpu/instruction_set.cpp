#include "cpu/instruction_set.h"

#include "cpu/tasks.h"

namespace lrfast::cpu {

// Picked at load time by the resolver that picks the loops' clones, from the same list.
#if defined(LRFAST_HAS_CLONES)
namespace {

__attribute__((target("arch=x86-64-v4"))) const char* picked() { return "x86-64-v4"; }
__attribute__((target("arch=x86-64-v3"))) const char* picked() { return "x86-64-v3"; }
__attribute__((target("default"))) const char* picked() { return "default"; }

}  // namespace

const char* instruction_set() { return picked(); }
#else
const char* instruction_set() { return "default"; }
#endif

}  // namespace lrfast::cpu
