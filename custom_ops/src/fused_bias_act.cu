// CUDA kernels of bias + activation + gain and of its derivatives. See kernels.h for the meaning.
//
// Memory bandwidth is the limit: each thread has two 16-byte loads per input in flight. The activations that
// networks are made of are compiled in, the others are chosen inside one kernel.

#include "kernels.h"

#include "cuda_common.h"

namespace stylegan {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 2;    // Vectors per thread and round.
constexpr int64_t kChunk = STYLEGAN_CHUNK;  // Elements per launch; in_run and channel are below it too.

enum Act { kSmooth = 0, kLinear, kRelu, kLrelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish };

// How the biases lie: none, the same for all elements of a vector, a vector of them, anything else.
enum BiasLayout { kNone, kSame, kVectors, kAny };

template <typename T>
struct BiasActParams {
  using Acc = typename Number<T>::Acc;

  const T* x;
  const T* b;
  const T* ref;
  T* y;
  uint32_t size, vectors;
  Divider<uint32_t> step, channels;  // bias_step, bias_size
  uint32_t in_run, channel;          // Where the first element lies: its place in its run, its bias.
  int act, layout;
  bool aligned;
  Acc alpha, gain, inverse_gain;
};

__device__ inline float exp_(float v) { return expf(v); }
__device__ inline double exp_(double v) { return exp(v); }
__device__ inline float expm1_(float v) { return expm1f(v); }
__device__ inline double expm1_(double v) { return expm1(v); }
__device__ inline float log1p_(float v) { return log1pf(v); }
__device__ inline double log1p_(double v) { return log1p(v); }
__device__ inline float tanh_(float v) { return tanhf(v); }
__device__ inline double tanh_(double v) { return tanh(v); }

template <typename Acc>
__device__ inline Acc sigmoid(Acc v) {
  return Acc(1) / (Acc(1) + exp_(-v));
}

// The activation of v (grad = 0), or its derivative at r: its output, for swish its argument. NaN stays NaN.
template <int kAct, int kGrad, typename Acc>
__device__ inline Acc activation(Acc v, Acc r, Acc alpha) {
  const Acc zero(0), one(1), selu_scale(1.0507009873554805);
  const Acc selu_slope(1.0507009873554805 * 1.6732632423543772);
  if (kGrad == 0) {
    switch (kAct) {
      case kRelu: return v < zero ? zero : v;
      case kLrelu: return v < zero ? v * alpha : v;
      case kTanh: return tanh_(v);
      case kSigmoid: return sigmoid(v);
      case kElu: return v < zero ? expm1_(v) : v;
      case kSelu: return v < zero ? selu_slope * expm1_(v) : selu_scale * v;
      case kSoftplus: return (v < zero ? zero : v) + log1p_(exp_(v < zero ? v : -v));
      case kSwish: return v * sigmoid(v);
      default: return v;
    }
  }
  if (kGrad == 1) {
    switch (kAct) {
      case kRelu: return r > zero ? one : zero;
      case kLrelu: return r > zero ? one : alpha;
      case kTanh: return one - r * r;
      case kSigmoid: return r * (one - r);
      case kElu: return r < zero ? r + one : one;
      case kSelu: return r < zero ? r + selu_slope : selu_scale;
      case kSoftplus: return -expm1_(-r);
      case kSwish: {
        const Acc s = sigmoid(r);
        return s * (one + r * (one - s));
      }
      default: return one;
    }
  }
  switch (kAct) {
    case kTanh: return Acc(-2) * r * (one - r * r);
    case kSigmoid: return r * (one - r) * (one - Acc(2) * r);
    case kElu: return r < zero ? r + one : zero;
    case kSelu: return r < zero ? r + selu_slope : zero;
    case kSoftplus: return -expm1_(-r) * exp_(-r);
    case kSwish: {
      const Acc s = sigmoid(r);
      return s * (one - s) * (Acc(2) + r * (one - Acc(2) * s));
    }
    default: return zero;
  }
}

// All elements of a vector. ref is divided by the gain where it is an output.
template <int kAct, int kGrad, typename Acc, int kCount>
__device__ inline void activate(Acc (&v)[kCount], const Acc (&ref)[kCount], Acc alpha, Acc gain,
                                Acc inverse_gain) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const Acc r = kAct == kSwish ? ref[j] : ref[j] * inverse_gain;
    v[j] = kGrad == 0 ? activation<kAct, 0>(v[j], r, alpha) * gain
                      : v[j] * (activation<kAct, kGrad>(v[j], r, alpha) * gain);
  }
}

