// CUDA kernels of what follows a modulated convolution, and of its gradient. See kernels.h for the meaning.
//
// Memory bandwidth is the limit. A block works on tiles: some pixels of one image, and as many channels as
// fit side by side, so that a thread keeps its channels and their factors, biases and sums in registers. Sums
// over channels are made by shuffles; those over pixels by tile, into the workspace, then over the tiles.

#include "kernels.h"

#include "cuda_common.h"
#include "epilogue_cuda.h"

namespace stylegan {
namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr int kUnroll = 2;          // Pixels of which a thread loads everything before it uses it.
constexpr int kPixelsPerThread = 8;         // Without sums.
constexpr int kMinPixelsPerThread = 16, kMaxPixelsPerThread = 512;  // With sums: fewer tiles, fewer sums.
constexpr int64_t kManyTiles = STYLEGAN_MANY_TILES;
constexpr int kSumColumns = 32, kSumRows = 16;  // Threads of a block that adds up the workspace.
constexpr int kLinear = 1, kRelu = 2, kLrelu = 3;

int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Images [images, pixels, items] cut into tiles; items: vectors of channels, or channels.
struct Tiling {
  int64_t first, pixels;              // First image of the launch, pixels of an image.
  unsigned tiles;                     // Of the launch.
  Divider<uint32_t> by_chunks, by_tiles;  // Groups of channels, tiles of an image.
  int items, log_lanes, per_tile;     // Lanes: threads side by side; per_tile: pixels, at most.

  Tiling() = default;
  Tiling(int64_t pixels, int64_t items, int64_t per_thread)
      : first(0), pixels(pixels), items(int(items)) {
    log_lanes = int(min_of(log2_ceil(items), log2_ceil(kThreads)));
    per_tile = int(per_thread * rows());
    by_chunks = Divider<uint32_t>(ceil_div(items, 1 << log_lanes));
    by_tiles = Divider<uint32_t>(max_of(ceil_div(pixels, per_tile), 1));
  }

  __host__ __device__ int lanes() const { return 1 << log_lanes; }
  __host__ __device__ int rows() const { return kThreads >> log_lanes; }
};

struct Tile {
  int64_t image, first;  // First pixel in the image.
  int64_t number;        // Of the tile, whatever its channels.
  int chunk, count;      // count: of pixels.

  __device__ Tile(unsigned index, const Tiling& t) {
    const unsigned rest = t.by_chunks.divide(index);
    chunk = int(index - rest * t.by_chunks.d);
    const unsigned in_launch = t.by_tiles.divide(rest), in_image = rest - in_launch * t.by_tiles.d;
    image = t.first + in_launch;
    number = image * t.by_tiles.d + in_image;
    first = int64_t(in_image) * t.per_tile;
    const int64_t left = t.pixels - first;
    count = int(left < t.per_tile ? left : t.per_tile);
  }
};

// Starts kernel(params) for all images, in launches of fewer than 2^31 tiles.
template <typename Params>
const char* launch_tiles(void (*kernel)(Params), Params params, int64_t images, int shared_bytes,
                         void* stream) {
  const int64_t tiles = int64_t(params.tiling.by_chunks.d) * params.tiling.by_tiles.d;
  const int64_t most = max_of(STYLEGAN_TILES / tiles, 1);
  for (int64_t first = 0; first < images; first += most) {
    params.tiling.first = first;
    params.tiling.tiles = unsigned(min_of(images - first, most) * tiles);
    const char* error = launch(kernel, params.tiling.tiles, kThreads, shared_bytes, stream, params);
    if (error) return error;
  }
  return nullptr;
}

struct ForwardParams {
  Tiling tiling;
  Epilogue epilogue;
  const void* x;
  void* y;
};

template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 4 : 3) forward_kernel(const ForwardParams p) {
  using Items = Pack<T, kVectors>;
  using Acc = typename Items::Acc;
  const Tiling& t = p.tiling;
  const int lane = threadIdx.x & (t.lanes() - 1), row = threadIdx.x >> t.log_lanes;
  for (unsigned index = blockIdx.x; index < t.tiles; index += gridDim.x) {
    const Tile tile(index, t);
    const int item = (tile.chunk << t.log_lanes) + lane;
    if (item >= t.items) continue;
    const ChannelEpilogue<T, kVectors> epilogue(p.epilogue, tile.image, t.pixels, t.items, item);
    const int64_t image = tile.image * t.pixels * t.items + item;
    for (int first = row; first < tile.count; first += t.rows() * kUnroll) {
      typename Items::Raw x[kUnroll];
      T noise[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int i = first + u * t.rows();
        if (i >= tile.count) break;
        x[u] = Items::load(static_cast<const T*>(p.x), image + (tile.first + i) * t.items);
        noise[u] = epilogue.load_noise(tile.first + i);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int i = first + u * t.rows();
        if (i >= tile.count) break;
        Acc v[Items::kCount];
        Items::unpack(x[u], v);
        epilogue.apply(tile.first + i, noise[u], v);
        Items::store(v, static_cast<T*>(p.y), image + (tile.first + i) * t.items);
      }
    }
  }
}

