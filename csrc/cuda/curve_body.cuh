// The body of the kernel that records a loss: one thread follows the curve, the whole block copies
// the learning rates, which would be one wait for memory each for a single thread.
#pragma once

#include "core/curve.h"
#include "cuda/block.cuh"

namespace lrfast::cuda {

// place: shared by the block.
template <class Block>
LRFAST_HD void record_body(const CurveRows& curve, const Scalar& loss, const double* rates,
                           const Scalar& skip, int64_t& place, Block& block) {
  block.thread_zero([&] { place = record_loss(curve, loss, skip); });
  block.for_each_thread(
      [&](int thread) { copy_rates(curve, place, rates, thread, block.threads()); });
}

}  // namespace lrfast::cuda
