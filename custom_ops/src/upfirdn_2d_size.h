// Sizes of filtered images, and their limits, for the operations.

#ifndef STYLEGAN_UPFIRDN_2D_SIZE_H_
#define STYLEGAN_UPFIRDN_2D_SIZE_H_

#include <cstdint>

#include "tensorflow/core/framework/op_kernel.h"

namespace stylegan {

constexpr int64_t kMaxTaps = 32;                // Of the filter, along each axis.
constexpr int64_t kMaxSize = int64_t{1} << 30;  // Of pads and of images, also upsampled.

// Height or width of the output of upfirdn_2d; up and down are at least 1, pads within ±kMaxSize.
inline tensorflow::Status output_size(int64_t in, int64_t up, int64_t down, int64_t pad0, int64_t pad1,
                                      int64_t taps, int64_t* out) {
  using tensorflow::errors::InvalidArgument;
  if (taps < 1 || taps > kMaxTaps) {
    return InvalidArgument("k must have 1 to ", kMaxTaps, " rows and columns, received ", taps);
  }
  if (in > kMaxSize / up) return InvalidArgument("an image of ", in, " upsampled by ", up, " is too large");
  const int64_t padded = in * up + pad0 + pad1;
  if (padded < taps || padded > kMaxSize) {
    return InvalidArgument("the padded image has ", padded, " rows or columns, but must have at least the ",
                           taps, " of k and at most ", kMaxSize);
  }
  *out = (padded - taps) / down + 1;
  return tensorflow::OkStatus();
}

inline tensorflow::Status check_pad(int64_t pad) {
  if (pad >= -kMaxSize && pad <= kMaxSize) return tensorflow::OkStatus();
  return tensorflow::errors::InvalidArgument("pads must be at most ", kMaxSize, ", received ", pad);
}

// Grown by one dimension at a time: each checks for overflow.
inline tensorflow::Status make_shape(int64_t major, int64_t h, int64_t w, int64_t minor,
                                     tensorflow::TensorShape* shape) {
  for (int64_t size : {major, h, w, minor}) TF_RETURN_IF_ERROR(shape->AddDimWithStatus(size));
  return tensorflow::OkStatus();
}

}  // namespace stylegan

#endif  // STYLEGAN_UPFIRDN_2D_SIZE_H_
