// The step's kernels' bodies with one std::thread per thread of the grid and a real barrier behind
// each part, as CudaBlock has it. ThreadSanitizer then sees a missing barrier, or a block that
// writes what another still reads. Three rules take every branch with a barrier in it: one without
// a product, one with a product in some tensors, one with a product in all.
//
// Flags and numbers that another stream may write change at random points while the bodies run. A
// step must be made whole, or not at all, whatever it finds: where one is read twice and the
// readings disagree, it is made by half, or threads of a block wait at different barriers.
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>

#include "core/noise.h"
#include "cuda/curve_body.cuh"
#include "cuda/step_body.cuh"

#include "agreement.h"
#include "mixed.h"

namespace lrfast::test {
namespace {

// What another stream writes while a kernel runs. The thread sanitizer must not see it: it is no
// race of the kernel's threads, and what counts is what they make of it.
class OtherStream {
 public:
  explicit OtherStream(uint64_t seed) : seed_(seed) {}

  template <class Number>
  void writes(Number& place, Number first, Number second) {
    writes_.push_back([&place, first, second](bool which) __attribute__((no_sanitize("thread"))) {
      *const_cast<volatile Number*>(&place) = which ? second : first;
    });
  }

  // Called wherever a thread comes by: every third time something is written, or others go first.
  void pass() {
    if (writes_.empty()) return;
    const uint64_t random = mix(seed_ + passed_.fetch_add(1, std::memory_order_relaxed));
    if (random % 3 == 0) writes_[random / 3 % writes_.size()](random >> 40 & 1);
    if (random % 3 == 1) std::this_thread::yield();
  }

 private:
  uint64_t seed_;
  std::atomic<uint64_t> passed_{0};
  std::vector<std::function<void(bool)>> writes_;
};

struct ThreadBlock {
  int64_t block;
  int64_t blocks;
  int block_threads;
  int thread;
  std::barrier<>* barrier;  // of the block
  OtherStream* other;
  int* barriers_passed;  // by this thread

  int64_t index() const { return block; }
  int64_t count() const { return blocks; }
  int threads() const { return block_threads; }

