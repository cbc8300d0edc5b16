// Operators that torch's CUDA backend has to have of its own: memory, views, copies, and reads.
#include <ATen/Functions.h>
#include <ATen/InferSize.h>
#include <ATen/TensorOperators.h>
#include <ATen/TensorUtils.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/DimVector.h>
#include <c10/util/strides.h>
#include <torch/library.h>

#include <vector>

#include "memory.h"
#include "queues.h"
#include "tensors.h"

namespace sim {

at::Tensor empty_on(int device, at::IntArrayRef sizes, at::IntArrayRef strides,
                    at::ScalarType type) {
  const c10::DeviceGuard guard(cuda(device));
  return at::detail::empty_strided_generic(sizes, strides, &device_memory(),
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA), type);
}

at::Tensor host_view(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cpu()) return tensor;
  const auto options = tensor.options().device(at::kCPU);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(
      tensor.mutable_data_ptr(), tensor.sizes(), tensor.strides(), [](void*) {}, options);
}

at::Tensor alias_of(const at::Tensor& tensor, at::IntArrayRef sizes, at::IntArrayRef strides,
                    int64_t offset) {
  return at::native::as_strided_tensorimpl(tensor, sizes, strides, offset);
}

void rebind(const at::Tensor& tensor, const at::Storage& storage, at::IntArrayRef sizes,
            at::IntArrayRef strides, int64_t offset) {
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
}

namespace {

using Sizes = c10::SymIntArrayRef;
using OptionalType = std::optional<at::ScalarType>;
using OptionalLayout = std::optional<at::Layout>;
using OptionalDevice = std::optional<at::Device>;
using OptionalFormat = std::optional<at::MemoryFormat>;

int index_of(const at::Tensor& tensor) { return tensor.device().index(); }
int index_of(const OptionalDevice& device) {
  return device_or_current(device ? device->index() : -1);
}
at::IntArrayRef ints(Sizes sizes) { return C10_AS_INTARRAYREF_SLOW(sizes); }

// ---- memory ------------------------------------------------------------------------------------

at::Tensor empty(Sizes sizes, OptionalType type, OptionalLayout, OptionalDevice device,
                 std::optional<bool>, OptionalFormat format) {
  const auto found = ints(sizes);
  at::Tensor made = empty_on(index_of(device), found, c10::contiguous_strides(found),
                             c10::dtype_or_default(type));
  if (format && *format != at::MemoryFormat::Preserve) {
    made.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  }
  return made;
}

at::Tensor empty_strided(Sizes sizes, Sizes strides, OptionalType type, OptionalLayout,
                         OptionalDevice device, std::optional<bool>) {
  return empty_on(index_of(device), ints(sizes), ints(strides), c10::dtype_or_default(type));
}

at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / tensor.element_size());
  rebind(tensor, storage, {count}, {1}, 0);
  return tensor;
}

at::Tensor& set_part(at::Tensor& tensor, at::Storage storage, c10::SymInt offset, Sizes sizes,
                     Sizes strides) {
  const auto found = ints(sizes);
  c10::DimVector steps(ints(strides));
  if (steps.size() != found.size()) steps = c10::contiguous_strides(found);
  rebind(tensor, storage, found, steps, offset.guard_int(__FILE__, __LINE__));
  return tensor;
}

at::Tensor& set_tensor(at::Tensor& tensor, const at::Tensor& source) {
  rebind(tensor, source.storage(), source.sizes(), source.strides(), source.storage_offset());
  return tensor;
}

at::Tensor& set_nothing(at::Tensor& tensor) {
  return set_tensor(tensor, empty_on(index_of(tensor), {0}, {1}, tensor.scalar_type()));
}

const at::Tensor& resize(const at::Tensor& tensor, Sizes sizes, OptionalFormat) {
  const auto wanted = ints(sizes);
  if (tensor.sizes() == wanted) return tensor;
  const auto strides = c10::contiguous_strides(wanted);
  const auto end = c10::multiply_integers(wanted) + tensor.storage_offset();
  if (end * tensor.element_size() <= static_cast<int64_t>(tensor.storage().nbytes())) {
    tensor.unsafeGetTensorImpl()->set_sizes_and_strides(wanted, strides);
    return tensor;
  }
  const at::Tensor larger = empty_on(index_of(tensor), wanted, strides, tensor.scalar_type());
  if (tensor.numel() != 0) alias_of(larger, tensor.sizes(), tensor.strides(), 0).copy_(tensor);
  rebind(tensor, larger.storage(), wanted, strides, 0);
  return tensor;
}

void record_stream(at::Tensor& tensor, at::Stream stream) {
  const Lock lock(simulator().mutex);
  device_memory().record_stream(tensor.storage().data(),
                                simulator().stream(stream.device_index(), stream.id()));
}

// ---- views -------------------------------------------------------------------------------------

at::Tensor as_strided(const at::Tensor& tensor, Sizes sizes, Sizes strides,
                      std::optional<c10::SymInt> offset) {
  const int64_t start = offset ? offset->guard_int(__FILE__, __LINE__) : tensor.storage_offset();
  return alias_of(tensor, ints(sizes), ints(strides), start);
}

