// The engine's launches, in place of bindings/cuda.cpp and cuda/*.cu: the kernels' bodies run on
// the host, block after block in random order. Names and order are those of cuda/step.cu.
#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <variant>

#include "bindings/device.h"
#include "core/rules.h"
#include "cuda/curve_body.cuh"
#include "cuda/step_body.cuh"
#include "memory.h"
#include "queues.h"

namespace lrfast::bindings::cuda_calls {
namespace {

constexpr int kThreads = 32;
constexpr int64_t kResident = 5;  // blocks

// Shared memory of a block, which starts with anything.
template <class Memory>
std::shared_ptr<Memory> shared_memory() {
  std::shared_ptr<Memory> made(static_cast<Memory*>(std::malloc(sizeof(Memory))), &std::free);
  std::memset(static_cast<void*>(made.get()), 0xa5, sizeof(Memory));
  return made;
}

template <class Body>
void in_any_order(int64_t blocks, Body&& body) {
  std::vector<int64_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = blocks - 1; i > 0; --i) {
    std::swap(order[i], order[sim::simulator().random(static_cast<uint64_t>(i) + 1)]);
  }
  for (const int64_t index : order) {
    cuda::HostBlock block{index, blocks, kThreads};
    body(block);
  }
}

int64_t blocks_of(const StepTables& tables) {
  return std::max<int64_t>(1, std::min(tables.num_chunks, kResident));
}

// A kernel's arguments hold addresses; one of another device's memory is a mistake. Every word is
// looked at, so that no list of fields has to be kept here.
template <class Arguments>
void check_addresses(const Arguments& arguments, at::Device device) {
  const sim::Lock lock(sim::simulator().mutex);
  for (size_t at = 0; at + sizeof(void*) <= sizeof(Arguments); at += sizeof(void*)) {
    const void* address = nullptr;
    std::memcpy(&address, reinterpret_cast<const char*>(&arguments) + at, sizeof(address));
    const int owner = sim::device_memory().device_of(address);
    TORCH_CHECK(owner < 0 || owner == device.index(), "CUDA error: an illegal memory access: a ",
                "kernel on ", device, " was given memory of cuda:", owner);
  }
}

thread_local sigjmp_buf* fault_exit = nullptr;
void leave_by_fault(int) { siglongjmp(*fault_exit, 1); }

// Tables that are filled with NaN hold addresses of nothing: an error as on a GPU, not a crash.
// Nothing that the bodies hold has to be released.
template <class Run>
void run_guarded(const Run& run) {
  constexpr int kFaults[] = {SIGSEGV, SIGBUS, SIGFPE};
  struct sigaction fault = {};
  struct sigaction before[std::size(kFaults)];
  fault.sa_handler = &leave_by_fault;
  for (size_t i = 0; i < std::size(kFaults); ++i) sigaction(kFaults[i], &fault, &before[i]);
  sigjmp_buf here;
  fault_exit = &here;
  const bool is_illegal = sigsetjmp(here, /*savemask=*/1) != 0;
  if (!is_illegal) run();
  for (size_t i = 0; i < std::size(kFaults); ++i) sigaction(kFaults[i], &before[i], nullptr);
  TORCH_CHECK(!is_illegal, "CUDA error: an illegal memory access was encountered");
}

template <class Arguments, class Run>
void launch(at::Device device, const char* name, const Arguments& arguments, Run run) {
  check_addresses(arguments, device);
  sim::simulator().launch(device.index(), name, [run] { run_guarded(run); });
}

void run_norm(const StepTables& tables) {
  const auto shared = shared_memory<cuda::NormMemory>();
  in_any_order(blocks_of(tables), [&](auto& block) { cuda::norm_body(tables, *shared, block); });
}

template <class Rule, bool squares>
void run_measure(const StepTables& tables) {
  const auto shared = shared_memory<cuda::StepMemory<Rule>>();
  in_any_order(blocks_of(tables),
               [&](auto& block) { cuda::measure_body<Rule, squares>(tables, *shared, block); });
}

// The launches before an update, of a rule that measures a distance or for sums over tensors.
void measure(int rule, const StepTables& tables, at::Device device) {
  Rules::visit(rule, [&]<class Rule>() {
    if constexpr (Measures<Rule>) {
      if (tables.phase != Phase::kUpdate) {
        launch(device, "measure_kernel", tables, [tables] { run_measure<Rule, false>(tables); });
      } else {
        launch(device, "finish_distance_kernel", tables, [tables] {
          cuda::HostBlock block{0, 1, kThreads};
          cuda::finish_distance_body<Rule>(tables, block);
        });
      }
    } else {
      with_terms<Rule>(tables, [&]<bool squares>() {
        launch(device, "foresee_kernel", tables, [tables] { run_measure<Rule, squares>(tables); });
      });
    }
  });
}

void run_step(int rule, const StepTables& tables) {
  Rules::visit(rule, [&]<class Rule>() {
    const auto shared = shared_memory<cuda::StepMemory<Rule>>();
    cuda::with_step<Rule>(tables, cuda::has_passes(tables), [&]<bool passes, bool altered>() {
      in_any_order(blocks_of(tables), [&](auto& block) {
        cuda::step_body<Rule, passes, altered>(tables, *shared, block);
      });
    });
  });
}

}  // namespace

void step(int rule, const StepTables& tables, at::Device device) {
  if (takes_squares(tables)) {
    launch(device, "norm_kernel", tables, [tables] { run_norm(tables); });
  }
  if (finishes_squares(tables)) {
    launch(device, "finish_norms_kernel", tables, [tables] {
      cuda::HostBlock block{0, 1, kThreads};
      cuda::finish_norms_body(tables, *shared_memory<cuda::NormMemory>(), block);
    });
  }
  if (!updates(tables)) return;
  measure(rule, tables, device);
  if (tables.phase == Phase::kMeasure) return;
  const char* name = tables.update.is_altered() ? "altered_kernel" : "step_kernel";
  launch(device, name, tables, [rule, tables] { run_step(rule, tables); });
}

void schedule(const StepTables& tables, at::Device device) {
  launch(device, "schedule_kernel", tables, [tables] {
    cuda::HostBlock block{0, 1, kThreads};
    cuda::schedule_body(tables, block);
  });
}

bool is_capturing(at::Device device) {
  const sim::Lock lock(sim::simulator().mutex);
  return sim::simulator().is_capturing(device.index());
}

c10::Stream current_stream(at::Device device) {
  return sim::as_torch(device.index(), sim::current_stream_id(device.index()));
}

void record(const CurveRows& curve, const Scalar& loss, const double* rates, const Scalar& skip,
            at::Device device) {
  check_addresses(loss, device);
  check_addresses(skip, device);
  launch(device, "record_kernel", curve, [=] {
    int64_t place = 0;
    cuda::HostBlock block{0, 1, kThreads};
    cuda::record_body(curve, loss, rates, skip, place, block);
  });
}

void smooth_ema(const double* values, double* out, int64_t count, double beta, at::Device device) {
  launch(device, "smooth_ema_kernel", values,
         [=] { lrfast::smooth_ema(values, out, count, beta); });
}

void evaluate(const Points& points, double* out, int64_t count, at::Device device) {
  launch(device, "point_kernel", points, [points, out, count] {
    std::visit(
        [&](const auto& point) {
          for (int64_t i = 0; i < count; ++i) out[i] = point(i, NAN);
        },
        points);
  });
}

bool is_built() { return true; }
int toolkit() { return 13000; }
std::vector<int> architectures() { return {90}; }

}  // namespace lrfast::bindings::cuda_calls