template <typename T>
__device__ inline uint4 load_vector(const T* from, uint32_t start, uint32_t size, bool aligned) {
  constexpr int kCount = Number<T>::kVector;
  if (aligned && size - start >= kCount) return *reinterpret_cast<const uint4*>(from + start);
  union {
    T elements[kCount];
    uint4 raw;
  } u;
  u.raw = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (uint32_t(j) < size - start) u.elements[j] = from[start + j];
  }
  return u.raw;
}

template <typename T>
__device__ inline void store_vector(const typename Number<T>::Acc (&v)[Number<T>::kVector], T* to,
                                    uint32_t start, uint32_t size, bool aligned) {
  if (aligned && size - start >= Number<T>::kVector) {
    *reinterpret_cast<uint4*>(to + start) = pack(v, T());
    return;
  }
#pragma unroll
  for (int j = 0; j < Number<T>::kVector; ++j) {
    if (uint32_t(j) < size - start) from_acc(v[j], to + start + j);
  }
}

template <typename T>
__device__ inline void add_bias(typename Number<T>::Acc (&v)[Number<T>::kVector], uint32_t start,
                                const BiasActParams<T>& p) {
  constexpr int kCount = Number<T>::kVector;
  if (p.layout == kNone) return;
  const uint32_t run = p.step.divide(start + p.in_run);
  uint32_t channel = p.channel + run;
  channel -= p.channels.divide(channel) * p.channels.d;
  if (p.layout == kSame) {
    const auto bias = to_acc(p.b[channel]);
#pragma unroll
    for (int j = 0; j < kCount; ++j) v[j] += bias;
  } else if (p.layout == kVectors) {
    typename Number<T>::Acc bias[kCount];
    unpack(*reinterpret_cast<const uint4*>(p.b + channel), bias, T());
#pragma unroll
    for (int j = 0; j < kCount; ++j) v[j] += bias[j];
  } else {
    uint32_t in_run = start + p.in_run - run * p.step.d;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      v[j] += to_acc(p.b[channel]);
      if (++in_run == p.step.d) {
        in_run = 0;
        if (++channel == p.channels.d) channel = 0;
      }
    }
  }
}

