// Tensors of more elements than 32 bits count, without their memory: the chunks of a small plan are
// moved to the end of tensors that begin that much earlier, at addresses where nothing lies. They
// must come out as the small plan's do, bit for bit; an index or address that lost its upper bits
// leads elsewhere, mostly to nowhere.
#include "cpu/step.h"
#include "cuda/step_body.cuh"

#include "agreement.h"
#include "mixed.h"

namespace lrfast::test {
namespace {

// Tables of the plan's step whose tensors hold `before` more elements, in front.
class Moved {
 public:
  Moved(Plan& plan, int64_t before) : tables_(plan.tables()) {
    rows_.assign(tables_.tensors, tables_.tensors + tables_.num_tensors);
    grads_.assign(tables_.grads, tables_.grads + tables_.num_tensors);
    chunks_.assign(tables_.chunks, tables_.chunks + tables_.num_chunks);
    for (size_t i = 0; i < rows_.size(); ++i) {
      TensorRow& row = rows_[i];
      row.numel += before;
      with_types(row.dtypes, [&]<class Param, class State>() {
        shift<Param>(row.param, before);
        shift<Param>(grads_[i], before);
        shift<compute_t<Param>>(row.average, before);
        for (void*& state : row.states) shift<State>(state, before);
      });
      shift<uint8_t>(row.master_bits, before * row.master);
    }
    for (ChunkRow& chunk : chunks_) {
      chunk.index += static_cast<int32_t>(before / tables_.chunk_size);
    }
    tables_.tensors = rows_.data();
    tables_.grads = grads_.data();
    tables_.chunks = chunks_.data();
  }

  const StepTables& tables() const { return tables_; }

 private:
  template <class Element>
  static void shift(void*& array, int64_t before) {
    if (array == nullptr) return;
    array = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(array) - before * sizeof(Element));
  }

  StepTables tables_;
  std::vector<TensorRow> rows_;
  std::vector<void*> grads_;
  std::vector<ChunkRow> chunks_;
};

// Random bits depend on an element's number modulo 2^33: behind fewer elements they are others than
// those of the small plan, but the same on the grid and the CPU.
constexpr int64_t kPeriod = int64_t{1} << 33;
constexpr int64_t kBefore[] = {kPeriod / 2, 5 * kPeriod};

void test_step(int rule, int64_t before, const Options& options) {
  const auto make = [&] {
    return Plan(rule, passes_specs(rule), three_groups(rule), 1024, options);
  };
  Trio trio(make);
  Grid grid(rule, 7, 32);
  cpu::Scratch scratch;
  for (int step = 0; step < 2; ++step) {
    grid.step(Moved(trio.on_grid, before).tables());
    cpu::step(rule, Moved(trio.on_cpu, before).tables(), 1, nullptr, scratch);
    reference_step(trio.plain);
  }
  if (before % kPeriod == 0) return expect_agreement(trio);
  EXPECT_SAME(trio.on_grid, trio.on_cpu);
  EXPECT(!trio.on_grid.difference(trio.plain).empty());
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  for_each_rule([](int rule) {
    for (const int64_t before : kBefore) {
      const Context context(before, " elements in front");
      test_step(rule, before, {});
      Options everything;
      everything.scale = 4.0f;
      everything.max_norm = 0.5;
      everything.zero = true;
      everything.telemetry = 3;
      everything.exact_grads = true;
      test_step(rule, before, everything);
    }
  });
  return report("test_large_index");
}
