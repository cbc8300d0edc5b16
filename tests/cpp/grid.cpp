#include "grid.h"

#include <cstring>

#include "cuda/step_body.cuh"

namespace lrfast::test {
namespace {

// Not zeroed, as a block's shared memory is not.
template <class Memory>
std::shared_ptr<void> make_memory() {
  auto memory = std::make_shared<Memory>();
  std::memset(static_cast<void*>(memory.get()), 0xa5, sizeof(Memory));
  return memory;
}

template <class Rule, bool passes, bool altered>
LRFAST_NOINLINE void run_body(const StepTables& t, void* memory, cuda::HostBlock block) {
  cuda::step_body<Rule, passes, altered>(t, *static_cast<cuda::StepMemory<Rule>*>(memory), block);
}

}  // namespace

Grid::Grid(int rule, int64_t blocks, int threads) : blocks(blocks), threads(threads), rule_(rule) {
  norm_memory_ = make_memory<cuda::NormMemory>();
  Rules::visit(rule, [&]<class Rule>() { step_memory_ = make_memory<cuda::StepMemory<Rule>>(); });
}

void Grid::run_schedule_block(const StepTables& t) {
  cuda::HostBlock block{0, 1, threads};
  cuda::schedule_body(t, block);
}

void Grid::run_norm_block(const StepTables& t, int64_t index) {
  cuda::HostBlock block{index, blocks, threads};
  cuda::norm_body(t, *static_cast<cuda::NormMemory*>(norm_memory_.get()), block);
}

void Grid::run_step_block(const StepTables& t, int64_t index) {
  const cuda::HostBlock block{index, blocks, threads};
  const bool has_passes = forces_passes || cuda::has_passes(t);
  Rules::visit(rule_, [&]<class Rule>() {
    cuda::with_step<Rule>(t, has_passes, [&]<bool passes, bool altered>() {
      run_body<Rule, passes, altered>(t, step_memory_.get(), block);
    });
  });
}

void Grid::run_measure_block(const StepTables& t, int64_t index) {
  cuda::HostBlock block{index, blocks, threads};
  Rules::visit(rule_, [&]<class Rule>() {
    auto& memory = *static_cast<cuda::StepMemory<Rule>*>(step_memory_.get());
    if constexpr (Measures<Rule>) {
      cuda::measure_body<Rule, false>(t, memory, block);
    } else {
      with_terms<Rule>(
          t, [&]<bool squares>() { cuda::measure_body<Rule, squares>(t, memory, block); });
    }
  });
}

void Grid::finish_distance(const StepTables& t) {
  cuda::HostBlock block{0, 1, threads};
  Rules::visit(rule_, [&]<class Rule>() {
    if constexpr (Measures<Rule>) cuda::finish_distance_body<Rule>(t, block);
  });
}

void Grid::step(const StepTables& t) {
  const auto at = [&](int64_t i) { return order.empty() ? i : order[i]; };
  const bool has_distance = t.totals.terms != nullptr;
  const bool measures = t.totals.tensor_terms || (has_distance && t.phase != Phase::kUpdate);
  for (int64_t i = 0; takes_squares(t) && i < blocks; ++i) run_norm_block(t, at(i));
  if (finishes_squares(t)) {
    cuda::HostBlock block{0, 1, threads};
    cuda::finish_norms_body(t, *static_cast<cuda::NormMemory*>(norm_memory_.get()), block);
  }
  if (!updates(t)) return;
  if (lacks_values(t)) run_schedule_block(t);
  for (int64_t i = 0; measures && i < blocks; ++i) run_measure_block(t, at(i));
  if (t.phase == Phase::kMeasure) return;
  if (has_distance && t.phase == Phase::kUpdate) finish_distance(t);
  for (int64_t i = 0; i < blocks; ++i) run_step_block(t, at(i));
}

}  // namespace lrfast::test
