// CPU kernels of bias + activation + gain and of its derivatives. See fused_bias_act_op.cc for the meaning.

#ifndef STYLEGAN_FUSED_BIAS_ACT_CPU_H_
#define STYLEGAN_FUSED_BIAS_ACT_CPU_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu_common.h"

namespace stylegan {

// exp(x) - 1 = scale·p + (scale - 1) with scale = 2^n and p = exp(r) - 1, |r| ≤ ln 2 / 2: exact near 0 and,
// unlike the library's, without branches, for vectors.
inline float fast_expm1(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float magic = 12582912.0f;  // 1.5·2^23: adding it leaves the nearest integer in the low bits.
  const float shifted = x * 1.44269504f + magic, n = shifted - magic;
  const float scale = bit_cast<float>((bit_cast<uint32_t>(shifted) - 0x4b400000u + 127u) << 23);
  const float r = x - n * 0.693145752f - n * 1.42860677e-6f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r * r + r;
  return scale * p + (scale - 1.0f);
}
inline double fast_expm1(double x) { return std::expm1(x); }

// log(1 + u) for 0 ≤ u ≤ 1, as 2·artanh(u / (2 + u)).
inline float fast_log1p(float u) {
  const float s = u / (2.0f + u), q = s * s;
  float p = 2.0f / 15.0f;
  p = p * q + 2.0f / 13.0f;
  p = p * q + 2.0f / 11.0f;
  p = p * q + 2.0f / 9.0f;
  p = p * q + 2.0f / 7.0f;
  p = p * q + 2.0f / 5.0f;
  p = p * q + 2.0f / 3.0f;
  return p * q * s + 2.0f * s;
}
inline double fast_log1p(double u) { return std::log1p(u); }

template <typename C>
inline C sigmoid(C x) {
  return C(1) / (C(2) + fast_expm1(-x));
}

// The numbers of the activations, the same as in activation_funcs of fused_bias_act.py.
enum Act { kLinear = 1, kRelu, kLrelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish };

constexpr double kSeluScale = 1.0507009873554805, kSeluAlpha = 1.6732632423543772;

// What the derivatives of an activation are computed from.
inline bool needs_ref(int act, int grad) { return grad > 0 && act != kLinear; }

// The activation without gain (grad = 0; r is not used) or its first or second derivative at r, which is the
// output of the activation, for swish its argument. All are selects and arithmetic, for vectors.
template <typename C, int act, int grad>
inline C activation(C v, C r, C alpha) {
  const C zero(0), one(1);
  if (grad == 0) {
    switch (act) {
      case kRelu: return v < zero ? zero : v;
      case kLrelu: return v < zero ? v * alpha : v;
      case kTanh: {
        C x = v < C(-20) ? C(-20) : v;
        x = x > C(20) ? C(20) : x;
        const C e = fast_expm1(C(2) * x);
        return e / (e + C(2));
      }
      case kSigmoid: return sigmoid(v);
      case kElu: return v < zero ? fast_expm1(v) : v;
      case kSelu: return C(kSeluScale) * (v < zero ? C(kSeluAlpha) * fast_expm1(v) : v);
      case kSoftplus: {
        const C magnitude = v < zero ? -v : v;
        return (v < zero ? zero : v) + fast_log1p(one + fast_expm1(-magnitude));
      }
      case kSwish: return v * sigmoid(v);
      default: return v;
    }
  }
  if (grad == 1) {
    switch (act) {
      case kRelu: return r > zero ? one : zero;
      case kLrelu: return r > zero ? one : alpha;
      case kTanh: return one - r * r;
      case kSigmoid: return r * (one - r);
      case kElu: return r < zero ? r + one : one;
      case kSelu: return r < zero ? r + C(kSeluScale * kSeluAlpha) : C(kSeluScale);
      case kSoftplus: return -fast_expm1(-r);
      case kSwish: {
        const C s = sigmoid(r);
        return s * (one + r * (one - s));
      }
      default: return one;
    }
  }
  switch (act) {
    case kTanh: return C(-2) * r * (one - r * r);
    case kSigmoid: return r * (one - r) * (one - C(2) * r);
    case kElu: return r < zero ? r + one : zero;
    case kSelu: return r < zero ? r + C(kSeluScale * kSeluAlpha) : zero;
    case kSoftplus: return -fast_expm1(-r) * (one + fast_expm1(-r));
    case kSwish: {
      const C s = sigmoid(r);
      return s * (one - s) * (C(2) + r * (one - C(2) * s));
    }
    default: return zero;
  }
}

// One element: v = x + bias. ref is the output with gain, for swish the argument.
template <typename C, int act, int grad>
struct BiasAct {
  C alpha, gain, inverse_gain;