struct GradParams {
  Tiling tiling;
  const void *v, *x, *factor, *ref;
  void *dx, *dnoise;
  void *bias_sums, *factor_sums, *noise_sums;  // In the workspace: [tile, channel] twice, [chunk, pixel].
  int64_t all_pixels;                          // Of all images.
  double slope, gain, inverse_gain;
};

// The sum over `lanes` threads side by side, up to the 32 of a warp; all threads have to take part.
template <typename Acc>
__device__ inline Acc sum_lanes(Acc value, int lanes) {
  for (int mask = (lanes < kWarp ? lanes : kWarp) / 2; mask > 0; mask /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, mask);
  }
  return value;
}

template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads, 3) grad_kernel(const GradParams p) {
  STYLEGAN_SHARED_MEMORY(shared);
  using Items = Pack<T, kVectors>;
  using Acc = typename Items::Acc;
  constexpr int kCount = Items::kCount;
  Acc* const buffer = reinterpret_cast<Acc*>(shared);
  const PiecewiseLinear<Acc> act = {Acc(p.slope), Acc(p.gain), Acc(p.inverse_gain)};
  const Tiling& t = p.tiling;
  const int lanes = t.lanes(), rows = t.rows(), warps = lanes / kWarp;  // warps: that share a pixel.
  const int lane = threadIdx.x & (lanes - 1), row = threadIdx.x >> t.log_lanes;
  const bool sums_noise = p.dnoise || p.noise_sums;

  for (unsigned index = blockIdx.x; index < t.tiles; index += gridDim.x) {
    const Tile tile(index, t);
    const int item = (tile.chunk << t.log_lanes) + lane;
    const int64_t first_pixel = tile.image * t.pixels + tile.first;
    const auto store_noise = [&](int i, Acc sum) {
      if (p.noise_sums) static_cast<Acc*>(p.noise_sums)[tile.chunk * p.all_pixels + first_pixel + i] = sum;
      else from_acc(sum, static_cast<T*>(p.dnoise) + first_pixel + i);
    };
    Acc factor[kCount], bias_sums[kCount] = {}, factor_sums[kCount] = {};
#pragma unroll
    for (int j = 0; j < kCount; ++j) factor[j] = Acc(1);
    if (p.factor && item < t.items) {
      Items::unpack(Items::load(static_cast<const T*>(p.factor), tile.image * t.items + item), factor);
    }
    for (int first = 0; first < tile.count; first += rows * kUnroll) {
      typename Items::Raw v[kUnroll], x[kUnroll], ref[kUnroll];
      const auto at = [&](int i) { return (first_pixel + i) * t.items + item; };
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int i = first + u * rows + row;
        if (i >= tile.count || item >= t.items) break;
        v[u] = Items::load(static_cast<const T*>(p.v), at(i));
        if (p.ref) ref[u] = Items::load(static_cast<const T*>(p.ref), at(i));
        if (p.x) x[u] = Items::load(static_cast<const T*>(p.x), at(i));
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int i = first + u * rows + row;
        Acc pixel_sum(0);
        if (i < tile.count && item < t.items) {
          Acc g[kCount], numbers[kCount] = {};
          Items::unpack(v[u], g);
          if (p.ref) Items::unpack(ref[u], numbers);
#pragma unroll
          for (int j = 0; j < kCount; ++j) {
            g[j] *= act.derivative(numbers[j]);
            bias_sums[j] += g[j];
            pixel_sum += g[j];
          }
          if (p.x) {
            Items::unpack(x[u], numbers);
#pragma unroll
            for (int j = 0; j < kCount; ++j) factor_sums[j] += g[j] * numbers[j];
          }
#pragma unroll
          for (int j = 0; j < kCount; ++j) g[j] *= factor[j];
          Items::store(g, static_cast<T*>(p.dx), at(i));
        }
        if (!sums_noise) continue;
        pixel_sum = sum_lanes(pixel_sum, lanes);
        if (i >= tile.count || lane % kWarp != 0) continue;
        if (warps <= 1) store_noise(i, pixel_sum);
        else buffer[i * warps + lane / kWarp] = pixel_sum;
      }
    }
    if (sums_noise && warps > 1) {
      __syncthreads();
      for (int i = threadIdx.x; i < tile.count; i += kThreads) {
        Acc sum(0);
        for (int warp = 0; warp < warps; ++warp) sum += buffer[i * warps + warp];
        store_noise(i, sum);
      }
      __syncthreads();
    }
    // Over the pixels of the tile.
    const auto store_sums = [&](const Acc(&sums)[kCount], void* to) {
      if (!to) return;
#pragma unroll
      for (int j = 0; j < kCount; ++j) buffer[threadIdx.x * kCount + j] = sums[j];
      __syncthreads();
      const int width = lanes * kCount, channels = t.items * kCount, first = tile.chunk * width;
      for (int i = threadIdx.x; i < width && first + i < channels; i += kThreads) {
        Acc sum(0);
        for (int r = 0; r < rows; ++r) sum += buffer[r * width + i];
        static_cast<Acc*>(to)[tile.number * channels + first + i] = sum;
      }
      __syncthreads();
    };
    store_sums(bias_sums, p.bias_sums);
    store_sums(factor_sums, p.factor_sums);
  }
}

