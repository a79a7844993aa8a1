// What the CUDA kernels have in common: number types, 16-byte vectors, division by constants, launching.

#ifndef STYLEGAN_CUDA_COMMON_H_
#define STYLEGAN_CUDA_COMMON_H_

#include <stdint.h>

#ifdef STYLEGAN_CUDA_ON_CPU  // Compiled for the CPU, to check the kernels where there is no GPU.
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>
#define STYLEGAN_SHARED_MEMORY(name) extern __shared__ uint4 name[]
#define STYLEGAN_MAX_BLOCKS 0x7fffffff
#define STYLEGAN_CHUNK (1 << 30)  // Elements per launch.
#define STYLEGAN_TILES (1 << 26)  // Tiles per launch.
#define STYLEGAN_MANY_TILES 2048  // As many as keep a large GPU busy.
#endif

namespace stylegan {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Acc: what is computed in. kVector: elements in 16 bytes.
template <typename T>
struct Number {
  using Acc = float;
  static constexpr int kVector = 16 / sizeof(T);
};
template <>
struct Number<double> {
  using Acc = double;
  static constexpr int kVector = 2;
};

__device__ inline float to_acc(float v) { return v; }
__device__ inline double to_acc(double v) { return v; }
__device__ inline float to_acc(Half v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ inline float to_acc(BFloat16 v) { return __uint_as_float(uint32_t(v.bits) << 16); }

__device__ inline void from_acc(float v, float* to) { *to = v; }
__device__ inline void from_acc(double v, double* to) { *to = v; }
__device__ inline void from_acc(float v, Half* to) { to->bits = __half_as_ushort(__float2half_rn(v)); }
__device__ inline void from_acc(float v, BFloat16* to) {
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
}

// Two 16-bit numbers in a word, the first in the low half.
__device__ inline void unpack_pair(uint32_t word, float* v, Half) {
  v[0] = __half2float(__ushort_as_half(uint16_t(word)));
  v[1] = __half2float(__ushort_as_half(uint16_t(word >> 16)));
}
__device__ inline void unpack_pair(uint32_t word, float* v, BFloat16) {
  v[0] = __uint_as_float(word << 16);
  v[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ inline uint32_t pack_pair(float a, float b, Half) {
  const __half2 pair = __floats2half2_rn(a, b);
  return __half_as_ushort(__low2half(pair)) | uint32_t(__half_as_ushort(__high2half(pair))) << 16;
}
__device__ inline uint32_t pack_pair(float a, float b, BFloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return __bfloat16_as_ushort(__low2bfloat16(pair)) |
         uint32_t(__bfloat16_as_ushort(__high2bfloat16(pair))) << 16;
}

// 16 bytes from and to numbers to compute with.
template <typename T>
__device__ inline void unpack(const uint4& raw, float (&v)[8], T tag) {
  unpack_pair(raw.x, v, tag);
  unpack_pair(raw.y, v + 2, tag);
  unpack_pair(raw.z, v + 4, tag);
  unpack_pair(raw.w, v + 6, tag);
}
__device__ inline void unpack(const uint4& raw, float (&v)[4], float) {
  v[0] = __uint_as_float(raw.x);
  v[1] = __uint_as_float(raw.y);
  v[2] = __uint_as_float(raw.z);
  v[3] = __uint_as_float(raw.w);
}
__device__ inline void unpack(const uint4& raw, double (&v)[2], double) {
  v[0] = __hiloint2double(int(raw.y), int(raw.x));
  v[1] = __hiloint2double(int(raw.w), int(raw.z));
}
template <typename T>
__device__ inline uint4 pack(const float (&v)[8], T tag) {
  return make_uint4(pack_pair(v[0], v[1], tag), pack_pair(v[2], v[3], tag), pack_pair(v[4], v[5], tag),
                    pack_pair(v[6], v[7], tag));
}
__device__ inline uint4 pack(const float (&v)[4], float) {
  return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                    __float_as_uint(v[3]));
}
__device__ inline uint4 pack(const double (&v)[2], double) {
  return make_uint4(__double2loint(v[0]), __double2hiint(v[0]), __double2loint(v[1]), __double2hiint(v[1]));
}

// What a thread handles at once: the numbers of a 16-byte vector, or one number. Index i counts these.
template <typename T, bool kVectors>
struct Pack {
  using Acc = typename Number<T>::Acc;
  using Raw = uint4;
  static constexpr int kCount = Number<T>::kVector;

  static __device__ Raw load(const T* from, int64_t i) { return reinterpret_cast<const uint4*>(from)[i]; }
  static __device__ void unpack(const Raw& raw, Acc (&v)[kCount]) { stylegan::unpack(raw, v, T()); }
  static __device__ void store(const Acc (&v)[kCount], T* to, int64_t i) {
    reinterpret_cast<uint4*>(to)[i] = pack(v, T());
  }
};
template <typename T>
struct Pack<T, false> {
  using Acc = typename Number<T>::Acc;
  using Raw = T;
  static constexpr int kCount = 1;

  static __device__ Raw load(const T* from, int64_t i) { return from[i]; }
  static __device__ void unpack(const Raw& raw, Acc (&v)[1]) { v[0] = to_acc(raw); }
  static __device__ void store(const Acc (&v)[1], T* to, int64_t i) { from_acc(v[0], to + i); }
};

// n / d for 0 ≤ n < 2^(bits - 1) and 1 ≤ d < 2^(bits - 1), by a multiplication: with 2^s the power of two
// that is not below d and m = 2^bits·(2^s - d) / d, rounded down, plus 1, n / d = (n·m / 2^bits + n) / 2^s
// (Granlund, Montgomery: Division by invariant integers using multiplication, 1994).
template <typename Index>
struct Divider;

template <>
struct Divider<uint32_t> {
  uint32_t d, m, s;

  Divider() = default;
  explicit Divider(int64_t divisor) : d(uint32_t(divisor)), s(0) {
    while ((uint64_t{1} << s) < d) ++s;
    m = uint32_t(((((uint64_t{1} << s) - d) << 32) / d) + 1);
  }
  __device__ uint32_t divide(uint32_t n) const { return (__umulhi(n, m) + n) >> s; }
};

template <>
struct Divider<uint64_t> {
  uint64_t d, m;
  uint32_t s;

  Divider() = default;
  explicit Divider(int64_t divisor) : d(uint64_t(divisor)), s(0) {
    while ((uint64_t{1} << s) < d) ++s;
    // The quotient's 64 binary digits one by one: the dividend has up to 127.
    uint64_t rest = (uint64_t{1} << s) - d, quotient = 0;
    for (int i = 0; i < 64; ++i) {
      rest <<= 1;
      quotient <<= 1;
      if (rest >= d) {
        rest -= d;
        quotient |= 1;
      }
    }
    m = quotient + 1;
  }
  __device__ uint64_t divide(uint64_t n) const { return (__umul64hi(n, m) + n) >> s; }
};

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The smallest n with 2^n ≥ size.
inline int log2_ceil(int64_t size) {
  int n = 0;
  while ((int64_t{1} << n) < size) ++n;
  return n;
}

// Starts kernel(params); blocks: as many as would be useful, the kernel loops where that is too many.
// Returns NULL or the text of the error.
template <typename Params>
const char* launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, void* stream,
                   Params params) {
  const dim3 grid(unsigned(blocks < STYLEGAN_MAX_BLOCKS ? blocks : STYLEGAN_MAX_BLOCKS));
  void* args[] = {&params};
  const cudaError_t error = cudaLaunchKernel(kernel, grid, dim3(threads), args, shared_bytes,
                                             static_cast<cudaStream_t>(stream));
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // Reported here: the next call must not find it again.
  return cudaGetErrorString(error);
}

}  // namespace stylegan

#endif  // STYLEGAN_CUDA_COMMON_H_
