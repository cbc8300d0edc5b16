// The step's kernels' bodies with one std::thread per thread of the grid and a real barrier behind
// each part, as CudaBlock has it. ThreadSanitizer then sees a missing barrier, or a block that
// writes what another still reads. Three rules take every branch with a barrier in it: one without
// a product, one with a product in some tensors, one with a product in all.
#include <atomic>
#include <barrier>
#include <memory>
#include <thread>

#include "cuda/step_body.cuh"

#include "agreement.h"
#include "mixed.h"

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
  void for_each_thread(Body&& body) {
    body(thread);
    barrier->arrive_and_wait();
  }
  template <class Body>
  void thread_zero(Body&& body) {
    if (thread == 0) body();
    barrier->arrive_and_wait();
  }
  int32_t arrive(int32_t* counter) {
    return std::atomic_ref(*counter).fetch_add(1, std::memory_order_acq_rel);
  }
  int32_t decide(int32_t* decision, int32_t own) {
    int32_t before = 0;
    return std::atomic_ref(*decision).compare_exchange_strong(before, own) ? own : before;
  }
};

template <class Body>
void run_grid(int64_t blocks, int block_threads, const Body& body) {
  std::vector<std::unique_ptr<std::barrier<>>> barriers;
  std::vector<std::thread> threads;
  for (int64_t b = 0; b < blocks; ++b) {
    barriers.push_back(std::make_unique<std::barrier<>>(block_threads));
    for (int thread = 0; thread < block_threads; ++thread) {
      const ThreadBlock block{b, blocks, block_threads, thread, barriers[b].get()};
      threads.emplace_back([&body, block] { body(block); });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

template <class Rule, bool passes>
LRFAST_NOINLINE void run_step(const StepTables& t, cuda::StepMemory<Rule>& shared,
                              ThreadBlock block) {
  cuda::step_body<Rule, passes>(t, shared, block);
}

LRFAST_NOINLINE void run_norms(const StepTables& t, cuda::NormMemory& shared, ThreadBlock block) {
  cuda::norm_body(t, shared, block);
}

// All kernels, one after the other.
template <class Rule>
void step(Plan& plan, int64_t blocks, int threads) {
  const StepTables t = plan.tables();
  if (lacks_values(t)) {
    run_grid(1, threads, [&](ThreadBlock b) { cuda::schedule_body(t, b); });
  }
  if (t.totals.chunk_squares) {
    std::vector<cuda::NormMemory> memory(blocks);
    run_grid(blocks, threads, [&](ThreadBlock b) { run_norms(t, memory[b.block], b); });
  }
  std::vector<cuda::StepMemory<Rule>> memory(blocks);
  const bool passes = t.has_averages || t.gradients.zero || t.totals.chunk_changes != nullptr;
  run_grid(blocks, threads, [&](ThreadBlock b) {
    passes ? run_step<Rule, true>(t, memory[b.block], b)
           : run_step<Rule, false>(t, memory[b.block], b);
  });
}

// Chunks that share tensors between blocks, tensors that change from chunk to chunk, and some that
// are left out, in more groups than a small block has threads.
template <class Rule>
Plan make_plan(const Options& options) {
  const int rule = kPlace<Rule>;
  const bool has_averages = options.telemetry > 0;
  std::vector<GroupRow> groups;
  for (int g = 0; g < 4; ++g) groups.push_back(make_group(rule, 0.1 + 0.1 * g));
  groups[0].schedule = 0;
  groups[2].frozen = 1;
  groups[3].max_norm = options.max_norm / 2;
  std::vector<TensorSpec> specs;
  for (const DtypePair dtypes : kAllDtypePairs) {
    for (int form = 0; form < Rule::kNumForms; ++form) {
      for (const int64_t numel : {7, 150}) {
        TensorSpec spec{numel, dtypes, static_cast<uint8_t>(form)};
        spec.group = static_cast<int32_t>(specs.size() / 2 % 4);
        spec.has_product = spec.group == 0;
        spec.has_average = has_averages && specs.size() % 3 != 0;
        spec.has_grad = specs.size() % 5 != 0;
        specs.push_back(spec);
      }
    }
  }
  return Plan(rule, specs, groups, 48, options, two_schedules());
}

// The rule alone; with a norm; with all passes; skipped.
std::vector<Options> all_options() {
  std::vector<Options> all(4);
  all[1].max_norm = all[2].max_norm = 2.0;
  all[2].zero = true;
  all[2].telemetry = 2;
  all[3] = all[2];
  all[3].has_found_inf = true;
  all[3].found_inf = 1.0f;
  for (Options& options : all) options.exact_grads = true;
  return all;
}

template <class Rule>
void test_grids() {
  for (const Options& options : all_options()) {
    for (const int64_t blocks : {1, 5}) {
      for (const int threads : {2, 5}) {
        const Context context("rule ", Rule::kName, ", zero ", options.zero, ", max_norm ",
                              options.max_norm, ": ", blocks, " blocks of ", threads);
        Plan plan = make_plan<Rule>(options);
        Plan plain = make_plan<Rule>(options);
        for (int i = 0; i < 2; ++i) {
          step<Rule>(plan, blocks, threads);
          reference_step(plain);
          EXPECT_SAME(plan, plain);
          expect_near_sums(plan.records, plain.records, "records");
        }
        EXPECT(plan.is_intact());
      }
    }
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast;
  using namespace lrfast::test;
  test_grids<Sgd>();
  test_grids<Adam>();
  test_grids<NAdam>();
  return report("test_step_races");
}
