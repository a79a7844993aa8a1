// CUDA kernels that upsample, pad, filter and downsample images. See kernels.h for the meaning.
//
// Output o is the sum over taps i of flipped[i]·u[o·down - pad0 + i], where flipped is the filter, flipped,
// and u the input with up - 1 zeros behind each sample; only every up-th tap meets a sample. Three kernels:
//   pixels:  the common filters (up to 4x4 taps; factors 1, up 2, down 2) where the channels of a pixel are
//            whole 16-byte vectors. A block copies a tile of the input with its margin into shared memory, so
//            that the input is read once from memory, and each thread slides down one column of it.
//   rows:    the same filters for one or few channels (NCHW images are images of one channel).
//   general: everything else; each thread makes one output, or one vector of channels.
// Memory bandwidth is the limit of the first two: blocks copy while others of the multiprocessor compute.

#include <math.h>

#include <type_traits>

#include "kernels.h"

#include "cuda_common.h"
#include "upfirdn_2d_tiles.h"

namespace stylegan {
namespace {

constexpr int64_t kMaxFewChannels = 16;         // For the rows kernel.
constexpr int64_t kMaxImage = int64_t{1} << 30; // Elements, rows and columns where 32-bit indices do.

template <typename T, typename Index>
struct GeneralParams {
  const T* x;
  T* y;
  Index total;                      // Outputs, or vectors of them.
  Index in_h, in_w, minor, out_h, out_w;  // minor in outputs or vectors.
  Divider<Index> by_minor, by_width, by_height, by_upx, by_upy;
  int downx, downy, padx0, pady0, kh, kw;
  int64_t first;                    // Image that this launch starts with.
  bool follows;                     // Whether an epilogue does.
  Epilogue epilogue;
  typename Number<T>::Acc k[STYLEGAN_MAX_TAPS];  // Flipped.
};

// The samples that meet a tap for output o: first ≤ i < last. Sample i meets tap i·up - base.
template <typename Index>
struct Span {
  using Signed = std::conditional_t<sizeof(Index) == 4, int32_t, int64_t>;
  Signed base, first, last;

