// CUDA kernel of upfirdn_2d for images whose pixels are whole vectors of channels. See upfirdn_2d.cu.

#include "upfirdn_2d_tiles.h"

namespace stylegan {
namespace {

// Rows of output that a thread makes.
template <int kDown>
constexpr int kOutputRows = kDown == 1 ? 8 : 4;

// Blocks that share a multiprocessor: as many as the registers of a thread allow.
template <typename T, int kUp, bool kSeparable, bool kEpilogue>
constexpr int kBlocks = kUp == 2 || (kSeparable && !(kEpilogue && sizeof(T) == 2)) ? 3 : 2;

// What is done to a filtered vector before it is stored: nothing, or the epilogue. One after the other for
// pixels below each other, of which the first is (y, x).
template <typename T, bool kEpilogue>
struct Follow {
  __device__ Follow(const TileParams&, int64_t, int, int, int) {}
  __device__ void apply(const TileParams&, int, int, float (&)[Number<T>::kVector]) {}
};
template <typename T>
struct Follow<T, true> {
  ChannelEpilogue<T, true> epilogue;
  T noise;  // Of the pixel that is next: loaded while the one before is worked on.

  __device__ Follow(const TileParams& p, int64_t image, int vector, int y, int x)
      : epilogue(p.epilogue, image, p.out_h * p.out_w, p.minor, vector) {
    load_noise(p, y, x);
  }
  __device__ void load_noise(const TileParams& p, int y, int x) {
    noise = y < p.out_h && x < p.out_w ? epilogue.load_noise(y * p.out_w + x) : T();
  }
  __device__ void apply(const TileParams& p, int y, int x, float (&v)[Number<T>::kVector]) {
    const T of_pixel = noise;
    load_noise(p, y + 1, x);
    epilogue.apply(y * p.out_w + x, of_pixel, v);
  }
};

// Images whose pixels are vectors. Threads of a block: vectors of channels, columns, groups of rows.
template <typename T, int kUp, int kDown, bool kSeparable, bool kEpilogue>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kUp, kSeparable, kEpilogue>)
    pixels_kernel(const TileParams p) {
  STYLEGAN_SHARED_MEMORY(tile);
  constexpr int kCount = Number<T>::kVector;
  constexpr int kRows = kOutputRows<kDown>;
  const int vector = threadIdx.x & ((1 << p.log_vectors) - 1);
  const int lane = (threadIdx.x >> p.log_vectors) & ((1 << p.log_lanes) - 1);
  const int group = threadIdx.x >> (p.log_vectors + p.log_lanes);
  const int total = p.tile_in_h * p.tile_in_w << p.log_vectors;
  const int pitch = p.tile_in_w << p.log_vectors;

  for (unsigned index = blockIdx.x; index < p.tiles; index += gridDim.x) {
    const Tile at(index, p);
    const int first_vector = at.chunk << p.log_vectors;
    {
      const int first_x = p.first_x + (at.x << p.log_lanes) * kDown;
      const int first_y = p.first_y + at.y * (p.groups * kRows * kDown / kUp);
      const uint4* image = static_cast<const uint4*>(p.x) + int64_t(at.major) * (p.in_h * p.in_w * p.minor);
      for (int i = threadIdx.x; i < total; i += blockDim.x) {
        const int pixel = i >> p.log_vectors;
        const int row = int(p.by_row.divide(uint32_t(pixel)));
        const int y = first_y + row, x = first_x + pixel - row * p.tile_in_w;
        const int from = first_vector + (i & ((1 << p.log_vectors) - 1));
        if (unsigned(y) < unsigned(p.in_h) && unsigned(x) < unsigned(p.in_w) && from < p.minor) {
          copy_async(tile + i, image + ((y * p.in_w + x) * p.minor + from));
        } else {
          tile[i] = make_uint4(0, 0, 0, 0);
        }
      }
    }
    const int first_y = (at.y * p.groups + group) * kRows - p.skip_y;  // Of the outputs.
    const int first_x = ((at.x << p.log_lanes) + lane) * kUp - p.skip_x;
    uint4* image = static_cast<uint4*>(p.y) + int64_t(at.major) * (p.out_h * p.out_w * p.minor);
    const int to = first_vector + vector;
    Follow<T, kEpilogue> follow(p, p.first + at.major, to < p.minor ? to : 0, first_y, first_x);
    wait_for_copies();
    __syncthreads();

    const auto store = [&](int y, int x, float(&sum)[kCount]) {
      if (unsigned(y) < unsigned(p.out_h) && unsigned(x) < unsigned(p.out_w) && to < p.minor) {
        follow.apply(p, y, x, sum);
        image[(y * p.out_w + x) * p.minor + to] = pack(sum, T());
      }
    };
    const uint4* in = tile + group * (kRows * kDown / kUp) * pitch + (lane * kDown << p.log_vectors) + vector;
    if (kUp == 1) {
      float sums[kRows][kCount];
#pragma unroll
      for (int row = 0; row < input_span(1, kDown, kRows); ++row) {
        uint4 raw[kTaps];
#pragma unroll
        for (int i = 0; i < kTaps; ++i) raw[i] = in[row * pitch + (i << p.log_vectors)];
        add_row<kDown, kSeparable>(row, sums, p, [&](int i, float(&v)[kCount]) { unpack(raw[i], v, T()); });
        const int ready = row - (kTaps - 1);
        if (ready >= 0 && ready % kDown == 0) store(first_y + ready / kDown, first_x, sums[ready / kDown]);
      }
    } else {
      float window[2][2][kCount];
      unpack(in[0], window[0][0], T());
      unpack(in[1 << p.log_vectors], window[0][1], T());
#pragma unroll 2  // All of it takes too many registers.
      for (int row = 0; row < kRows; row += 2) {
        unpack(in[(row / 2 + 1) * pitch], window[1][0], T());
        unpack(in[(row / 2 + 1) * pitch + (1 << p.log_vectors)], window[1][1], T());
#pragma unroll
        for (int output = 0; output < 4; ++output) {
          float sum[kCount];
          sum_window(output, window, sum, p);
          store(first_y + row + output / 2, first_x + output % 2, sum);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int j = 0; j < kCount; ++j) window[0][i][j] = window[1][i][j];
        }
      }
    }
    __syncthreads();  // Before the next tile.
  }
}