template <typename T, int kAct, int kGrad>
__global__ void __launch_bounds__(kThreads, 4) bias_act_kernel(const BiasActParams<T> p) {
  using Acc = typename Number<T>::Acc;
  constexpr int kCount = Number<T>::kVector;
  constexpr bool kReadsRef = kGrad > 0 && kAct != kLinear;
  const uint32_t round = gridDim.x * (kThreads * kUnroll);
  for (uint32_t first = blockIdx.x * (kThreads * kUnroll) + threadIdx.x; first < p.vectors; first += round) {
    uint4 x[kUnroll], ref[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {  // All loads before the first use.
      const uint32_t start = (first + u * kThreads) * kCount;
      if (start >= p.size) break;
      x[u] = load_vector(p.x, start, p.size, p.aligned);
      if (kReadsRef) ref[u] = load_vector(p.ref, start, p.size, p.aligned);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t start = (first + u * kThreads) * kCount;
      if (start >= p.size) break;
      Acc v[kCount], r[kCount] = {};
      unpack(x[u], v, T());
      if (kReadsRef) unpack(ref[u], r, T());
      add_bias(v, start, p);
      if (kAct != kSmooth) {
        activate<kAct, kGrad>(v, r, p.alpha, p.gain, p.inverse_gain);
      } else {
        switch (p.act) {
          case kTanh: activate<kTanh, kGrad>(v, r, p.alpha, p.gain, p.inverse_gain); break;
          case kSigmoid: activate<kSigmoid, kGrad>(v, r, p.alpha, p.gain, p.inverse_gain); break;
          case kElu: activate<kElu, kGrad>(v, r, p.alpha, p.gain, p.inverse_gain); break;
          case kSelu: activate<kSelu, kGrad>(v, r, p.alpha, p.gain, p.inverse_gain); break;
          case kSoftplus: activate<kSoftplus, kGrad>(v, r, p.alpha, p.gain, p.inverse_gain); break;
          default: activate<kSwish, kGrad>(v, r, p.alpha, p.gain, p.inverse_gain); break;
        }
      }
      store_vector(v, p.y, start, p.size, p.aligned);
    }
  }
}

template <typename T, int kAct, int kGrad>
const char* run_chunk(const BiasActParams<T>& p, void* stream) {
  const int64_t blocks = ceil_div(p.vectors, kThreads * kUnroll);
  return launch(bias_act_kernel<T, kAct, kGrad>, blocks, kThreads, 0, stream, p);
}

template <typename T>
const char* run_chunk(const BiasActParams<T>& p, int grad, void* stream) {
  if (p.act == kLinear) return run_chunk<T, kLinear, 0>(p, stream);  // act' = 1
  if (p.act == kRelu) return grad ? run_chunk<T, kRelu, 1>(p, stream) : run_chunk<T, kRelu, 0>(p, stream);
  if (p.act == kLrelu) return grad ? run_chunk<T, kLrelu, 1>(p, stream) : run_chunk<T, kLrelu, 0>(p, stream);
  if (grad == 0) return run_chunk<T, kSmooth, 0>(p, stream);
  if (grad == 1) return run_chunk<T, kSmooth, 1>(p, stream);
  return run_chunk<T, kSmooth, 2>(p, stream);
}

// Tensors of any size, in chunks in which 32-bit indices do.
template <typename T>
const char* run(const StyleganFusedBiasAct& a, void* stream) {
  using Acc = typename Number<T>::Acc;
  constexpr int kCount = Number<T>::kVector;
  if (a.act <= kLrelu && a.grad == 2) {
    const cudaError_t error = cudaMemsetAsync(a.y, 0, a.size * sizeof(T), static_cast<cudaStream_t>(stream));
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }
  BiasActParams<T> p;
  p.act = a.act;
  p.alpha = Acc(a.alpha);
  p.gain = Acc(a.gain);
  p.inverse_gain = a.gain == 0 ? Acc(0) : Acc(1 / a.gain);  // Gain 0: all is 0, whatever the derivative.
  for (int64_t base = 0, count; base < a.size; base += count) {
    count = a.size - base < kChunk ? a.size - base : kChunk;
    int64_t step = 1, channels = 1, in_run = 0, channel = 0;
    p.b = static_cast<const T*>(a.b);
    if (a.b) {
      step = a.bias_step;
      channels = a.bias_size;
      in_run = base % step;
      channel = base / step % channels;
      if (step > kChunk) {  // A chunk with one bias.
        if (count > step - in_run) count = step - in_run;
        p.b += channel;
        step = kChunk;
        channels = 1;
        in_run = channel = 0;
      } else if (channels > kChunk) {  // A chunk that ends with the last bias at the latest.
        const int64_t left = (channels - channel) * step - in_run;
        if (count > left) count = left;
        p.b += channel;
        channels = 0x7fffffff;
        channel = 0;
      }
    }
    p.x = static_cast<const T*>(a.x) + base;
    p.ref = a.ref ? static_cast<const T*>(a.ref) + base : nullptr;
    p.y = static_cast<T*>(a.y) + base;
    p.size = uint32_t(count);
    p.vectors = uint32_t(ceil_div(count, kCount));
    p.step = Divider<uint32_t>(step);
    p.channels = Divider<uint32_t>(channels);
    p.in_run = uint32_t(in_run);
    p.channel = uint32_t(channel);
    const bool same = step % kCount == 0 && in_run % kCount == 0;
    const bool vectors = step == 1 && channels % kCount == 0 && channel % kCount == 0 && is_aligned(p.b);
    p.layout = !a.b ? kNone : same ? kSame : vectors ? kVectors : kAny;
    p.aligned = is_aligned(p.x) && is_aligned(p.y) && is_aligned(p.ref);
    const char* error = run_chunk(p, a.grad, stream);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace
}  // namespace stylegan

extern "C" const char* stylegan_fused_bias_act_gpu(const StyleganFusedBiasAct* args, void* stream) {
  using namespace stylegan;
  const StyleganFusedBiasAct& a = *args;
  if (a.size < 0 || a.act < kLinear || a.act > kSwish || a.grad < 0 || a.grad > 2) {
    return "fused_bias_act: size, act or grad out of range";
  }
  if (a.size == 0) return nullptr;
  if (a.b && (a.bias_size < 1 || a.bias_step < 1)) {
    return "fused_bias_act: bias_size and bias_step must be positive";
  }
  if (a.grad > 0 && a.act != kLinear && !a.ref) return "fused_bias_act: ref is missing";
  switch (a.dtype) {
    case STYLEGAN_FLOAT32: return run<float>(a, stream);
    case STYLEGAN_FLOAT16: return run<Half>(a, stream);
    case STYLEGAN_BFLOAT16: return run<BFloat16>(a, stream);
    case STYLEGAN_FLOAT64: return run<double>(a, stream);
  }
  return "fused_bias_act: unknown dtype";
}
