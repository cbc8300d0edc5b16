// The step kernel's body with one std::thread per thread of the grid and a real barrier behind
// each part, as CudaBlock has it. ThreadSanitizer then sees a missing barrier, or a block that
// writes what another still reads.
#include <atomic>
#include <barrier>
#include <memory>
#include <thread>

#include "cuda/step_body.cuh"

#include "mixed.h"
#include "reference.h"

namespace lrfast::test {
namespace {

struct ThreadBlock {
  int64_t block;
  int64_t blocks;
  int block_threads;
  int thread;
  std::barrier<>* barrier;  // of the block

  int64_t index() const { return block; }
  int64_t count() const { return blocks; }
  int threads() const { return block_threads; }

  template <class Body>
  void each(Body&& body) {
    body(thread);
    barrier->arrive_and_wait();
  }
  template <class Body>
  void once(Body&& body) {
    if (thread == 0) body();
    barrier->arrive_and_wait();
  }
  int32_t arrive(int32_t* counter) {
    return std::atomic_ref(*counter).fetch_add(1, std::memory_order_acq_rel);
  }
};

template <class Rule>
LRFAST_NOINLINE void run_thread(const StepTables& t, cuda::StepMemory<Rule>& shared,
                                ThreadBlock block) {
  cuda::step_body<Rule>(t, shared, block);
}

template <class Rule>
void run_grid(const StepTables& t, int64_t blocks, int block_threads) {
  std::vector<cuda::StepMemory<Rule>> memory(blocks);
  std::vector<std::unique_ptr<std::barrier<>>> barriers;
  std::vector<std::thread> threads;
  for (int64_t b = 0; b < blocks; ++b) {
    barriers.push_back(std::make_unique<std::barrier<>>(block_threads));
    for (int thread = 0; thread < block_threads; ++thread) {
      const ThreadBlock block{b, blocks, block_threads, thread, barriers[b].get()};
      auto& shared = memory[b];
      threads.emplace_back([&t, &shared, block] { run_thread<Rule>(t, shared, block); });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

// Chunks that share tensors between blocks, tensors that change from chunk to chunk, and some that
// are left out, so that every branch with a barrier in it is taken.
template <class Rule>
void test_grids() {
  const Segment momentum{0, 0.0, 8.0, 0.95, 0.85, 0.0, Shape::kLinear};
  const Segment rate{0, 0.0, 8.0, 1.0, 0.1, 0.0, Shape::kCosine};
  std::vector<GroupRow> groups = {make_group<Rule>(0.1), make_group<Rule>(0.2),
                                  make_group<Rule>(0.3)};
  groups[0].schedule = 0;
  groups[2].frozen = 1;
  std::vector<TensorSpec> specs;
  for (const Kind kind : kAllKinds) {
    for (uint8_t form = 0; form < Rule::kNumForms; ++form) {
      for (const int64_t numel : {0, 7, 200}) {
        TensorSpec spec{numel, kind, form};
        spec.group = static_cast<int32_t>(specs.size() % 3);
        spec.has_product = spec.group == 0;
        spec.has_grad = specs.size() % 5 != 0;
        specs.push_back(spec);
      }
    }
  }
  const auto make = [&] { return Plan::make<Rule>(specs, groups, 48, {{{{rate}}, {momentum}}}); };
  for (const int64_t blocks : {1, 3, 8}) {
    for (const int threads : {2, 5}) {
      const Context context(blocks, " blocks of ", threads);
      Plan plan = make();
      Plan plain = make();
      for (int step = 0; step < 3; ++step) {
        run_grid<Rule>(plan.tables(), blocks, threads);
        reference_step<Rule>(plain);
        EXPECT_SAME(plan, plain);
      }
      EXPECT(plan.is_intact());
    }
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  for_each_rule([]<class Rule>() { test_grids<Rule>(); });
  return report("test_step_races");
}
