// What check_kernels.py needs besides the launchers: device memory, copies and times, by a C interface.
// Functions return NULL or the text of an error.

#include "kernels.h"

#include "cuda_common.h"

#define HARNESS(name) extern "C" __attribute__((visibility("default"))) const char* harness_##name
#define TRY(call)                                                     \
  do {                                                                \
    const cudaError_t error = (call);                                 \
    if (error != cudaSuccess) return cudaGetErrorString(error);       \
  } while (0)

namespace {

struct CopyParams {
  const uint4* from;
  uint4* to;
  int64_t count;
};

// The plainest copy: one 16-byte vector per thread.
__global__ void copy_kernel(const CopyParams p) {
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < p.count; i += int64_t(gridDim.x) * 256) {
    p.to[i] = p.from[i];
  }
}

}  // namespace

// What to run: 0 = cudaMemcpy, 1 = copy kernel (with args a CopyParams), from 2 = the launchers.
static const char* run(int what, const void* args) {
  const CopyParams* copy = static_cast<const CopyParams*>(args);
  switch (what) {
    case 0:
      TRY(cudaMemcpyAsync(copy->to, copy->from, copy->count * 16, cudaMemcpyDeviceToDevice, nullptr));
      return nullptr;
    case 1: return stylegan::launch(copy_kernel, (copy->count + 255) / 256, 256, 0, nullptr, *copy);
    case 2: return stylegan_fused_bias_act_gpu(static_cast<const StyleganFusedBiasAct*>(args), nullptr);
    case 3: return stylegan_upfirdn_2d_gpu(static_cast<const StyleganUpFirDn2D*>(args), nullptr);
    case 4:
      return stylegan_filter_noise_bias_act_gpu(static_cast<const StyleganFilterNoiseBiasAct*>(args), nullptr);
    default:
      return stylegan_noise_bias_act_grad_gpu(static_cast<const StyleganNoiseBiasActGrad*>(args), nullptr);
  }
}

HARNESS(run)(int what, const void* args) {
  const char* error = run(what, args);
  if (error) return error;
  TRY(cudaDeviceSynchronize());
  return nullptr;
}

HARNESS(time)(int what, const void* args, int repeats, float* ms) {
  for (int i = 0; i < 3; ++i) {
    const char* error = run(what, args);
    if (error) return error;
  }
  cudaEvent_t from, to;
  TRY(cudaEventCreate(&from));
  TRY(cudaEventCreate(&to));
  for (int i = 0; i < repeats; ++i) {
    TRY(cudaEventRecord(from, nullptr));
    const char* error = run(what, args);
    if (error) return error;
    TRY(cudaEventRecord(to, nullptr));
    TRY(cudaEventSynchronize(to));
    TRY(cudaEventElapsedTime(ms + i, from, to));
  }
  TRY(cudaEventDestroy(from));
  TRY(cudaEventDestroy(to));
  return nullptr;
}

HARNESS(device)(char* name, int* capability, int64_t* free_bytes) {
  cudaDeviceProp prop;
  TRY(cudaGetDeviceProperties(&prop, 0));
  for (int i = 0; i < 255 && (name[i] = prop.name[i]); ++i) name[i + 1] = 0;
  *capability = prop.major * 10 + prop.minor;
  size_t free_now, total;
  TRY(cudaMemGetInfo(&free_now, &total));
  *free_bytes = int64_t(free_now);
  return nullptr;
}

HARNESS(workspace)(const void* args, int64_t* size) {
  *size = stylegan_noise_bias_act_grad_workspace(static_cast<const StyleganNoiseBiasActGrad*>(args));
  return nullptr;
}

HARNESS(alloc)(void** to, int64_t size) {
  TRY(cudaMalloc(to, size));
  return nullptr;
}

HARNESS(free)(void* pointer) {
  TRY(cudaFree(pointer));
  return nullptr;
}

// direction: 0 to the device, 1 from it, 2 within it.
HARNESS(copy)(void* to, const void* from, int64_t size, int direction) {
  const cudaMemcpyKind kinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice};
  TRY(cudaMemcpy(to, from, size, kinds[direction]));
  return nullptr;
}

HARNESS(fill)(void* to, int byte, int64_t size) {
  TRY(cudaMemsetAsync(to, byte, size, nullptr));
  TRY(cudaDeviceSynchronize());
  return nullptr;
}
