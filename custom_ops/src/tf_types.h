// TensorFlow's 16-bit floats as the CPU kernels see them.

#ifndef STYLEGAN_TF_TYPES_H_
#define STYLEGAN_TF_TYPES_H_

#include "cpu_common.h"
#include "tensorflow/core/framework/numeric_types.h"

namespace stylegan {

template <typename T>
struct Storage {
  using type = T;
};
template <>
struct Storage<Eigen::half> {
  using type = Half;
};
template <>
struct Storage<Eigen::bfloat16> {
  using type = BFloat16;
};

}  // namespace stylegan

#endif  // STYLEGAN_TF_TYPES_H_
