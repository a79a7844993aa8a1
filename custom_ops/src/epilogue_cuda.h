// What follows the filter of StyleganFilterNoiseBiasAct, for the CUDA kernels. See kernels.h for the meaning.

#ifndef STYLEGAN_EPILOGUE_CUDA_H_
#define STYLEGAN_EPILOGUE_CUDA_H_

#include "kernels.h"

#include "cuda_common.h"

namespace stylegan {

// linear, relu or lrelu, times gain.
template <typename Acc>
struct PiecewiseLinear {
  Acc slope, gain, inverse_gain;  // slope: below 0.

  // A slope of 0 makes 0 even of -∞; NaN stays NaN.
  __device__ Acc apply(Acc v) const {
    return (v < Acc(0) ? (slope == Acc(0) ? Acc(0) : v * slope) : v) * gain;
  }

  // At the argument of which r is the result; where all slopes are the same, r may be anything.
  __device__ Acc derivative(Acc r) const { return (r * inverse_gain > Acc(0) ? Acc(1) : slope) * gain; }
};

// The arguments of a kernel; pointers NULL as in kernels.h.
struct Epilogue {
  const void *factor, *noise, *bias, *ref;
  int64_t noise_step;   // Elements from one image's noise to the next one's: 0 if they share it.
  double slope, gain, inverse_gain;
  bool derivative;      // grad = 1

  bool has_vectors() const { return is_aligned(factor) && is_aligned(bias) && is_aligned(ref); }

  template <typename Acc>
  __device__ PiecewiseLinear<Acc> activation() const {
    return {Acc(slope), Acc(gain), Acc(inverse_gain)};
  }
};

// The same for what one thread handles: a vector of channels, or one channel, of one image.
template <typename T, bool kVectors>
class ChannelEpilogue {
 public:
  using Items = Pack<T, kVectors>;
  using Acc = typename Items::Acc;
  using Raw = typename Items::Raw;

  // item: which of the `items` vectors or channels of a pixel.
  __device__ ChannelEpilogue(const Epilogue& e, int64_t image, int64_t pixels, int items, int item)
      : act_(e.activation<Acc>()),
        noise_(e.noise ? static_cast<const T*>(e.noise) + image * e.noise_step : nullptr),
        ref_(e.ref ? static_cast<const T*>(e.ref) + image * pixels * items * Items::kCount : nullptr),
        items_(items),
        item_(item),
        has_factor_(e.factor),
        has_bias_(e.bias),
        derivative_(e.derivative) {
    if (has_factor_) factor_ = Items::load(static_cast<const T*>(e.factor), image * items + item);
    if (has_bias_) bias_ = Items::load(static_cast<const T*>(e.bias), item);
  }

  // Of a pixel of the image, to be loaded before it is needed; as it is stored, since to convert it is to wait
  // for it. ref is not: it would take registers that only second derivatives have a use for.
  __device__ T load_noise(int64_t pixel) const { return noise_ ? noise_[pixel] : T(); }

  __device__ void apply(int64_t pixel, T noise, Acc (&v)[Items::kCount]) const {
    const Acc shared = to_acc(noise);
    Acc numbers[Items::kCount];
    if (has_factor_) {
      Items::unpack(factor_, numbers);
#pragma unroll
      for (int j = 0; j < Items::kCount; ++j) v[j] *= numbers[j];
    }
#pragma unroll
    for (int j = 0; j < Items::kCount; ++j) numbers[j] = Acc(0);
    if (has_bias_) Items::unpack(bias_, numbers);
#pragma unroll
    for (int j = 0; j < Items::kCount; ++j) v[j] += shared + numbers[j];
    if (!derivative_) {
#pragma unroll
      for (int j = 0; j < Items::kCount; ++j) v[j] = act_.apply(v[j]);
      return;
    }
#pragma unroll
    for (int j = 0; j < Items::kCount; ++j) numbers[j] = Acc(0);
    if (ref_) Items::unpack(Items::load(ref_, pixel * items_ + item_), numbers);
#pragma unroll
    for (int j = 0; j < Items::kCount; ++j) v[j] *= act_.derivative(numbers[j]);
  }

 private:
  const PiecewiseLinear<Acc> act_;
  const T* const noise_;
  const T* const ref_;
  const int items_, item_;
  const bool has_factor_, has_bias_, derivative_;
  Raw factor_, bias_;
};

// upfirdn_2d and what follows, in one pass; returns what a launcher does.
const char* upfirdn_2d_with_epilogue(const StyleganUpFirDn2D& args, const Epilogue& epilogue, void* stream);

}  // namespace stylegan

#endif  // STYLEGAN_EPILOGUE_CUDA_H_