template <typename T, int kUp, int kDown, bool kSeparable, bool kEpilogue = false>
const char* run(const StyleganUpFirDn2D& a, TileParams p, void* stream) {
  constexpr int kRows = kOutputRows<kDown>;
  p.minor = int(a.minor / Number<T>::kVector);
  p.log_vectors = min_int(log2_ceil(p.minor), kDown == 2 ? 2 : 3);
  p.log_lanes = min_int(log2_ceil(ceil_div(a.out_w + p.skip_x, kUp)), 4);
  p.groups = min_int(ceil_div(a.out_h + p.skip_y, kRows), kThreads >> (p.log_vectors + p.log_lanes));
  if (p.groups > (kDown == 2 ? 4 : 8)) p.groups = kDown == 2 ? 4 : 8;
  const int width = kUp << p.log_lanes;
  p.tile_in_w = input_span(kUp, kDown, width);
  const auto bytes = [&] {
    return 16 * input_span(kUp, kDown, p.groups * kRows) * (p.tile_in_w << p.log_vectors);
  };
  while (p.groups > 1 && bytes() > kSharedBytes) --p.groups;
  p.tile_in_h = input_span(kUp, kDown, p.groups * kRows);
  p.by_row = Divider<uint32_t>(p.tile_in_w);
  return launch_tiles<T>(pixels_kernel<T, kUp, kDown, kSeparable, kEpilogue>, a, p, 1,
                         ceil_div(p.minor, 1 << p.log_vectors), ceil_div(a.out_w + p.skip_x, width),
                         ceil_div(a.out_h + p.skip_y, p.groups * kRows),
                         p.groups << (p.log_vectors + p.log_lanes), bytes(), stream);
}

template <typename T>
const char* run(const StyleganUpFirDn2D& a, const TileParams& p, bool separable, void* stream) {
  if (a.upx == 2) return run<T, 2, 1, false>(a, p, stream);
  if (a.downx == 2) return run<T, 1, 2, false>(a, p, stream);
  return separable ? run<T, 1, 1, true>(a, p, stream) : run<T, 1, 1, false>(a, p, stream);
}

}  // namespace

const char* run_pixels(const StyleganUpFirDn2D& args, TileParams p, bool separable, void* stream) {
  switch (args.dtype) {
    case STYLEGAN_FLOAT32: return run<float>(args, p, separable, stream);
    case STYLEGAN_FLOAT16: return run<Half>(args, p, separable, stream);
    default: return run<BFloat16>(args, p, separable, stream);
  }
}

const char* run_pixels_with_epilogue(const StyleganUpFirDn2D& args, TileParams p, void* stream) {
  switch (args.dtype) {
    case STYLEGAN_FLOAT32: return run<float, 1, 1, true, true>(args, p, stream);
    case STYLEGAN_FLOAT16: return run<Half, 1, 1, true, true>(args, p, stream);
    default: return run<BFloat16, 1, 1, true, true>(args, p, stream);
  }
}

}  // namespace stylegan
