// What differs between g++ and nvcc, in one place. Everything in core/ compiles with either, with
// neither torch nor CUDA on the include path.
#pragma once

#if defined(__CUDACC__)
#define LRFAST_HD __host__ __device__ __forceinline__
#else
#define LRFAST_HD inline __attribute__((always_inline))
#endif