  template <class Body>
  void for_each_thread(Body&& body) {
    other->pass();
    body(thread);
    wait();
  }
  // Each thread stands for a warp.
  template <class Body>
  void for_each_warp(Body&& body) {
    other->pass();
    cuda::HostWarp warp;
    body(warp, thread, block_threads);
    wait();
  }
  template <class Body>
  void thread_zero(Body&& body) {
    other->pass();
    if (thread == 0) body();
    wait();
  }
  void wait() {
    other->pass();
    *barriers_passed += 1;
    barrier->arrive_and_wait();
  }
  int32_t arrive(int32_t* counter) {
    other->pass();
    return std::atomic_ref(*counter).fetch_add(1, std::memory_order_acq_rel);
  }
  int32_t decide(int32_t* decision, int32_t own) {
    other->pass();
    int32_t before = 0;
    return std::atomic_ref(*decision).compare_exchange_strong(before, own) ? own : before;
  }
};

// A thread that has ended is no longer waited for, so that threads that go different ways show as
// different numbers of barriers and not as a test without end.
template <class Body>
void run_grid(int64_t blocks, int block_threads, OtherStream& other, const Body& body) {
  std::vector<std::unique_ptr<std::barrier<>>> barriers;
  std::vector<std::thread> threads;
  std::vector<int> passed(blocks * block_threads);
  for (int64_t b = 0; b < blocks; ++b) {
    barriers.push_back(std::make_unique<std::barrier<>>(block_threads));
    for (int thread = 0; thread < block_threads; ++thread) {
      const ThreadBlock block{
          b, blocks, block_threads, thread, barriers[b].get(), &other, &passed[threads.size()]};
      threads.emplace_back([&body, block] {
        body(block);
        block.barrier->arrive_and_drop();
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < passed.size(); ++i) {
    EXPECT_EQ(passed[i], passed[i / block_threads * block_threads]);
  }
}

template <class Rule, bool passes>
LRFAST_NOINLINE void run_step(const StepTables& t, cuda::StepMemory<Rule>& shared,
                              ThreadBlock block) {
  cuda::step_body<Rule, passes, false>(t, shared, block);
}

LRFAST_NOINLINE void run_norms(const StepTables& t, cuda::NormMemory& shared, ThreadBlock block) {
  cuda::norm_body(t, shared, block);
}

// All kernels, one after the other.
template <class Rule>
void step(Plan& plan, int64_t blocks, int threads, OtherStream& other) {
  const StepTables t = plan.tables();
  if (lacks_values(t)) {
    run_grid(1, threads, other, [&](ThreadBlock b) { cuda::schedule_body(t, b); });
  }
  if (t.totals.chunk_squares) {
    std::vector<cuda::NormMemory> memory(blocks);
    run_grid(blocks, threads, other, [&](ThreadBlock b) { run_norms(t, memory[b.block], b); });
  }
  std::vector<cuda::StepMemory<Rule>> memory(blocks);
  if constexpr (Measures<Rule>) {
    run_grid(blocks, threads, other,
             [&](ThreadBlock b) { cuda::measure_body<Rule, false>(t, memory[b.block], b); });
  }
  const bool passes = cuda::has_passes(t);
  run_grid(blocks, threads, other, [&](ThreadBlock b) {
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
        OtherStream quiet(0);
        for (int i = 0; i < 2; ++i) {
          step<Rule>(plan, blocks, threads, quiet);
          reference_step(plain);
          EXPECT_SAME(plan, plain);
          expect_near_sums(plan.records, plain.records, "records");
        }
        EXPECT(plan.is_intact());
      }
    }
  }
}

// ---- what another stream writes --------------------------------------------------------------

constexpr int kRounds = 20;

// The rule alone; with norms; with all passes.
std::vector<Options> unskipped_options() {
  std::vector<Options> all = all_options();
  all.pop_back();
  return all;
}

// The stop flag and found_inf change: the step is stopped, skipped or made, and so is the next one.
template <class Rule>
void test_flags() {
  for (Options options : unskipped_options()) {
    options.has_found_inf = true;
    for (int round = 0; round < kRounds; ++round) {
      const Context context("flags, rule ", Rule::kName, ", zero ", options.zero, ", max_norm ",
                            options.max_norm, ", round ", round);
      Plan plan = make_plan<Rule>(options);
      plan.has_stop = true;
      plan.stop = round % 2;
      OtherStream other(round);
      if (round % 3 != 0) other.writes(plan.stop, 0.0, 1.0);
      if (round % 3 != 1) other.writes(plan.options.found_inf, 0.0f, 1.0f);
      step<Rule>(plan, 3, 3, other);
      Plan stopped = make_plan<Rule>(options);
      Plan skipped = make_plan<Rule>(options);
      Plan made = make_plan<Rule>(options);
      skipped.options.found_inf = 1.0f;
      reference_step(skipped);
      reference_step(made);
      bool found = false;
      for (Plan* way : {&stopped, &skipped, &made}) {
        if (found || !plan.difference(*way).empty()) continue;
        found = true;
        OtherStream quiet(0);
        plan.stop = 0.0;
        plan.options.found_inf = way->options.found_inf = 0.0f;
        step<Rule>(plan, 3, 3, quiet);
        reference_step(*way);
        EXPECT_SAME(plan, *way);
      }
      EXPECT(found);
    }
  }
}

// Whether a chunk's part of an array has the same bytes in both.
bool is_same_part(const GuardedBytes& a, const GuardedBytes& b, const ChunkRow& chunk,
                  int64_t numel, int64_t chunk_size) {
  const int64_t size = static_cast<int64_t>(a.size()) / numel;
  const int64_t begin = chunk.index * chunk_size * size;
  const int64_t end = std::min(begin + chunk_size * size, static_cast<int64_t>(a.size()));
  return std::memcmp(a.data() + begin, b.data() + begin, end - begin) == 0;
}

// The scales of gradients and of learning rates change: each chunk has been updated with one pair
// of them, and all norms are unscaled by one.
template <class Rule>
void test_numbers() {
  for (const bool norms : {false, true}) {
    for (int round = 0; round < kRounds; ++round) {
      const Context context("numbers, rule ", Rule::kName, ", norms ", norms, ", round ", round);
      Options options;
      options.exact_grads = true;
      options.norms = norms;
      options.scale = 2.0f;
      const auto make = [&] {
        Plan plan = make_plan<Rule>(options);
        plan.has_rate_scale = true;
        return plan;
      };
      Plan plan = make();
      OtherStream other(round);
      other.writes(plan.options.scale, 2.0f, 8.0f);
      other.writes(plan.rate_scale, 1.0, 0.25);
      const StepTables t = plan.tables();
      step<Rule>(plan, 3, 3, other);
      std::vector<Plan> ways;
      for (const float scale : {2.0f, 8.0f}) {
        for (const double rate_scale : {1.0, 0.25}) {
          ways.push_back(make());
          ways.back().options.scale = scale;
          ways.back().rate_scale = rate_scale;
          reference_step(ways.back());
        }
      }
      for (const ChunkRow& chunk : plan.chunks) {
        const Tensor& own = plan.tensors[chunk.tensor];
        const auto is_same = [&](const Plan& way) {
          const Tensor& its = way.tensors[chunk.tensor];
          const auto same = [&](const GuardedBytes& a, const GuardedBytes& b) {
            return is_same_part(a, b, chunk, own.spec.numel, t.chunk_size);
          };
          bool all = same(own.param, its.param);
          for (size_t k = 0; k < own.states.size(); ++k) {
            all = all && same(own.states[k], its.states[k]);
          }
          return all;
        };
        EXPECT(std::any_of(ways.begin(), ways.end(), is_same));
      }
      EXPECT_EQ(plan.clock.as<Clock>()->applied, 1);
      if (!norms) continue;
      EXPECT(std::any_of(ways.begin(), ways.end(), [&](const Plan& way) {
        return std::memcmp(plan.norms.data(), way.norms.data(), plan.norms.size()) == 0;
      }));
    }
  }
}

// A loss and the flag beside it change while it is recorded: it is recorded whole or not at all.
void test_records() {
  constexpr int64_t kWidth = 7;
  const std::vector<double> rates = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0};
  for (int round = 0; round < kRounds; ++round) {
    const Context context("records, round ", round);
    CurveState state{};
    state.flagged_at = -1.0;
    std::vector<double> losses(2, -1.0);
    std::vector<double> recorded(2 * kWidth, -1.0);
    const CurveRows curve{&state, losses.data(), recorded.data(), 2, kWidth, 0.9, 0.0, 0};
    double loss = 1.5;
    float skip = 0.0f;
    OtherStream other(round);
    other.writes(loss, 1.5, 2.5);
    other.writes(skip, 0.0f, 1.0f);
    int64_t place = 0;
    run_grid(1, 3, other, [&](ThreadBlock b) {
      cuda::record_body(curve, {&loss, FloatType::kFloat64}, rates.data(),
                        {&skip, FloatType::kFloat32}, place, b);
    });
    const bool is_recorded = state.count == 1.0;
    EXPECT(state.last == (is_recorded ? losses[0] : 0.0));
    for (int64_t g = 0; g < kWidth; ++g) {
      EXPECT_EQ(recorded[g], is_recorded ? rates[g] : -1.0);
      EXPECT_EQ(recorded[kWidth + g], -1.0);
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
  test_grids<Prodigy>();
  test_flags<Sgd>();
  test_flags<Adam>();
  test_flags<Prodigy>();
  test_numbers<Sgd>();
  test_numbers<Adam>();
  test_records();
  return report("test_step_races");
}
