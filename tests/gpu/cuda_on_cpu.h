// As much of CUDA as the kernels use, on the CPU: to check their results and addresses where there is no GPU.
//
// A block's threads are fibers that run one after the other from barrier to barrier, in ascending order in
// even blocks and in descending order in odd ones. Shared memory starts as NaN, is as large as the launch
// says, and asynchronous copies arrive only when they are waited for. So wrong indices, a missing barrier and
// a missing wait show up in the results (or in the address sanitizer). What depends on real parallelism
// (races between barriers that both orders happen to survive, warps, memory ordering, speed) does not.

#ifndef STYLEGAN_CUDA_ON_CPU_H_
#define STYLEGAN_CUDA_ON_CPU_H_

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

#include <mutex>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define STYLEGAN_SHARED_MEMORY(name) uint4* const name = cuda_on_cpu::machine().shared

// Small, so that small tensors are cut into chunks, and blocks take several rounds.
#ifndef STYLEGAN_CHUNK
#define STYLEGAN_CHUNK 4096
#endif
#ifndef STYLEGAN_TILES
#define STYLEGAN_TILES 6
#endif
#ifndef STYLEGAN_MANY_TILES
#define STYLEGAN_MANY_TILES 2
#endif
#ifndef STYLEGAN_MAX_BLOCKS
#define STYLEGAN_MAX_BLOCKS 5
#endif

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

typedef int cudaError_t;
typedef void* cudaStream_t;
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };

namespace cuda_on_cpu {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(128 << 10);
  bool done;
  std::vector<const void*> copies;  // Pending: to, from, to, from ...
  char shuffled[2][8];              // Values given to other threads.
  bool shuffles;                    // Which of them came last.
};

struct Machine {
  std::mutex launching;  // One kernel at a time, whatever thread starts it.
  dim3 thread, block, threads, blocks;  // threadIdx, blockIdx, blockDim, gridDim
  uint4* shared = nullptr;
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  Fiber* running = nullptr;  // NULL: the kernel has no barriers and runs without fibers.
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
};

inline Machine& machine() {
  static Machine m;
  return m;
}

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "cuda_on_cpu: %s\n", what);
  abort();
}

inline void to_scheduler(bool finished) {
  Machine& m = machine();
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(finished ? nullptr : &fake, m.scheduler_stack, m.scheduler_stack_size);
  swapcontext(&m.running->context, &m.scheduler);
  __sanitizer_finish_switch_fiber(fake, &m.scheduler_stack, &m.scheduler_stack_size);
#else
  (void)finished;
  swapcontext(&m.running->context, &m.scheduler);
#endif
}

inline void fiber_main() {
  Machine& m = machine();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_stack_size);
#endif
  m.body(m.argument);
  if (!m.running->copies.empty()) fail("a thread ended without waiting for its copies");
  m.running->done = true;
  to_scheduler(true);
}

inline void resume(Fiber& fiber) {
  Machine& m = machine();
  m.running = &fiber;
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.data(), fiber.stack.size());
  swapcontext(&m.scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  swapcontext(&m.scheduler, &fiber.context);
#endif
}

inline void run_block_in_fibers() {
  Machine& m = machine();
  const unsigned count = m.threads.x;
  if (m.fibers.size() < count) m.fibers.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = m.fibers[i];
    fiber.done = fiber.shuffles = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  for (unsigned done = 0; done < count;) {
    done = 0;
    for (unsigned i = 0; i < count; ++i) {
      m.thread.x = m.block.x % 2 ? count - 1 - i : i;
      resume(m.fibers[m.thread.x]);
      done += m.fibers[m.thread.x].done;
    }
    if (done > 0 && done < count) fail("a barrier that not all threads of the block reach");
  }
  m.running = nullptr;
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::machine().thread)
#define blockIdx (cuda_on_cpu::machine().block)
#define blockDim (cuda_on_cpu::machine().threads)
#define gridDim (cuda_on_cpu::machine().blocks)

inline void __syncthreads() {
  if (!cuda_on_cpu::machine().running) cuda_on_cpu::fail("a barrier in a kernel without shared memory");
  cuda_on_cpu::to_scheduler(false);
}

// The value of the thread whose number differs by `mask`, of the same warp. All threads of the block have to
// take part, as at a barrier. Two sets of values in turn: one is read while the next is written.
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  cuda_on_cpu::Machine& m = cuda_on_cpu::machine();
  if (!m.running) cuda_on_cpu::fail("a shuffle in a kernel without shared memory");
  cuda_on_cpu::Fiber& fiber = *m.running;
  const unsigned thread = m.thread.x;
  if (mask < 1 || mask > 31) cuda_on_cpu::fail("a shuffle out of the warp");
  fiber.shuffles = !fiber.shuffles;
  memcpy(fiber.shuffled[fiber.shuffles], &value, sizeof(value));
  cuda_on_cpu::to_scheduler(false);
  memcpy(&value, m.fibers[thread ^ mask].shuffled[fiber.shuffles], sizeof(value));
  return value;
}

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size) {
  if (size != 16 || reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
    cuda_on_cpu::fail("an asynchronous copy that is not of 16 aligned bytes");
  }
  auto& copies = cuda_on_cpu::machine().running->copies;
  copies.push_back(to);
  copies.push_back(from);
}
inline void __pipeline_commit() {}
inline void __pipeline_wait_prior(int) {
  auto& copies = cuda_on_cpu::machine().running->copies;
  for (size_t i = 0; i < copies.size(); i += 2) memcpy(const_cast<void*>(copies[i]), copies[i + 1], 16);
  copies.clear();
}

