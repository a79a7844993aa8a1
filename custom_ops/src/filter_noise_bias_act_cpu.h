// CPU kernels of everything that follows a modulated convolution, in one pass over memory, and of its gradient.
// See filter_noise_bias_act_op.cc for the meaning.

#ifndef STYLEGAN_FILTER_NOISE_BIAS_ACT_CPU_H_
#define STYLEGAN_FILTER_NOISE_BIAS_ACT_CPU_H_

#include <algorithm>
#include <cstdint>

#include "cpu_common.h"
#include "fused_bias_act_cpu.h"
#include "upfirdn_2d_cpu.h"

namespace stylegan {

// What the kernels share: images [major, h, w, minor], and what belongs to their channels and pixels.
struct EpilogueArgs {
  const void* ref;     // [major, h, w, minor]: the output, where the derivative is taken. NULL = none.
  const void* factor;  // [major, minor]. NULL = 1.
  const void* noise;   // [noise_major, h, w]. NULL = 0.
  const void* bias;    // [minor]. NULL = 0.
  int64_t major, noise_major, h, w, minor;
  int act, grad;       // act: linear, relu or lrelu.
  double alpha, gain;
};

// Numbers of type T as those that sums are computed in; `value` where there are none.
template <typename T>
AlignedVector<typename Accumulator<T>::type> to_table(const void* from, int64_t n, double value) {
  AlignedVector<typename Accumulator<T>::type> table(n, value);
  for (int64_t i = 0; from != nullptr && i < n; ++i) table[i] = load(static_cast<const T*>(from)[i]);
  return table;
}

// (x·factor + noise + bias) through the activation, or times its derivative. As the epilogue of a filter, x is
// what the filter makes; run(x, y, first, last) works on rows first ≤ major·h + y < last without one.
template <typename T>
class NoiseBiasAct {
 public:
  using C = typename Accumulator<T>::type;

  explicit NoiseBiasAct(const EpilogueArgs& args)
      : a_(args),
        factor_(to_table<T>(args.factor, (args.factor ? args.major : 1) * args.minor, 1)),
        bias_(to_table<T>(args.bias, args.minor, 0)) {}

  void run(const T* x, T* y, int64_t first, int64_t last) const {
    const int64_t n = a_.w * a_.minor;
    for (int64_t row = first; row < last; ++row) {
      apply(y + row * n, x + row * n, n, row / a_.h, row % a_.h, 0);
    }
  }

  void operator()(T* out, const C* row, int64_t n, int64_t major, int64_t oy, int64_t ox) const {
    apply(out, row, n, major, oy, ox);
  }

 private:
  template <typename In>
  void apply(T* out, const In* x, int64_t n, int64_t major, int64_t oy, int64_t ox) const {
    if (a_.grad == 0) {
      switch (a_.act) {
        case kLinear: return pixels<kLinear, 0>(out, x, n, major, oy, ox);
        case kRelu: return pixels<kRelu, 0>(out, x, n, major, oy, ox);
        default: return pixels<kLrelu, 0>(out, x, n, major, oy, ox);
      }
    }
    switch (a_.act) {
      case kLinear: return pixels<kLinear, 1>(out, x, n, major, oy, ox);
      case kRelu: return pixels<kRelu, 1>(out, x, n, major, oy, ox);
      default: return pixels<kLrelu, 1>(out, x, n, major, oy, ox);
    }
  }

  template <int act, int grad, typename In>
  void pixels(T* out, const In* x, int64_t n, int64_t major, int64_t oy, int64_t ox) const {
    const BiasAct<C, act, grad> op(a_.alpha, a_.gain);
    const int64_t minor = a_.minor, row = major * a_.h + oy;
    const C* factor = factor_.data() + (a_.factor ? major * minor : 0);
    const C* bias = bias_.data();
    const T* noise = static_cast<const T*>(a_.noise);
    if (noise != nullptr) noise += ((a_.noise_major == 1 ? oy : row)) * a_.w + ox;
    const bool reads_ref = grad > 0 && act != kLinear;
    const T* ref = reads_ref ? static_cast<const T*>(a_.ref) + (row * a_.w + ox) * minor : nullptr;
    for (int64_t i = 0; i < n; i += minor) {
      const C shift = noise != nullptr ? C(load(*noise++)) : C(0);
      STYLEGAN_VECTORIZE
      for (int64_t c = 0; c < minor; ++c) {
        const C v = load(x[i + c]) * factor[c] + (shift + bias[c]);
        store(op(v, reads_ref ? load(ref[i + c]) : C(0)), out + i + c);
      }
    }
  }

  const EpilogueArgs a_;
  const AlignedVector<C> factor_, bias_;
};

// Sums by channel of rows of images: each row has its own, so that they are the same in every run, whatever
// thread makes them.
template <typename T>
class RowSums {
 public:
  using C = typename Accumulator<T>::type;

  RowSums(int64_t rows, int64_t minor) : minor_(minor), sums_(rows * minor) {}

  C* row(int64_t i) { return sums_.data() + i * minor_; }

