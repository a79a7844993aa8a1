// What the CPU kernels share: number formats and how loops are marked for the compiler. No TensorFlow header,
// so that the kernels can be driven alone, under a sanitizer.

#ifndef STYLEGAN_CPU_COMMON_H_
#define STYLEGAN_CPU_COMMON_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

// Put before a loop whose iterations are independent, also where its input and output are the same array.
#if defined(__clang__)
#define STYLEGAN_VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define STYLEGAN_VECTORIZE _Pragma("GCC ivdep")
#else
#define STYLEGAN_VECTORIZE
#endif

namespace stylegan {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// What sums are computed in.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

template <typename To, typename From>
inline To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

inline float load(float value) { return value; }
inline double load(double value) { return value; }

inline float load(BFloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

// Without branches, for vectors, and without arithmetic on float denormals: TensorFlow's threads flush them.
inline float load(Half value) {
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13, exponent = 112u << 23, one = 1u << 23;
  const uint32_t normal = magnitude + exponent + (magnitude >= (31u << 23) ? exponent : 0u);
  const float denormal = bit_cast<float>(magnitude + exponent + one) - bit_cast<float>(exponent + one);
  const uint32_t bits = magnitude < one ? bit_cast<uint32_t>(denormal) : normal;
  return bit_cast<float>(bits | (value.bits & 0x8000u) << 16);
}

inline void store(float value, float* to) { *to = value; }
inline void store(double value, double* to) { *to = value; }

// Rounds to nearest, ties to even.
inline void store(float value, BFloat16* to) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = static_cast<uint16_t>(nan ? (bits >> 16 | 0x40u) : rounded);
}

inline void store(float value, Half* to) {
  const uint32_t bits = bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
  // 0.5 has the spacing of half's denormals in its last place, so that the addition rounds.
  const uint32_t denormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  uint32_t result = magnitude < 0x38800000u ? denormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  to->bits = static_cast<uint16_t>(result | (bits >> 16 & 0x8000u));
}

// Memory whose start a vector load does not straddle.
template <typename T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::align_val_t alignment{64};

  AlignedAllocator() = default;
  template <typename U>
  AlignedAllocator(const AlignedAllocator<U>&) {}

  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), alignment)); }
  void deallocate(T* p, size_t) { ::operator delete(p, alignment); }
  bool operator==(const AlignedAllocator&) const { return true; }
  bool operator!=(const AlignedAllocator&) const { return false; }
};

template <typename T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace stylegan

#endif  // STYLEGAN_CPU_COMMON_H_