template <typename Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 blocks, dim3 threads, void** args,
                             size_t shared_bytes, cudaStream_t) {
  cuda_on_cpu::Machine& m = cuda_on_cpu::machine();
  const std::lock_guard<std::mutex> lock(m.launching);
  if (blocks.x == 0 || threads.x == 0 || threads.x > 1024 || shared_bytes > 48 << 10 ||
      sizeof(Params) > 4096) {
    return cudaErrorInvalidValue;
  }
  struct Call {
    void (*kernel)(Params);
    const Params* params;
  } call = {kernel, static_cast<const Params*>(args[0])};
  m.argument = &call;
  m.body = [](void* argument) {
    const Call* call = static_cast<Call*>(argument);
    call->kernel(*call->params);
  };
  m.blocks = blocks;
  m.threads = threads;
  void* shared = nullptr;
  if (shared_bytes > 0 && posix_memalign(&shared, 16, shared_bytes)) return cudaErrorMemoryAllocation;
  m.shared = static_cast<uint4*>(shared);
  for (m.block.x = 0; m.block.x < blocks.x; ++m.block.x) {
    if (shared_bytes > 0) {
      memset(shared, 0xff, shared_bytes);  // NaN in every type.
      cuda_on_cpu::run_block_in_fibers();
    } else {
      for (m.thread.x = 0; m.thread.x < threads.x; ++m.thread.x) m.body(m.argument);
    }
  }
  free(shared);
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid launch configuration";
    case cudaErrorMemoryAllocation: return "out of memory";
  }
  return "unspecified launch failure";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
  memset(to, value, size);
  return cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  memmove(to, from, size);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                                   cudaStream_t) {
  return cudaMemcpy(to, from, size, kind);
}
inline cudaError_t cudaMalloc(void** to, size_t size) {
  return posix_memalign(to, 256, size ? size : 1) ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaFree(void* pointer) {
  free(pointer);
  return cudaSuccess;
}

// Numbers.

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)a * b >> 64); }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return uint32_t(((uint64_t(high) << 32) | low) >> (shift & 31));
}

template <typename To, typename From>
inline To cuda_on_cpu_bits(From from) {
  To to;
  static_assert(sizeof(to) == sizeof(from), "bits");
  memcpy(&to, &from, sizeof(to));
  return to;
}
inline float __uint_as_float(uint32_t v) { return cuda_on_cpu_bits<float>(v); }
inline uint32_t __float_as_uint(float v) { return cuda_on_cpu_bits<uint32_t>(v); }
inline double __hiloint2double(int high, int low) {
  return cuda_on_cpu_bits<double>(uint64_t(uint32_t(high)) << 32 | uint32_t(low));
}
inline int __double2hiint(double v) { return int(cuda_on_cpu_bits<uint64_t>(v) >> 32); }
inline int __double2loint(double v) { return int(uint32_t(cuda_on_cpu_bits<uint64_t>(v))); }

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half v) { return v.bits; }
inline float __half2float(__half v) {
  const int exponent = v.bits >> 10 & 31, mantissa = v.bits & 1023;
  const float size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                     : exponent == 0 ? ldexpf(float(mantissa), -24)
                                     : ldexpf(float(1024 + mantissa), exponent - 25);
  return v.bits >> 15 ? -size : size;
}
inline __half __float2half_rn(float v) {
  const uint16_t sign = uint16_t(__float_as_uint(v) >> 16 & 0x8000);
  const float size = fabsf(v);
  if (!(size == size)) return {uint16_t(sign | 0x7fff)};
  if (size >= 65520.0f) return {uint16_t(sign | 0x7c00)};
  int exponent;  // size = fraction·2^exponent, 0.5 ≤ fraction < 1
  frexpf(size, &exponent);
  if (exponent < -13) exponent = -13;  // Subnormal: the step is 2^-24.
  const int steps = int(rintf(ldexpf(size, 11 - exponent)));  // To nearest, ties to even.
  return {uint16_t(sign | (steps < 1024 ? steps : ((exponent + 14) << 10) + (steps - 1024)))};
}
inline __half2 __floats2half2_rn(float a, float b) { return {__float2half_rn(a), __float2half_rn(b)}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const uint32_t bits = __float_as_uint(v);
  if (!(v == v)) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return {__float2bfloat16_rn(a), __float2bfloat16_rn(b)};
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }

// Events: times of the clock, for the sake of the interface.
typedef double* cudaEvent_t;
inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new double(0);
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  *event = now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  *ms = float(*to - *from);
  return cudaSuccess;
}

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int) {
  *prop = {"none, CUDA on the CPU", 0, 0, 1};
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *free_bytes = *total = size_t(1) << 30;
  return cudaSuccess;
}

#endif  // STYLEGAN_CUDA_ON_CPU_H_
