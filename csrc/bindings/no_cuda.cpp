// Stands in for cuda.cpp where the extension is built without CUDA.
#include "bindings/device.h"

namespace lrfast::bindings::cuda_calls {
namespace {

[[noreturn]] void refuse() {
  TORCH_CHECK(false,
              "lrfast was built without CUDA and got CUDA tensors: install a CUDA build of torch "
              "and the CUDA toolkit, then build lrfast again with LRFAST_CUDA=1");
}

}  // namespace

void step(int, const StepTables&, at::Device) { refuse(); }
void schedule(const StepTables&, at::Device) { refuse(); }
bool is_capturing(at::Device) { return false; }
c10::Stream current_stream(at::Device) { refuse(); }
void record(const CurveRows&, const Scalar&, const double*, const Scalar&, at::Device) { refuse(); }
void smooth_ema(const double*, double*, int64_t, double, at::Device) { refuse(); }
void evaluate(const Points&, double*, int64_t, at::Device) { refuse(); }
bool is_built() { return false; }
int toolkit() { return 0; }
std::vector<int> architectures() { return {}; }

}  // namespace lrfast::bindings::cuda_calls