  __device__ Span(Index o, Index size, const Divider<Index>& by_up, int down, int pad0, int taps) {
    base = Signed(o) * down - pad0;
    first = base <= 0 ? 0 : Signed(by_up.divide(Index(base) + by_up.d - 1));
    last = base + taps <= 0 ? 0 : Signed(by_up.divide(Index(base + taps - 1))) + 1;
    if (last > Signed(size)) last = Signed(size);
  }
};

template <typename T, typename Index, bool kVectors>
__global__ void __launch_bounds__(kThreads) general_kernel(const GeneralParams<T, Index> p) {
  using Items = Pack<T, kVectors>;
  using Acc = typename Items::Acc;
  using Signed = typename Span<Index>::Signed;
  constexpr int kCount = Items::kCount;
  for (Index index = Index(blockIdx.x) * kThreads + threadIdx.x; index < p.total;
       index += Index(gridDim.x) * kThreads) {
    const Index pixel = p.by_minor.divide(index), channel = index - pixel * p.minor;
    const Index row = p.by_width.divide(pixel), image = p.by_height.divide(row);
    const Span<Index> ys(row - image * p.out_h, p.in_h, p.by_upy, p.downy, p.pady0, p.kh);
    const Span<Index> xs(pixel - row * p.out_w, p.in_w, p.by_upx, p.downx, p.padx0, p.kw);
    Acc sum[kCount] = {};
#pragma unroll 1
    for (Signed y = ys.first; y < ys.last; ++y) {
      const Acc* taps = p.k + (y * Signed(p.by_upy.d) - ys.base) * p.kw;
      const Index from = (image * p.in_h + Index(y)) * p.in_w;
#pragma unroll 2
      for (Signed x = xs.first; x < xs.last; ++x) {
        const Acc tap = taps[x * Signed(p.by_upx.d) - xs.base];
        const Index at = (from + Index(x)) * p.minor + channel;
        Acc v[kCount];
        Items::unpack(Items::load(p.x, at), v);
#pragma unroll
        for (int j = 0; j < kCount; ++j) sum[j] += tap * v[j];
      }
    }
    if (p.follows) {
      const int64_t pixels = int64_t(p.out_h) * p.out_w, in_image = pixel - image * pixels;
      const ChannelEpilogue<T, kVectors> follow(p.epilogue, p.first + image, pixels, int(p.minor),
                                                int(channel));
      follow.apply(in_image, follow.load_noise(in_image), sum);
    }
    Items::store(sum, p.y, index);
  }
}

using Args = StyleganUpFirDn2D;

// Elements of the input and of the output of one image.
int64_t input_size(const Args& a) { return a.in_h * a.in_w * a.minor; }
int64_t output_size(const Args& a) { return a.out_h * a.out_w * a.minor; }

// Whether pixels are whole vectors of channels.
template <typename T>
bool has_vectors(const Args& a, const Epilogue* epilogue) {
  return a.minor % Number<T>::kVector == 0 && is_aligned(a.x) && is_aligned(a.y) &&
         (!epilogue || epilogue->has_vectors());
}

// epilogue: NULL = none, also below.
template <typename T, typename Index, bool kVectors>
const char* run_general(const Args& a, int64_t images, const Epilogue* epilogue, void* stream) {
  constexpr int kCount = Pack<T, kVectors>::kCount;
  GeneralParams<T, Index> p;
  p.in_h = Index(a.in_h);
  p.in_w = Index(a.in_w);
  p.out_h = Index(a.out_h);
  p.out_w = Index(a.out_w);
  p.minor = Index(a.minor / kCount);
  p.by_minor = Divider<Index>(p.minor);
  p.by_width = Divider<Index>(p.out_w);
  p.by_height = Divider<Index>(p.out_h);
  p.by_upx = Divider<Index>(a.upx);
  p.by_upy = Divider<Index>(a.upy);
  p.downx = a.downx;
  p.downy = a.downy;
  p.padx0 = a.padx0;
  p.pady0 = a.pady0;
  p.kh = a.kh;
  p.kw = a.kw;
  p.follows = epilogue;
  p.epilogue = epilogue ? *epilogue : Epilogue();
  for (int i = 0; i < STYLEGAN_MAX_TAPS; ++i) p.k[i] = 0;
  for (int i = 0; i < a.kh * a.kw; ++i) p.k[i] = a.k[a.kh * a.kw - 1 - i];
  for (int64_t first = 0; first < a.major; first += images) {
    const int64_t count = a.major - first < images ? a.major - first : images;
    p.first = first;
    p.x = static_cast<const T*>(a.x) + first * input_size(a);
    p.y = static_cast<T*>(a.y) + first * output_size(a);
    p.total = Index(count * output_size(a) / kCount);
    const char* error =
        launch(general_kernel<T, Index, kVectors>, ceil_div(p.total, kThreads), kThreads, 0, stream, p);
    if (error) return error;
  }
  return nullptr;
}

// 32-bit indices, as many images at once as they allow; 64-bit ones where that is less than one.
template <typename T>
const char* run_general(const Args& a, const Epilogue* epilogue, void* stream) {
  const bool vectors = has_vectors<T>(a, epilogue);
  const int64_t larger = input_size(a) > output_size(a) ? input_size(a) : output_size(a);
  const auto small = [](int64_t size, int64_t factor, int64_t pad) {
    return size < kMaxImage / factor && pad < kMaxImage && pad > -kMaxImage;
  };
  const bool fits = larger <= STYLEGAN_CHUNK && small(a.in_h, a.upy, a.pady0) &&
                    small(a.in_w, a.upx, a.padx0) && small(a.out_h, a.downy, 0) && small(a.out_w, a.downx, 0);
  if (fits) {
    const int64_t images = STYLEGAN_CHUNK / larger;
    return vectors ? run_general<T, uint32_t, true>(a, images, epilogue, stream)
                   : run_general<T, uint32_t, false>(a, images, epilogue, stream);
  }
  return vectors ? run_general<T, uint64_t, true>(a, a.major, epilogue, stream)
                 : run_general<T, uint64_t, false>(a, a.major, epilogue, stream);
}

// Taps, and where the first tile starts, for a filter of at most 4x4 taps.
void prepare_taps(const Args& a, bool pixels, TileParams* p) {
  const auto tap = [&](int y, int x, int to) {
    if (y >= a.kh || x >= a.kw) return;
    p->k[to] = float(a.k[(a.kh - 1 - y) * a.kw + a.kw - 1 - x]);
    p->present |= 1u << to;
  };
  p->present = 0;
  for (float& value : p->k) value = 0;
  p->skip_x = p->skip_y = 0;
  p->late = false;
  if (a.upx == 1) {
    for (int y = 0; y < kTaps; ++y) {
      for (int x = 0; x < kTaps; ++x) tap(y, x, y * kTaps + x);
    }
    p->first_x = -a.padx0;
    p->first_y = -a.pady0;
    return;
  }
  // Output 2j + s of a pair depends on samples j + f and j + f + 1, f = floor((s - pad0 + 1) / 2), by taps t
  // and t + 2, t = (s - pad0) mod 2. With an odd pad f is the same for both. Pairs are therefore made to
  // start one output earlier where the pad is even, except along x in `rows`, where they stay aligned.
  p->skip_y = !(a.pady0 & 1);
  p->skip_x = pixels && !(a.padx0 & 1);
  const int padx = a.padx0 + p->skip_x, pady = a.pady0 + p->skip_y;
  p->late = !(padx & 1);
  p->first_x = (1 - padx) >> 1;
  p->first_y = (1 - pady) >> 1;
  for (int output = 0; output < 4; ++output) {
    for (int sample = 0; sample < 4; ++sample) {
      const int y = ((output / 2 - pady) & 1) + sample / 2 * 2;
      const int x = ((output % 2 - padx) & 1) + sample % 2 * 2;
      tap(y, x, output * 4 + sample);
    }
  }
}

// Whether a 4x4 filter is an outer product, up to the rounding of float32; then ky, kx.
bool separate(const Args& a, TileParams* p) {
  if (a.kh != kTaps || a.kw != kTaps) return false;
  int pivot = 0;
  for (int i = 0; i < kTaps * kTaps; ++i) {
    if (fabs(double(p->k[i])) > fabs(double(p->k[pivot]))) pivot = i;
  }
  const double largest = p->k[pivot];
  if (!(fabs(largest) > 0) || isinf(largest)) return false;
  const int y0 = pivot / kTaps, x0 = pivot % kTaps;
  for (int i = 0; i < kTaps; ++i) {
    p->kx[i] = p->k[y0 * kTaps + i];
    p->ky[i] = float(p->k[i * kTaps + x0] / largest);
  }
  for (int i = 0; i < kTaps * kTaps; ++i) {
    const double product = double(p->ky[i / kTaps]) * p->kx[i % kTaps];
    if (!(fabs(product - p->k[i]) <= 3e-7 * fabs(largest))) return false;
  }
  return true;
}

// What the tile kernels need to know; returns whether the filter is separable.
bool prepare(const Args& a, bool pixels, TileParams* p) {
  p->in_h = int(a.in_h);
  p->in_w = int(a.in_w);
  p->out_h = int(a.out_h);
  p->out_w = int(a.out_w);
  prepare_taps(a, pixels, p);
  return a.upx == 1 && separate(a, p);
}

// Whether the tile kernels apply: they index within an image, and count the numbers of a row, by 32 bits.
bool is_common(const Args& a) {
  const bool factors = a.upx == a.upy && a.downx == a.downy && a.upx * a.downx <= 2;
  const int64_t most = (1 << 28) / (a.minor < kMaxFewChannels ? a.minor : kMaxFewChannels);
  const auto small = [&](int64_t size) { return size < most && size > -most; };
  return factors && a.kh <= kTaps && a.kw <= kTaps && input_size(a) < kMaxImage &&
         output_size(a) < kMaxImage && small(a.in_h) && small(a.in_w) && small(a.out_h) && small(a.out_w) &&
         small(a.padx0) && small(a.pady0);
}

template <typename T>
const char* run(const Args& a, const Epilogue* epilogue, void* stream) {
  const bool pixels = has_vectors<T>(a, epilogue);
  if (!is_common(a) || !(pixels || a.minor <= kMaxFewChannels)) return run_general<T>(a, epilogue, stream);
  TileParams p = {};
  const bool separable = prepare(a, pixels, &p);
  if (!epilogue) return pixels ? run_pixels(a, p, separable, stream) : run_rows(a, p, separable, stream);
  if (!pixels || !separable) return run_general<T>(a, epilogue, stream);
  p.epilogue = *epilogue;
  return run_pixels_with_epilogue(a, p, stream);
}

const char* run(const Args& a, const Epilogue* epilogue, void* stream) {
  if (a.kh < 1 || a.kw < 1 || a.kh > STYLEGAN_MAX_TAPS || a.kw > STYLEGAN_MAX_TAPS ||
      a.kh * a.kw > STYLEGAN_MAX_TAPS) {
    return "upfirdn_2d: the filter must have 1 to 256 taps";
  }
  if (a.upx < 1 || a.upy < 1 || a.downx < 1 || a.downy < 1) return "upfirdn_2d: factors must be positive";
  if (a.major < 0 || a.in_h < 0 || a.in_w < 0 || a.minor < 0 || a.out_h < 0 || a.out_w < 0) {
    return "upfirdn_2d: negative size";
  }
  if (a.major == 0 || a.minor == 0 || a.out_h == 0 || a.out_w == 0) return nullptr;
  switch (a.dtype) {
    case STYLEGAN_FLOAT32: return run<float>(a, epilogue, stream);
    case STYLEGAN_FLOAT16: return run<Half>(a, epilogue, stream);
    case STYLEGAN_BFLOAT16: return run<BFloat16>(a, epilogue, stream);
    case STYLEGAN_FLOAT64: return run_general<double>(a, epilogue, stream);
  }
  return "upfirdn_2d: unknown dtype";
}

}  // namespace

const char* upfirdn_2d_with_epilogue(const StyleganUpFirDn2D& args, const Epilogue& epilogue, void* stream) {
  return run(args, &epilogue, stream);
}

}  // namespace stylegan

extern "C" const char* stylegan_upfirdn_2d_gpu(const StyleganUpFirDn2D* args, void* stream) {
  return stylegan::run(*args, nullptr, stream);
}
