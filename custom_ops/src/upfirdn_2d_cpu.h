// CPU kernels of pad, upsample, FIR filter, downsample. See upfirdn_2d_op.cc for the meaning.
//
// The output is made in tiles of one row. For each, the input rows that the filter covers are combined into one
// row of sums, which stays in the first-level cache; that row is filtered horizontally, and an epilogue takes
// the finished tile. A filter that is not separable takes one such round per row of the filter.

#ifndef STYLEGAN_UPFIRDN_2D_CPU_H_
#define STYLEGAN_UPFIRDN_2D_CPU_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu_common.h"

namespace stylegan {

struct UpFirDnArgs {
  const void* x;    // [major, in_h, in_w, minor]
  const double* k;  // [kh, kw]
  void* y;          // [major, out_h, out_w, minor]
  int64_t major, in_h, in_w, minor, out_h, out_w;
  int64_t kh, kw, upx, upy, downx, downy, padx0, pady0;
};

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
inline int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

// Which taps of one axis meet which input samples. Output o reads input first(o) + t with tap
// phase(o) + t·up, t < count(phase(o)), of the flipped filter; the other taps meet inserted zeros.
struct Axis {
  int64_t up, down, pad, taps;

  int64_t first(int64_t o) const { return ceil_div(o * down - pad, up); }
  int64_t end(int64_t o) const { return floor_div(o * down - pad + taps - 1, up) + 1; }
  int64_t phase(int64_t o) const { return first(o) * up - (o * down - pad); }
};

// y[i] (+)= Σ_t c[t]·x[t][i] with a number of terms that the compiler knows.
template <int N, bool add, typename C, typename T>
void weighted_sum(const T* const* x, const C* c, C* __restrict y, int64_t n) {
  const T* __restrict x0 = x[0];
  const T* __restrict x1 = N > 1 ? x[1] : nullptr;
  const T* __restrict x2 = N > 2 ? x[2] : nullptr;
  const T* __restrict x3 = N > 3 ? x[3] : nullptr;
  const C c0 = c[0], c1 = N > 1 ? c[1] : C(0), c2 = N > 2 ? c[2] : C(0), c3 = N > 3 ? c[3] : C(0);
  STYLEGAN_VECTORIZE
  for (int64_t i = 0; i < n; ++i) {
    C sum = c0 * load(x0[i]);
    if (N > 1) sum += c1 * load(x1[i]);
    if (N > 2) sum += c2 * load(x2[i]);
    if (N > 3) sum += c3 * load(x3[i]);
    y[i] = add ? y[i] + sum : sum;
  }
}

template <bool add, typename C, typename T>
void weighted_sum_4(const T* const* x, const C* c, int64_t count, C* y, int64_t n) {
  switch (count) {
    case 1: return weighted_sum<1, add>(x, c, y, n);
    case 2: return weighted_sum<2, add>(x, c, y, n);
    case 3: return weighted_sum<3, add>(x, c, y, n);
    default: return weighted_sum<4, add>(x, c, y, n);
  }
}

// The same for any number of terms; none gives 0.
template <typename C, typename T>
void weighted_sum(const T* const* x, const C* c, int64_t count, bool add, C* y, int64_t n) {
  if (count == 0) {
    if (!add) std::fill_n(y, n, C(0));
    return;
  }
  for (int64_t t = 0; t < count; t += 4, add = true) {
    if (add) {
      weighted_sum_4<true>(x + t, c + t, count - t, y, n);
    } else {
      weighted_sum_4<false>(x + t, c + t, count - t, y, n);
    }
  }
}

// Keeps the finished elements as they are. An epilogue gets the sums of a tile in `row` and writes n elements
// to `out`, which may be the same address: row = major index, oy; pixels ox up to ox + n / minor.
template <typename T>
struct StoreEpilogue {
  void operator()(T* out, const typename Accumulator<T>::type* row, int64_t n, int64_t /*major*/, int64_t /*oy*/,
                  int64_t /*ox*/) const {
    if (static_cast<const void*>(out) == static_cast<const void*>(row)) return;
    STYLEGAN_VECTORIZE
    for (int64_t i = 0; i < n; ++i) store(row[i], out + i);
  }
};

// upfirdn_2d of one storage type. run(first, last) computes output rows first ≤ major·out_h + oy < last, and
// may be called from several threads.
template <typename T, typename Epilogue = StoreEpilogue<T>>
class UpFirDn2D {
 public:
  using C = typename Accumulator<T>::type;