struct SumParams {
  const void* from;  // [groups, rows, columns], of the type that sums are made in.
  void* to;          // [groups, columns]
  int64_t groups, rows, columns;
};

// Sums over rows.
template <typename T>
__global__ void __launch_bounds__(kSumColumns * kSumRows) sum_kernel(const SumParams p) {
  STYLEGAN_SHARED_MEMORY(shared);
  using Acc = typename Number<T>::Acc;
  Acc* const buffer = reinterpret_cast<Acc*>(shared);
  const int64_t chunks = (p.columns + kSumColumns - 1) / kSumColumns;
  for (int64_t index = blockIdx.x; index < p.groups * chunks; index += gridDim.x) {
    const int64_t group = index / chunks, column = index % chunks * kSumColumns + threadIdx.x % kSumColumns;
    const Acc* from = static_cast<const Acc*>(p.from) + group * p.rows * p.columns + column;
    Acc sum(0);
    if (column < p.columns) {
#pragma unroll 8
      for (int64_t row = threadIdx.x / kSumColumns; row < p.rows; row += kSumRows) {
        sum += from[row * p.columns];
      }
    }
    buffer[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < kSumColumns && column < p.columns) {
      for (int row = 1; row < kSumRows; ++row) sum += buffer[row * kSumColumns + threadIdx.x];
      from_acc(sum, static_cast<T*>(p.to) + group * p.columns + column);
    }
    __syncthreads();
  }
}

template <typename T>
const char* add_up(const void* from, void* to, int64_t groups, int64_t rows, int64_t columns, void* stream) {
  const int threads = kSumColumns * kSumRows;
  return launch(sum_kernel<T>, groups * ceil_div(columns, kSumColumns), threads,
                threads * int(sizeof(typename Number<T>::Acc)), stream,
                SumParams{from, to, groups, rows, columns});
}

double slope_of(int act, double alpha) { return act == kLinear ? 1 : act == kRelu ? 0 : alpha; }
// Gain 0: all is 0, whatever the derivative.
double inverse(double gain) { return gain == 0 ? 0 : 1 / gain; }

// The forward pass without a filter.

using Args = StyleganFilterNoiseBiasAct;

template <typename T, bool kVectors>
const char* run_forward(const Args& a, ForwardParams p, void* stream) {
  const StyleganUpFirDn2D& f = a.filter;
  p.tiling = Tiling(f.out_h * f.out_w, f.minor / Pack<T, kVectors>::kCount, kPixelsPerThread);
  return launch_tiles(forward_kernel<T, kVectors>, p, f.major, 0, stream);
}

