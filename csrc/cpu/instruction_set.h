// Which of the compiler's copies of the element loops (LRFAST_CLONES) this machine runs.
#pragma once

namespace lrfast::cpu {

// "x86-64-v4", "x86-64-v3" or "default".
const char* instruction_set();

}  // namespace lrfast::cpu