  explicit UpFirDn2D(const UpFirDnArgs& args, const Epilogue& epilogue = Epilogue())
      : a_(args),
        x_axis_{args.upx, args.downx, args.padx0, args.kw},
        y_axis_{args.upy, args.downy, args.pady0, args.kh},
        epilogue_(epilogue) {
    split_filter();
    tile_ = std::max(kMinTilePixels, kTileElements / a_.minor);
    tile_ = std::min(tile_, a_.out_w);
  }

  // Multiplications and additions of one output row, about.
  int64_t row_cost() const {
    const int64_t rounds = separable_ ? 1 : y_axis_.end(0) - y_axis_.first(0) + 1;
    const int64_t taps = a_.kh / a_.upy + (a_.kw / a_.upx + 1) * rounds + 2;
    return a_.out_w * a_.minor * taps / 8 + 100;
  }

  void run(int64_t first, int64_t last) const {
    Scratch s(*this);
    for (int64_t row = first; row < last; ++row) {
      for (int64_t ox = 0; ox < a_.out_w; ox += tile_) {
        make_tile(row / a_.out_h, row % a_.out_h, ox, std::min(ox + tile_, a_.out_w), &s);
      }
    }
  }

 private:
  // A tile has this many elements, but at least so many pixels: its ends are read twice.
  static constexpr int64_t kTileElements = 8192, kMinTilePixels = 32;
  // With fewer channels, loops over the channels of a pixel do not fill a vector.
  static constexpr int64_t kFewChannels = 8;

  // Moving a pixel as a vector writes up to so many elements behind it.
  static constexpr int64_t kMoveSlack = 4;

  struct Scratch {
    AlignedVector<C> source, full, sums;  // Zero-padded input of the horizontal filter; see below; the tile.
    std::vector<const T*> rows;
    std::vector<const C*> shifted;
    std::vector<C> weights;

    explicit Scratch(const UpFirDn2D& f) {
      const int64_t minor = f.a_.minor, pixels = (f.tile_ - 1) * f.a_.downx + f.a_.kw;
      source.resize((f.few_channels() ? pixels : pixels / f.a_.upx + 2) * minor + kMoveSlack);
      full.resize(f.few_channels() ? pixels * minor + kMoveSlack : 0);
      sums.resize(std::is_same<T, C>::value ? 0 : f.tile_ * minor);
      rows.resize(f.a_.kh);
      weights.resize(f.a_.kh);
      shifted.resize(f.a_.kw);
    }
  };

  // Finds column ⊗ row = k where that exists, and flips: tap i then meets row oy·downy + i of the padded image.
  void split_filter() {
    const int64_t kh = a_.kh, kw = a_.kw;
    int64_t pivot = 0;
    for (int64_t i = 0; i < kh * kw; ++i) {
      if (std::abs(a_.k[i]) > std::abs(a_.k[pivot])) pivot = i;
    }
    const double peak = a_.k[pivot];
    const double tolerance = 4 * std::numeric_limits<C>::epsilon() * std::abs(peak);
    separable_ = peak != 0;
    for (int64_t i = 0; i < kh * kw && separable_; ++i) {
      const double product = a_.k[i / kw * kw + pivot % kw] * (a_.k[pivot / kw * kw + i % kw] / peak);
      separable_ = std::abs(a_.k[i] - product) <= tolerance;
    }
    const int64_t rounds = separable_ ? 1 : kh;
    column_.assign(kh, C(1));
    for (int64_t i = 0; i < kh && separable_; ++i) {
      column_[i] = C(a_.k[(kh - 1 - i) * kw + pivot % kw]);
    }
    for (int64_t i = 0; i < rounds; ++i) {
      const double* from = a_.k + (separable_ ? pivot / kw : kh - 1 - i) * kw;
      for (int64_t j = 0; j < kw; ++j) row_.push_back(C(from[kw - 1 - j] / (separable_ ? peak : 1.0)));
    }
    // The taps of row_ by phase, those of a phase side by side.
    for (int64_t i = 0; i < rounds; ++i) {
      for (int64_t phase = 0; phase < a_.upx; ++phase) {
        phase_start_.push_back(phase_taps_.size());
        for (int64_t j = phase; j < kw; j += a_.upx) phase_taps_.push_back(row_[i * kw + j]);
      }
    }
  }