template <typename T>
const char* run(const Args& a, void* stream) {
  const StyleganUpFirDn2D& f = a.filter;
  ForwardParams p = {};
  p.epilogue = {a.factor, a.noise, a.bias, a.grad && a.act != kLinear ? a.ref : nullptr,
                a.noise_major == 1 ? 0 : f.out_h * f.out_w, slope_of(a.act, a.alpha), a.gain, inverse(a.gain),
                a.grad == 1};
  p.x = f.x;
  p.y = f.y;
  if (f.kh > 0) return upfirdn_2d_with_epilogue(f, p.epilogue, stream);
  const bool vectors = f.minor % Number<T>::kVector == 0 && is_aligned(f.x) && is_aligned(f.y) &&
                       p.epilogue.has_vectors();
  return vectors ? run_forward<T, true>(a, p, stream) : run_forward<T, false>(a, p, stream);
}

// The gradient.

using GradArgs = StyleganNoiseBiasActGrad;

// How the gradient is cut into tiles, and where its sums go: offsets in the workspace, in bytes.
struct GradLayout {
  Tiling tiling;
  bool vectors;
  int64_t tiles, noise_rows;  // Rows of the sums; noise_rows: 0 where a tile has all channels of its pixels.
  int64_t factor_sums, noise_sums, size;

  template <typename T>
  static GradLayout of(const GradArgs& a) {
    using Acc = typename Number<T>::Acc;
    GradLayout l;
    l.vectors = a.minor % Number<T>::kVector == 0 && is_aligned(a.v) && is_aligned(a.x) &&
                is_aligned(a.factor) && is_aligned(a.ref) && is_aligned(a.dx);
    const int64_t items = l.vectors ? a.minor / Number<T>::kVector : a.minor;
    const Tiling finest(a.pixels, items, 1);
    const int64_t wanted = ceil_div(a.major * a.pixels * finest.by_chunks.d, kManyTiles * finest.rows());
    const int64_t per_thread = min_of(max_of(wanted, kMinPixelsPerThread), kMaxPixelsPerThread);
    l.tiling = Tiling(a.pixels, items, ceil_div(per_thread, kUnroll) * kUnroll);
    l.tiles = l.tiling.by_tiles.d;
    l.noise_rows = a.dnoise && l.tiling.by_chunks.d > 1 ? l.tiling.by_chunks.d : 0;
    const int64_t sums = ceil_div(a.major * l.tiles * a.minor * sizeof(Acc), 16) * 16;
    l.factor_sums = a.dbias ? sums : 0;
    l.noise_sums = l.factor_sums + (a.dfactor ? sums : 0);
    l.size = l.noise_sums + l.noise_rows * a.major * a.pixels * int64_t(sizeof(Acc));
    return l;
  }

  // For the dtype of the arguments.
  static GradLayout of(const GradArgs& a) {
    switch (a.dtype) {
      case STYLEGAN_FLOAT32: return of<float>(a);
      case STYLEGAN_FLOAT64: return of<double>(a);
      default: return of<Half>(a);  // bfloat16 too.
    }
  }
};

template <typename T, bool kVectors>
const char* run_grad(const GradArgs& a, const GradLayout& l, void* stream) {
  using Acc = typename Number<T>::Acc;
  constexpr int kCount = Pack<T, kVectors>::kCount;
  char* const workspace = static_cast<char*>(a.workspace);
  GradParams p = {};
  p.tiling = l.tiling;
  p.v = a.v;
  p.x = a.dfactor ? a.x : nullptr;
  p.factor = a.factor;
  p.ref = a.act == kLinear ? nullptr : a.ref;
  p.dx = a.dx;
  p.dnoise = l.noise_rows ? nullptr : a.dnoise;
  p.bias_sums = a.dbias ? workspace : nullptr;
  p.factor_sums = a.dfactor ? workspace + l.factor_sums : nullptr;
  p.noise_sums = l.noise_rows ? workspace + l.noise_sums : nullptr;
  p.all_pixels = a.major * a.pixels;
  p.slope = slope_of(a.act, a.alpha);
  p.gain = a.gain;
  p.inverse_gain = inverse(a.gain);
  const int warps = l.tiling.lanes() / kWarp;
  const int64_t buffer = max_of(kThreads * kCount, warps > 1 ? warps * l.tiling.per_tile : 0) * sizeof(Acc);
  const char* error = nullptr;
  if (a.pixels > 0) error = launch_tiles(grad_kernel<T, kVectors>, p, a.major, int(buffer), stream);
  const int64_t tiles = a.pixels > 0 ? l.tiles : 0;
  if (!error && a.dbias) error = add_up<T>(p.bias_sums, a.dbias, 1, a.major * tiles, a.minor, stream);
  if (!error && a.dfactor && a.major > 0) {
    error = add_up<T>(p.factor_sums, a.dfactor, a.major, tiles, a.minor, stream);
  }
  if (!error && l.noise_rows && p.all_pixels > 0) {
    error = add_up<T>(p.noise_sums, a.dnoise, 1, l.noise_rows, p.all_pixels, stream);
  }
  return error;
}

