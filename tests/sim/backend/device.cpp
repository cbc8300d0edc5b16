// What torch asks of a device type: the guard for devices, streams and events, and CUDA's hooks.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "memory.h"
#include "queues.h"
#include "random.h"

namespace sim {
namespace {

EventPtr& as_event(void* event) { return *static_cast<EventPtr*>(event); }

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  c10::Device getDevice() const override { return cuda(current_device()); }
  void setDevice(c10::Device device) const override { exchangeDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { exchangeDevice(device); }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    if (device.has_index()) set_current_device(device.index());
    return before;
  }

  c10::Stream getStream(c10::Device device) const override {
    const int index = device_or_current(device.index());
    return as_torch(index, current_stream_id(index));
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return as_torch(device_or_current(device.index()), 0);
  }
  c10::Stream getNewStream(c10::Device device, int = 0) const override {
    const Lock lock(simulator().mutex);
    return as_torch(device_or_current(device.index()), simulator().new_stream());
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool = false) const override {
    return getNewStream(device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream before = getStream(stream.device());
    set_current_stream_id(stream.device_index(), stream.id());
    return before;
  }
  bool queryStream(const c10::Stream& stream) const override {
    const Lock lock(simulator().mutex);
    return simulator().query(simulator().stream(stream.device_index(), stream.id()));
  }
  bool isStreamCapturing(const c10::Stream& stream) const override {
    const Lock lock(simulator().mutex);
    return simulator().stream(stream.device_index(), stream.id()).capture != nullptr;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    const Lock lock(simulator().mutex);
    simulator().synchronize(simulator().stream(stream.device_index(), stream.id()));
  }
  void synchronizeDevice(const c10::DeviceIndex device) const override {
    const Lock lock(simulator().mutex);
    simulator().synchronize_device(device_or_current(device));
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    const Lock lock(simulator().mutex);
    if (*event == nullptr) *event = new EventPtr;
    as_event(*event) = simulator().record(simulator().stream(stream.device_index(), stream.id()));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event == nullptr) return;
    const Lock lock(simulator().mutex);
    simulator().wait(simulator().stream(stream.device_index(), stream.id()), as_event(event));
  }
  bool queryEvent(void* event) const override {
    const Lock lock(simulator().mutex);
    return event == nullptr || simulator().query(as_event(event));
  }
  void synchronizeEvent(void* event) const override {
    if (event == nullptr) return;
    const Lock lock(simulator().mutex);
    simulator().synchronize(as_event(event));
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<EventPtr*>(event);
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    const Lock lock(simulator().mutex);
    device_memory().record_stream(data.get(),
                                  simulator().stream(stream.device_index(), stream.id()));
  }
};

}  // namespace

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}

  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return kDevices; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex current_device() const override {
    return static_cast<c10::DeviceIndex>(sim::current_device());
  }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  void deviceSynchronize(c10::DeviceIndex device) const override {
    Guard().synchronizeDevice(device);
  }

  const at::Generator& getDefaultGenerator(c10::DeviceIndex device = -1) const override {
    return default_generator(device_or_current(device));
  }
  at::Generator getNewGenerator(c10::DeviceIndex device = -1) const override {
    return new_generator(device_or_current(device));
  }
  c10::Allocator* getCUDADeviceAllocator() const override { return &device_memory(); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory(); }
  bool isPinnedPtr(const void* data) const override {
    const Lock lock(simulator().mutex);
    return pinned_memory().contains(data);
  }
  at::Device getDeviceFromPtr(void* data) const override {
    const Lock lock(simulator().mutex);
    return cuda(device_or_current(device_memory().device_of(data)));
  }
};

namespace {
const bool is_registered = [] {
  c10::SetAllocator(c10::kCUDA, &device_memory(), /*priority=*/100);
  return true;
}();
}  // namespace
}  // namespace sim

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, sim::Guard)
}
namespace at {
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", sim::CUDAHooks)
}