  BiasAct(double alpha, double gain) : alpha(C(alpha)), gain(C(gain)), inverse_gain(C(1.0 / gain)) {}

  C operator()(C v, C ref) const {
    if (grad == 0) return activation<C, act, 0>(v, C(0), alpha) * gain;
    return v * activation<C, act, grad>(C(0), act == kSwish ? ref : ref * inverse_gain, alpha) * gain;
  }
};

struct BiasActArgs {
  const void* x;
  const void* b;     // NULL = none.
  const void* ref;   // NULL = none.
  void* y;           // May be x or ref.
  int64_t size;
  int64_t bias_size;  // Element i has bias (i / bias_step) % bias_size.
  int64_t bias_step;
  double alpha, gain;
};

// Adjacent elements, with their biases or, where b is NULL, one bias for all. sums: NULL, or to add the
// results to, by position.
template <typename T, int act, int grad, typename C = typename Accumulator<T>::type>
void bias_act_row(const T* x, const T* ref, T* y, int64_t n, const C* b, C bias, C* sums,
                  const BiasAct<C, act, grad>& op) {
  const bool reads_ref = grad > 0 && act != kLinear;
  if (sums != nullptr) {
    STYLEGAN_VECTORIZE
    for (int64_t i = 0; i < n; ++i) {
      const C result = op(load(x[i]) + bias, reads_ref ? load(ref[i]) : C(0));
      store(result, y + i);
      sums[i] += result;
    }
  } else if (b != nullptr) {
    STYLEGAN_VECTORIZE
    for (int64_t i = 0; i < n; ++i) {
      store(op(load(x[i]) + b[i], reads_ref ? load(ref[i]) : C(0)), y + i);
    }
  } else {
    STYLEGAN_VECTORIZE
    for (int64_t i = 0; i < n; ++i) {
      store(op(load(x[i]) + bias, reads_ref ? load(ref[i]) : C(0)), y + i);
    }
  }
}

// Elements that share a bias are taken as runs from this length on; shorter ones through a table of biases.
constexpr int64_t kMinRun = 64;
constexpr int64_t kMinTable = 1024;

// The biases of kMinTable or more adjacent elements, a whole number of periods; empty where runs are used.
template <typename T, typename C = typename Accumulator<T>::type>
std::vector<C> bias_table(const BiasActArgs& args) {
  std::vector<C> table;
  if (args.b == nullptr || args.bias_step >= kMinRun) return table;
  const int64_t period = args.bias_size * args.bias_step;
  const int64_t count = std::min((kMinTable + period - 1) / period, (args.size + period - 1) / period);
  table.resize(count * period);
  for (int64_t i = 0; i < static_cast<int64_t>(table.size()); ++i) {
    table[i] = load(static_cast<const T*>(args.b)[i / args.bias_step % args.bias_size]);
  }
  return table;
}

// Elements first ≤ i < last.
template <typename T, int act, int grad>
void bias_act_range(const BiasActArgs& args, const std::vector<typename Accumulator<T>::type>& table,
                    int64_t first, int64_t last) {
  using C = typename Accumulator<T>::type;
  const BiasAct<C, act, grad> op(args.alpha, args.gain);
  const T* x = static_cast<const T*>(args.x);
  const T* ref = static_cast<const T*>(args.ref);
  T* y = static_cast<T*>(args.y);
  const int64_t length = table.size();
  for (int64_t i = first, n; i < last; i += n) {
    const T* r = ref == nullptr ? nullptr : ref + i;
    if (args.b == nullptr) {
      n = last - i;
      bias_act_row<T, act, grad, C>(x + i, r, y + i, n, nullptr, C(0), nullptr, op);
    } else if (length > 0) {
      n = std::min(length - i % length, last - i);
      bias_act_row<T, act, grad, C>(x + i, r, y + i, n, table.data() + i % length, C(0), nullptr, op);
    } else {
      n = std::min(args.bias_step - i % args.bias_step, last - i);
      const C bias = load(static_cast<const T*>(args.b)[i / args.bias_step % args.bias_size]);
      bias_act_row<T, act, grad, C>(x + i, r, y + i, n, nullptr, bias, nullptr, op);
    }
  }
}

// First derivative of elements first ≤ i < last, which start a period, and its sums by bias. sums: bias_size
// zeros.
template <typename T, int act>
void bias_act_sums_range(const BiasActArgs& args, int64_t first, int64_t last,
                         typename Accumulator<T>::type* sums) {
  using C = typename Accumulator<T>::type;
  const BiasAct<C, act, 1> op(args.alpha, args.gain);
  const T* x = static_cast<const T*>(args.x);
  const T* ref = static_cast<const T*>(args.ref);
  T* y = static_cast<T*>(args.y);
  const int64_t step = args.bias_step, period = args.bias_size * step;
  // Where a bias has a run of its own, the run is added up in kMinRun columns.
  const bool runs = step >= kMinRun;
  const int64_t length = runs ? kMinRun : std::min((kMinTable + period - 1) / period * period, last - first);
  std::vector<C> partial(length, C(0));
  for (int64_t i = first, n; i < last; i += n) {
    const int64_t in_run = (i - first) % step;
    n = std::min(length, runs ? step - in_run : last - i);
    bias_act_row<T, act, 1, C>(x + i, ref == nullptr ? nullptr : ref + i, y + i, n, nullptr, C(0),
                               partial.data(), op);
    if (runs && in_run + n == step) {
      C sum(0);
      for (C& value : partial) {
        sum += value;
        value = C(0);
      }
      sums[(i - first) / step % args.bias_size] += sum;
    }
  }
  if (!runs) {
    for (int64_t i = 0; i < length; ++i) sums[i / step % args.bias_size] += partial[i];
  }
}

// Calls f<act>() with the activation as a compile-time constant.
template <template <int> class F, typename... Args>
void dispatch_act(int act, Args&&... args) {
  switch (act) {
    case kLinear: return F<kLinear>::run(args...);
    case kRelu: return F<kRelu>::run(args...);
    case kLrelu: return F<kLrelu>::run(args...);
    case kTanh: return F<kTanh>::run(args...);
    case kSigmoid: return F<kSigmoid>::run(args...);
    case kElu: return F<kElu>::run(args...);
    case kSelu: return F<kSelu>::run(args...);
    case kSoftplus: return F<kSoftplus>::run(args...);
    case kSwish: return F<kSwish>::run(args...);
  }
}

// fused_bias_act of one storage type. run_range(first, last) may be called from several threads.
template <typename T>
class FusedBiasAct {
 public:
  FusedBiasAct(const BiasActArgs& args, int act, int grad)
      : args_(args), act_(act), grad_(grad), table_(bias_table<T>(args)) {}

