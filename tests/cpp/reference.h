// A step without chunks, grids, threads, vectors, tiles or memos: tensor after tensor, pass after
// pass, element after element. It shares the rules' formulas, the conversions and the noise with
// the drivers, and nothing that the drivers do.
#pragma once

#include "fixture.h"

namespace lrfast::test {

void reference_step(Plan& plan);

}  // namespace lrfast::test