  // Output pixels ox0 ≤ ox < ox1 of one row.
  void make_tile(int64_t major, int64_t oy, int64_t ox0, int64_t ox1, Scratch* s) const {
    const int64_t minor = a_.minor, n = (ox1 - ox0) * minor;
    T* out = static_cast<T*>(a_.y) + ((major * a_.out_h + oy) * a_.out_w + ox0) * minor;
    C* sums = sums_of(out, s);
    const int64_t first = y_axis_.first(oy), phase = y_axis_.phase(oy);
    const int64_t begin = std::max<int64_t>(first, 0), end = std::min(y_axis_.end(oy), a_.in_h);
    const T* x = static_cast<const T*>(a_.x) + major * a_.in_h * a_.in_w * minor;
    int64_t count = 0;
    for (int64_t iy = begin; iy < end; ++iy, ++count) {
      s->rows[count] = x + iy * a_.in_w * minor;
      s->weights[count] = column_[phase + (iy - first) * a_.upy];
    }
    if (count == 0) {
      std::fill_n(sums, n, C(0));
    } else if (separable_) {
      prefetch(x, end, ox0, n);
      combine_rows(count, 0, ox0, ox1, s);
      filter_row(0, false, ox0, ox1, sums, s);
    } else {
      for (int64_t t = 0; t < count; ++t) {
        combine_rows(1, t, ox0, ox1, s);
        filter_row(phase + (begin - first + t) * a_.upy, t > 0, ox0, ox1, sums, s);
      }
    }
    epilogue_(out, sums, n, major, oy, ox0);
  }

  // Where T is what sums are computed in, they are made in place.
  template <typename U = T>
  static std::enable_if_t<std::is_same<U, C>::value, C*> sums_of(T* out, Scratch*) {
    return out;
  }
  template <typename U = T>
  static std::enable_if_t<!std::is_same<U, C>::value, C*> sums_of(T*, Scratch* s) {
    return s->sums.data();
  }

  // Asks for the part of input row iy that the tile below this one reads, and this one does not. The
  // processor foresees only rows that are so short that a tile is a whole row.
  void prefetch(const T* x, int64_t iy, int64_t ox0, int64_t n) const {
#if defined(__GNUC__)
    if (tile_ == a_.out_w || iy >= a_.in_h || a_.upx > 1 || a_.downx > 1) return;
    const int64_t first = std::max<int64_t>(x_axis_.first(ox0), 0) * a_.minor;
    const T* row = x + iy * a_.in_w * a_.minor;
    const int64_t last = std::min(first + n, a_.in_w * a_.minor);
    for (int64_t i = first; i < last; i += 64 / sizeof(T)) __builtin_prefetch(row + i, 0, 2);
#endif
  }

  bool few_channels() const { return a_.minor < kFewChannels; }