  // to[group, c] = sums over the rows of each of `groups` groups.
  void finish(int64_t groups, T* to) const {
    const int64_t rows = groups > 0 ? static_cast<int64_t>(sums_.size()) / minor_ / groups : 0;
    std::vector<double> total(minor_);
    for (int64_t group = 0; group < groups; ++group) {
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t i = group * rows; i < (group + 1) * rows; ++i) {
        for (int64_t c = 0; c < minor_; ++c) total[c] += sums_[i * minor_ + c];
      }
      for (int64_t c = 0; c < minor_; ++c) store(C(total[c]), to + group * minor_ + c);
    }
  }

 private:
  const int64_t minor_;
  AlignedVector<C> sums_;
};

// g = v·act'·gain; dx = g·factor and sums of g by channel, of g by pixel, of g·x by sample and channel. args:
// noise and bias are not looked at. run(first, last) works on rows first ≤ major·h + y < last.
template <typename T>
class NoiseBiasActGrad {
 public:
  using C = typename Accumulator<T>::type;

  // x: NULL = no factor, no sums of g·x. pixel_sums: [major, h, w] or NULL.
  NoiseBiasActGrad(const EpilogueArgs& args, const T* v, const T* x, T* dx, T* pixel_sums)
      : a_(args),
        v_(v),
        x_(x),
        dx_(dx),
        pixel_sums_(pixel_sums),
        factor_(to_table<T>(args.factor, x ? args.major * args.minor : 0, 1)),
        sums_(args.major * args.h, args.minor),
        products_(x ? args.major * args.h : 0, args.minor) {}

  void run(int64_t first, int64_t last) {
    switch (a_.act) {
      case kLinear: return rows<kLinear>(first, last);
      case kRelu: return rows<kRelu>(first, last);
      default: return rows<kLrelu>(first, last);
    }
  }

  // db: [minor], dfactor: [major, minor] or NULL.
  void finish(T* db, T* dfactor) const {
    sums_.finish(1, db);
    if (dfactor != nullptr) products_.finish(a_.major, dfactor);
  }

 private:
  static constexpr int64_t kLanes = 16;

  template <int act>
  void rows(int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      if (x_ != nullptr) {
        pixel_sums_ ? pixels<act, true, true>(row) : pixels<act, true, false>(row);
      } else {
        pixel_sums_ ? pixels<act, false, true>(row) : pixels<act, false, false>(row);
      }
    }
  }

  template <int act, bool has_factor, bool by_pixel>
  void pixels(int64_t row) {
    const BiasAct<C, act, 1> op(a_.alpha, a_.gain);
    const int64_t minor = a_.minor, blocks = by_pixel ? minor / kLanes * kLanes : 0;
    const C* factor = has_factor ? factor_.data() + row / a_.h * minor : nullptr;
    C* sums = sums_.row(row);
    C* products = has_factor ? products_.row(row) : nullptr;
    const T* ref = act == kLinear ? nullptr : static_cast<const T*>(a_.ref);
    const auto element = [&](int64_t i, int64_t c) {
      const C g = op(load(v_[i + c]), act == kLinear ? C(0) : load(ref[i + c]));
      sums[c] += g;
      if (has_factor) products[c] += g * load(x_[i + c]);
      store(has_factor ? g * factor[c] : g, dx_ + i + c);
      return g;
    };
    for (int64_t pixel = row * a_.w; pixel < (row + 1) * a_.w; ++pixel) {
      const int64_t i = pixel * minor;
      C lanes[kLanes] = {};
      for (int64_t c = 0; c < blocks; c += kLanes) {
        STYLEGAN_VECTORIZE
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += element(i, c + lane);
      }
      if (!by_pixel) {
        STYLEGAN_VECTORIZE
        for (int64_t c = 0; c < minor; ++c) element(i, c);
        continue;
      }
      C sum(0);
      for (int64_t c = blocks; c < minor; ++c) sum += element(i, c);
      for (int64_t half = kLanes / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
      }
      store(sum + lanes[0], pixel_sums_ + pixel);
    }
  }

  const EpilogueArgs a_;
  const T* const v_;
  const T* const x_;
  T* const dx_;
  T* const pixel_sums_;
  const AlignedVector<C> factor_;
  RowSums<T> sums_, products_;
};

// Epilogue of the transposed filter, which makes h: dx = h·factor, and sums of h·x by sample and channel.
template <typename T>
class FactorGrad {
 public:
  using C = typename Accumulator<T>::type;

  // args: only sizes, those of x, and factor are looked at.
  FactorGrad(const EpilogueArgs& args, const T* x, RowSums<T>* products)
      : a_(args), x_(x), factor_(to_table<T>(args.factor, args.major * args.minor, 1)), products_(products) {}

  void operator()(T* out, const C* h, int64_t n, int64_t major, int64_t oy, int64_t ox) const {
    const int64_t minor = a_.minor, row = major * a_.h + oy;
    const C* factor = factor_.data() + major * minor;
    const T* x = x_ + (row * a_.w + ox) * minor;
    C* products = products_->row(row);
    for (int64_t i = 0; i < n; i += minor) {
      STYLEGAN_VECTORIZE
      for (int64_t c = 0; c < minor; ++c) {
        const C value = h[i + c];
        products[c] += value * load(x[i + c]);
        store(value * factor[c], out + i + c);
      }
    }
  }

 private:
  const EpilogueArgs a_;
  const T* const x_;
  const AlignedVector<C> factor_;
  RowSums<T>* const products_;
};

}  // namespace stylegan

#endif  // STYLEGAN_FILTER_NOISE_BIAS_ACT_CPU_H_
