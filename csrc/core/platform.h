// What differs between g++ and nvcc, in one place. Everything in core/ compiles with either, with
// neither torch nor CUDA on the include path.
#pragma once

// The tests define LRFAST_HD where they do not want everything inlined.
#if defined(__CUDACC__)
#define LRFAST_HD __host__ __device__ __forceinline__
#elif !defined(LRFAST_HD)
#define LRFAST_HD inline __attribute__((always_inline))
#endif

// Full unrolling keeps small arrays in registers; none keeps registers free where time does not
// matter. The host's compiler decides by itself.
#if defined(__CUDA_ARCH__)
#define LRFAST_UNROLL _Pragma("unroll")
#define LRFAST_NO_UNROLL _Pragma("unroll 1")
#else
#define LRFAST_UNROLL
#define LRFAST_NO_UNROLL
#endif