template <typename T>
const char* run(const GradArgs& a, void* stream) {
  const int64_t all_pixels = a.major * a.pixels;
  if (a.minor == 0) {  // Sums over no channels.
    return a.dnoise && all_pixels > 0 ? add_up<T>(nullptr, a.dnoise, 1, 0, all_pixels, stream) : nullptr;
  }
  const GradLayout l = GradLayout::of<T>(a);
  return l.vectors ? run_grad<T, true>(a, l, stream) : run_grad<T, false>(a, l, stream);
}

template <typename AnyArgs>
const char* run_dtype(const AnyArgs& a, int dtype, void* stream) {
  switch (dtype) {
    case STYLEGAN_FLOAT32: return run<float>(a, stream);
    case STYLEGAN_FLOAT16: return run<Half>(a, stream);
    case STYLEGAN_BFLOAT16: return run<BFloat16>(a, stream);
    case STYLEGAN_FLOAT64: return run<double>(a, stream);
  }
  return "filter_noise_bias_act: unknown dtype";
}

}  // namespace
}  // namespace stylegan

extern "C" const char* stylegan_filter_noise_bias_act_gpu(const StyleganFilterNoiseBiasAct* args,
                                                          void* stream) {
  using namespace stylegan;
  const Args& a = *args;
  const StyleganUpFirDn2D& f = a.filter;
  if (a.act < kLinear || a.act > kLrelu || a.grad < 0 || a.grad > 1) {
    return "filter_noise_bias_act: act or grad out of range";
  }
  if (a.grad > 0 && a.act != kLinear && !a.ref) return "filter_noise_bias_act: ref is missing";
  if (f.upx != 1 || f.upy != 1 || f.downx != 1 || f.downy != 1) {
    return "filter_noise_bias_act: factors must be 1";
  }
  if (f.major < 0 || f.out_h < 0 || f.out_w < 0 || f.minor < 0 || f.minor > 0x3fffffff) {
    return "filter_noise_bias_act: size out of range";
  }
  if (f.kh == 0 && (f.in_h != f.out_h || f.in_w != f.out_w)) {
    return "filter_noise_bias_act: sizes differ without a filter";
  }
  if (f.major == 0 || f.minor == 0 || f.out_h == 0 || f.out_w == 0) return nullptr;
  return run_dtype(a, f.dtype, stream);
}

extern "C" int64_t stylegan_noise_bias_act_grad_workspace(const StyleganNoiseBiasActGrad* args) {
  return args->minor > 0 ? stylegan::GradLayout::of(*args).size : 0;
}

extern "C" const char* stylegan_noise_bias_act_grad_gpu(const StyleganNoiseBiasActGrad* args, void* stream) {
  using namespace stylegan;
  const GradArgs& a = *args;
  if (a.act < kLinear || a.act > kLrelu) return "noise_bias_act_grad: act out of range";
  const bool empty = a.major == 0 || a.pixels == 0 || a.minor == 0;
  if (a.act != kLinear && !a.ref && !empty) return "noise_bias_act_grad: ref is missing";
  if (a.dfactor && !a.x && !empty) return "noise_bias_act_grad: x is missing";
  if (a.major < 0 || a.pixels < 0 || a.minor < 0 || a.minor > 0x3fffffff) {
    return "noise_bias_act_grad: size out of range";
  }
  return run_dtype(a, a.dtype, stream);
}