  void run_range(int64_t first, int64_t last) const { dispatch_act<Range>(act_, *this, first, last); }

 private:
  template <int act>
  struct Range {
    static void run(const FusedBiasAct& self, int64_t first, int64_t last) {
      if (self.grad_ == 0) return bias_act_range<T, act, 0>(self.args_, self.table_, first, last);
      if (self.grad_ == 1) return bias_act_range<T, act, 1>(self.args_, self.table_, first, last);
      bias_act_range<T, act, 2>(self.args_, self.table_, first, last);
    }
  };

  const BiasActArgs args_;
  const int act_, grad_;
  const std::vector<typename Accumulator<T>::type> table_;
};

// First derivative with respect to x, and its sums over all elements of a bias. The work is cut in a way that
// does not depend on the number of threads, so that the sums are the same in every run.
template <typename T>
class FusedBiasActSums {
  using C = typename Accumulator<T>::type;

 public:
  FusedBiasActSums(const BiasActArgs& args, int act) : args_(args), act_(act) {
    const int64_t period = args.bias_size * args.bias_step, periods = args.size / period;
    const int64_t least = std::max<int64_t>(kMinPart / period, 1);
    parts_ = std::min<int64_t>(std::max<int64_t>(periods / least, 1), kMaxParts);
    sums_.assign(parts_ * args.bias_size, C(0));
  }

  int64_t parts() const { return parts_; }

  void run_part(int64_t part) {
    const int64_t period = args_.bias_size * args_.bias_step, periods = args_.size / period;
    const int64_t first = periods * part / parts_ * period, last = periods * (part + 1) / parts_ * period;
    dispatch_act<Range>(act_, args_, first, last, sums_.data() + part * args_.bias_size);
  }

  void finish(T* sums) const {
    for (int64_t i = 0; i < args_.bias_size; ++i) {
      C sum(0);
      for (int64_t part = 0; part < parts_; ++part) sum += sums_[part * args_.bias_size + i];
      store(sum, sums + i);
    }
  }

 private:
  static constexpr int64_t kMinPart = 16384, kMaxParts = 64;

  template <int act>
  struct Range {
    static void run(const BiasActArgs& args, int64_t first, int64_t last, C* sums) {
      bias_act_sums_range<T, act>(args, first, last, sums);
    }
  };

  const BiasActArgs args_;
  const int act_;
  int64_t parts_;
  std::vector<C> sums_;
};

}  // namespace stylegan

#endif  // STYLEGAN_FUSED_BIAS_ACT_CPU_H_
