// A thread block as the kernels' bodies see it. A body says what every thread does and what one
// thread does, with a barrier after each; CudaBlock runs that on the device, HostBlock runs the
// same body on the host, block after block, where the sanitizers can watch.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace lrfast::cuda {

constexpr int kWarp = 32;  // threads

#if defined(__CUDACC__)
// A warp, and what each of its threads holds.
struct CudaWarp {
  template <class T>
  struct Values {
    T value;
    __device__ T& of(int) { return value; }
  };

  template <class Body>
  __device__ void for_each_lane(Body&& body) {
    body(static_cast<int>(threadIdx.x) % kWarp);
  }
  // The largest, for all lanes.
  __device__ uint32_t largest(Values<uint32_t>& values) {
#if defined(__CUDA_ARCH__)
    return __reduce_max_sync(0xffffffffu, values.value);
#else
    return values.value;
#endif
  }
};

// A block's shared memory, by an address in a register. From sm_90 on the address depends on the
// block's place in a cluster, and the assembler would make it anew behind every branch: AdamW took
// 7 of its 55 instructions for an element for that. It does not look through a shuffle.
template <class Memory>
__device__ __forceinline__ Memory& in_register(Memory& memory) {
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(&memory));
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  address = __shfl_sync(0xffffffffu, address, 0);
#endif
  return *static_cast<Memory*>(__cvta_shared_to_generic(address));
}

struct CudaBlock {
  __device__ int64_t index() const { return blockIdx.x; }
  __device__ int64_t count() const { return gridDim.x; }
  __device__ int threads() const { return blockDim.x; }

  template <class Body>
  __device__ void for_each_thread(Body&& body) {
    body(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  // body(warp, its number, how many there are)
  template <class Body>
  __device__ void for_each_warp(Body&& body) {
    CudaWarp warp;
    body(warp, static_cast<int>(threadIdx.x) / kWarp, static_cast<int>(blockDim.x) / kWarp);
    __syncthreads();
  }
  template <class Body>
  __device__ void thread_zero(Body&& body) {
    if (threadIdx.x == 0) body();
    __syncthreads();
  }
  // Counts this block in and says how many came before it. The first fence makes all that it read
  // and wrote precede its arrival; the second lets the last one see what the others wrote.
  __device__ int32_t arrive(int32_t* counter) {
    __threadfence();
    const int32_t before = atomicAdd(counter, 1);
    __threadfence();
    return before;
  }
  // What the first block to come here has decided: own, if it is this one.
  __device__ int32_t decide(int32_t* decision, int32_t own) {
    const int32_t before = atomicCAS(decision, 0, own);
    return before == 0 ? own : before;
  }
};
#endif

struct HostWarp {
  template <class T>
  struct Values {
    T values[kWarp];
    T& of(int lane) { return values[lane]; }
  };

  template <class Body>
  void for_each_lane(Body&& body) {
    for (int lane = 0; lane < kWarp; ++lane) body(lane);
  }
  uint32_t largest(Values<uint32_t>& values) {
    uint32_t found = 0;
    for (const uint32_t value : values.values) found = value > found ? value : found;
    return found;
  }
};

struct HostBlock {
  int64_t block;
  int64_t blocks;
  int block_threads;

  int64_t index() const { return block; }
  int64_t count() const { return blocks; }
  int threads() const { return block_threads; }

  template <class Body>
  void for_each_thread(Body&& body) {
    for (int thread = 0; thread < block_threads; ++thread) body(thread);
  }
  template <class Body>
  void for_each_warp(Body&& body) {
    const int warps = block_threads < kWarp ? 1 : block_threads / kWarp;
    HostWarp warp;
    for (int number = 0; number < warps; ++number) body(warp, number, warps);
  }
  template <class Body>
  void thread_zero(Body&& body) {
    body();
  }
  int32_t arrive(int32_t* counter) { return (*counter)++; }
  int32_t decide(int32_t* decision, int32_t own) {
    if (*decision == 0) *decision = own;
    return *decision;
  }
};

}  // namespace lrfast::cuda
