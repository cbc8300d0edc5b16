#include "cpu/norms.h"

#include "cpu/tasks.h"

namespace lrfast::cpu {

LRFAST_CLONES void square_chunks(const StepTables& t, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    const ChunkRow chunk = t.chunks[c];
    double& squares = t.totals.chunk_squares[c];
    squares = 0.0;
    if (!is_counted(t, chunk.tensor)) continue;
    const Range range = range_of(t, chunk);
    with_types(t.tensors[chunk.tensor].dtypes, [&]<class Param, class State>() {
      const Param* grads = static_cast<const Param*>(t.grads[chunk.tensor]);
      squares = sum_squares(grads + range.begin, range.end - range.begin);
    });
  }
}

}  // namespace lrfast::cpu
