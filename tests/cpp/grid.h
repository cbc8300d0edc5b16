// The bodies of the step's kernels on the host, over whole grids. They are compiled once, in
// grid.cpp, for all the programs that run them.
#pragma once

#include <memory>
#include <vector>

#include "fixture.h"

namespace lrfast::test {

// A grid whose blocks run one after another. All share one memory, as blocks on a processor do:
// what the block before, the kernel before or the step before has left there must not matter.
class Grid {
 public:
  Grid(int rule, int64_t blocks, int threads);

  // All kernels, as step.cu launches them.
  void step(const StepTables& t);
  void run_schedule_block(const StepTables& t);
  void run_norm_block(const StepTables& t, int64_t index);
  // Of a rule that measures a distance, or of options that need sums over tensors; else nothing.
  void run_measure_block(const StepTables& t, int64_t index);
  void finish_distance(const StepTables& t);
  void run_step_block(const StepTables& t, int64_t index);

  int64_t blocks;
  int threads;
  std::vector<int64_t> order;  // of the blocks; empty: ascending
  bool forces_passes = false;  // the kernel with passes also where no pass is wanted

 private:
  int rule_;
  std::shared_ptr<void> norm_memory_;
  std::shared_ptr<void> step_memory_;
};

}  // namespace lrfast::test