at::Tensor view(const at::Tensor& tensor, Sizes sizes) {
  const auto found = at::infer_size_dv(ints(sizes), tensor.numel());
  const auto strides = at::detail::computeStride(tensor.sizes(), tensor.strides(), found);
  TORCH_CHECK(strides.has_value(),
              "view size is not compatible with input tensor's size and "
              "stride");
  return alias_of(tensor, found, *strides, tensor.storage_offset());
}

at::Tensor reshape_alias(const at::Tensor& tensor, Sizes sizes, Sizes strides) {
  return alias_of(tensor, ints(sizes), ints(strides), tensor.storage_offset());
}

// ---- copies and reads --------------------------------------------------------------------------

at::Tensor& fill(at::Tensor& tensor, const at::Scalar& value) {
  if (tensor.numel() == 0) return tensor;
  simulator().launch(index_of(tensor), "fill",
                     [to = host_view(tensor), value]() mutable { to.fill_(value); });
  return tensor;
}

at::Tensor& zero(at::Tensor& tensor) { return fill(tensor, 0); }

// On the source's stream, as torch does it, between what both streams did and will do.
void copy_between_devices(const at::Tensor& to, const at::Tensor& from) {
  Stream& stream = simulator().current(index_of(from));
  Stream& other = simulator().current(index_of(to));
  if (&other != &stream) simulator().wait(stream, simulator().record(other));
  simulator().push(stream, {"Memcpy DtoD", [to = host_view(to), from = host_view(from)]() mutable {
                              to.copy_(from);
                            }});
  if (&other != &stream) simulator().wait(other, simulator().record(stream));
}

// With pageable memory the host waits, but for what it sends: that is staged before the call ends.
void copy_with_host(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  const bool sends = to.is_cuda();
  const at::Tensor& host = sends ? from : to;
  Stream& stream = simulator().current(index_of(sends ? to : from));
  const bool is_pinned = pinned_memory().contains(host.const_data_ptr());
  if (stream.capture && !is_pinned) {
    stream.capture->error = "copy with pageable memory";
    TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing: copy ",
                "between a GPU and a CPU tensor that is not pinned");
  }
  at::Tensor there = at::from_blob(
      host.mutable_data_ptr(), host.sizes(), host.strides(), [](void*) {}, host.options());
  if (sends && !is_pinned) there = host.clone();
  at::Tensor target = sends ? host_view(to) : there;
  at::Tensor source = sends ? there : host_view(from);
  const char* name = sends ? "Memcpy HtoD" : "Memcpy DtoH";
  simulator().push(stream, {name, [target, source]() mutable { target.copy_(source); }});
  if (non_blocking && is_pinned) {
    pinned_memory().record_use(host.const_data_ptr(), stream);
  } else if (!sends || !non_blocking) {
    simulator().synchronize(stream);
  }
}

at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.numel() == 0) return to;
  const at::Tensor source = from.sizes() == to.sizes() ? from : from.expand_as(to);
  const Lock lock(simulator().mutex);
  if (to.is_cuda() && source.is_cuda()) {
    copy_between_devices(to, source);
  } else {
    copy_with_host(to, source, non_blocking);
  }
  simulator().advance();
  return to;
}

at::Scalar local_scalar(const at::Tensor& tensor) {
  const Lock lock(simulator().mutex);
  simulator().synchronize(simulator().current(index_of(tensor)));
  return host_view(tensor).item();
}

// ---- losses: on meta tensors these take no notice of the reduction -----------------------------

at::Tensor reduced(const at::Tensor& losses, int64_t reduction) {
  return reduction == 1 ? losses.mean() : reduction == 2 ? losses.sum() : losses;
}

at::Tensor mse_loss(const at::Tensor& input, const at::Tensor& target, int64_t reduction) {
  return reduced((input - target).square(), reduction);
}

at::Tensor smooth_l1_loss(const at::Tensor& input, const at::Tensor& target, int64_t reduction,
                          double beta) {
  const at::Tensor d = (input - target).abs();
  return reduced(at::where(d < beta, d * d * (0.5 / beta), d - 0.5 * beta), reduction);
}

at::Tensor huber_loss(const at::Tensor& input, const at::Tensor& target, int64_t reduction,
                      double delta) {
  const at::Tensor d = (input - target).abs();
  return reduced(at::where(d < delta, d * d * 0.5, (d - 0.5 * delta) * delta), reduction);
}

}  // namespace
}  // namespace sim

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &sim::empty);
  m.impl("empty_strided", &sim::empty_strided);
  m.impl("set_.source_Storage", &sim::set_storage);
  m.impl("set_.source_Storage_storage_offset", &sim::set_part);
  m.impl("set_.source_Tensor", &sim::set_tensor);
  m.impl("set_", &sim::set_nothing);
  m.impl("resize_", &sim::resize);
  m.impl("record_stream", &sim::record_stream);
  m.impl("as_strided", &sim::as_strided);
  m.impl("view", &sim::view);
  m.impl("_reshape_alias", &sim::reshape_alias);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("fill_.Scalar", &sim::fill);
  m.impl("zero_", &sim::zero);
  m.impl("copy_", &sim::copy);
  m.impl("_local_scalar_dense", &sim::local_scalar);
  m.impl("mse_loss", &sim::mse_loss);
  m.impl("smooth_l1_loss", &sim::smooth_l1_loss);
  m.impl("huber_loss", &sim::huber_loss);
}