  // s->source = weighted sum of `count` of the rows from number `from` on, at the pixels that the tile reads,
  // with the zeros around the image, and for few channels also those that upsampling inserts.
  void combine_rows(int64_t count, int64_t from, int64_t ox0, int64_t ox1, Scratch* s) const {
    const int64_t minor = a_.minor, first = x_axis_.first(ox0), end = x_axis_.end(ox1 - 1);
    const int64_t begin = std::max<int64_t>(first, 0), stop = std::min(end, a_.in_w);
    const bool insert = few_channels() && a_.upx > 1;
    const int64_t length = insert ? (ox1 - 1 - ox0) * a_.downx + a_.kw : std::max<int64_t>(end - first, 0);
    C* source = s->source.data();
    if (begin >= stop) {
      std::fill_n(source, length * minor, C(0));
      return;
    }
    for (int64_t t = from; t < from + count; ++t) s->rows[t] += begin * minor;
    C* sums = insert ? s->full.data() : source + (begin - first) * minor;
    weighted_sum<C, T>(s->rows.data() + from, s->weights.data() + from, count, false, sums,
                       (stop - begin) * minor);
    for (int64_t t = from; t < from + count; ++t) s->rows[t] -= begin * minor;
    if (insert) {
      std::fill_n(source, length * minor, C(0));
      move_pixels(stop - begin, sums, 1, source + (x_axis_.phase(ox0) + (begin - first) * a_.upx) * minor,
                  a_.upx, false);
    } else {
      std::fill_n(source, (begin - first) * minor, C(0));
      std::fill_n(source + (stop - first) * minor, (end - stop) * minor, C(0));
    }
  }

  // sums (+)= s->source, filtered by row number `round` of the filter.
  void filter_row(int64_t round, bool add, int64_t ox0, int64_t ox1, C* sums, Scratch* s) const {
    const int64_t minor = a_.minor;
    const C* source = s->source.data();
    if (few_channels() || (a_.upx == 1 && a_.downx == 1)) {
      const int64_t pixels = (ox1 - 1 - ox0) * a_.downx + 1;
      for (int64_t j = 0; j < a_.kw; ++j) s->shifted[j] = source + j * minor;
      const C* taps = row_.data() + round * a_.kw;
      if (a_.downx == 1) return weighted_sum<C, C>(s->shifted.data(), taps, a_.kw, add, sums, pixels * minor);
      C* full = s->full.data();
      weighted_sum<C, C>(s->shifted.data(), taps, a_.kw, false, full, pixels * minor);
      return move_pixels(ox1 - ox0, full, a_.downx, sums, 1, add);
    }
    int64_t phase = x_axis_.phase(ox0);
    for (int64_t ox = ox0; ox < ox1; ++ox, sums += minor) {
      const int64_t count = (a_.kw - phase + a_.upx - 1) / a_.upx;
      for (int64_t t = 0; t < count; ++t) s->shifted[t] = source + t * minor;
      const C* taps = phase_taps_.data() + phase_start_[round * a_.upx + phase];
      weighted_sum<C, C>(s->shifted.data(), taps, count, add, sums, minor);
      for (phase -= a_.downx; phase < 0; phase += a_.upx) source += minor;
    }
  }

  // to[i·to_step] (+)= from[i·from_step], in pixels.
  void move_pixels(int64_t n, const C* from, int64_t from_step, C* to, int64_t to_step, bool add) const {
    const int64_t minor = a_.minor;
    if (minor == 1 && !add) {
      for (int64_t i = 0; i < n; ++i) to[i * to_step] = from[i * from_step];
    } else if (minor == 3 && !add) {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t c = 0; c < 3; ++c) to[i * to_step * 3 + c] = from[i * from_step * 3 + c];
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t c = 0; c < minor; ++c) {
          C& target = to[i * to_step * minor + c];
          target = add ? target + from[i * from_step * minor + c] : from[i * from_step * minor + c];
        }
      }
    }
  }

  const UpFirDnArgs a_;
  const Axis x_axis_, y_axis_;
  const Epilogue epilogue_;
  bool separable_;
  int64_t tile_;
  std::vector<C> column_;          // Taps along y, 1 where the filter is not separable.
  std::vector<C> row_;             // Taps along x; of each row of a filter that is not separable.
  std::vector<C> phase_taps_;      // The same, by phase.
  std::vector<int64_t> phase_start_;  // Where the taps of [round, phase] start.
};

}  // namespace stylegan

#endif  // STYLEGAN_UPFIRDN_2D_CPU_H_
