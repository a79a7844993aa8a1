// CUDA kernel of upfirdn_2d for images of one or few channels. See upfirdn_2d.cu.

#include "upfirdn_2d_tiles.h"

namespace stylegan {
namespace {

// Rows of output that a thread makes.
template <int kUp, int kDown, bool kSeparable>
constexpr int kOutputRows = kDown == 2 ? 4 : kUp == 2 || kSeparable ? 16 : 8;

// kCount adjacent numbers of a row in shared memory, read by words.
template <int kCount, typename T>
__device__ inline void read_adjacent(const T* row, int offset, float (&v)[kCount]) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(row) + (offset >> 1);
  const unsigned shift = (offset & 1) * 16;
  uint32_t raw[kCount / 2 + 1];
#pragma unroll
  for (int i = 0; i <= kCount / 2; ++i) raw[i] = words[i];
#pragma unroll
  for (int i = 0; i < (kCount + 1) / 2; ++i) {
    float pair[2];
    unpack_pair(i < kCount / 2 ? __funnelshift_r(raw[i], raw[i + 1], shift) : raw[i] >> shift, pair, T());
    v[2 * i] = pair[0];
    if (2 * i + 1 < kCount) v[2 * i + 1] = pair[1];
  }
}
template <int kCount>
__device__ inline void read_adjacent(const float* row, int offset, float (&v)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = row[offset + i];
}

__device__ inline void store_pair(float a, float b, float* to) {
  *reinterpret_cast<float2*>(to) = make_float2(a, b);
}
template <typename T>
__device__ inline void store_pair(float a, float b, T* to) {
  *reinterpret_cast<uint32_t*>(to) = pack_pair(a, b, T());
}

// Columns of output that a thread of the rows kernel makes: enough for a word where that is easy.
template <typename T, int kUp, int kDown, bool kOneChannel>
constexpr int kOutputColumns = kUp == 2 || (kDown == 1 && kOneChannel && sizeof(T) == 2) ? 2 : 1;

// Images of one or few channels: a row is a sequence of numbers, the samples of a channel `minor` apart. Rows
// start anywhere: the tile keeps each at its own distance from a 16-byte boundary, so that whole vectors can
// be copied. Threads of a block: columns (with channels), groups of rows, images.
template <typename T, int kUp, int kDown, bool kSeparable, bool kOneChannel>
__global__ void __launch_bounds__(kThreads, kSeparable || kUp == 2 ? 4 : 2) rows_kernel(const TileParams p) {
  STYLEGAN_SHARED_MEMORY(tile);
  constexpr int kCount = Number<T>::kVector;
  constexpr int kRows = kOutputRows<kUp, kDown, kSeparable>;
  constexpr int kColumns = kOutputColumns<T, kUp, kDown, kOneChannel>;
  constexpr int kWindow = kUp == 2 ? 3 : kDown * (kColumns - 1) + kTaps;
  const int channels = kOneChannel ? 1 : p.minor;
  const int thread = threadIdx.x & ((1 << p.log_lanes) - 1);
  const int lanes = kOneChannel ? 1 << p.log_lanes : int(p.by_minor.divide(1u << p.log_lanes));
  const int lane = kOneChannel ? thread : int(p.by_minor.divide(unsigned(thread)));
  const int channel = thread - lane * channels;
  const int group = int(threadIdx.x >> p.log_lanes) % p.groups;
  const int image = int(threadIdx.x >> p.log_lanes) / p.groups;
  const int row_size = p.in_w * channels;
  const int total = p.images * p.tile_in_h * p.row_vectors;
  T* const samples = reinterpret_cast<T*>(tile);

  for (unsigned index = blockIdx.x; index < p.tiles; index += gridDim.x) {
    const Tile at(index, p);
    const int64_t first_image = int64_t(at.major) * p.images;
    const int first_x = p.first_x + at.x * (lanes * kColumns * kDown / kUp);
    const int first_y = p.first_y + at.y * (p.groups * kRows * kDown / kUp);
    // The distance of a row's first sample from a 16-byte boundary; only the low bits count.
    const auto distance = [&](int in_block, int row) {
      const unsigned rows = unsigned(first_image + in_block) * unsigned(p.in_h) + unsigned(first_y + row);
      return int((rows * unsigned(row_size) + unsigned(first_x * channels) + p.misaligned) & (kCount - 1));
    };
    for (int i = threadIdx.x; i < total; i += blockDim.x) {
      const int tile_row = int(p.by_row.divide(uint32_t(i)));
      const int in_block = int(p.by_height.divide(uint32_t(tile_row)));
      const int row = tile_row - in_block * p.tile_in_h, y = first_y + row;
      // Of the vector's first element, in its row of the image.
      const int element =
          first_x * channels - distance(in_block, row) + (i - tile_row * p.row_vectors) * kCount;
      if (first_image + in_block >= p.major || unsigned(y) >= unsigned(p.in_h) || element <= -kCount ||
          element >= row_size) {
        tile[i] = make_uint4(0, 0, 0, 0);
        continue;
      }
      const T* from = static_cast<const T*>(p.x) + ((first_image + in_block) * p.in_h + y) * row_size;
      if (element >= 0 && element + kCount <= row_size) {
        copy_async(tile + i, from + element);
      } else {  // At an end of the row.
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          const bool inside = unsigned(element + j) < unsigned(row_size);
          if (inside) samples[i * kCount + j] = from[element + j];
          else from_acc(0.0f, samples + i * kCount + j);
        }
      }
    }
    wait_for_copies();
    __syncthreads();

    const int out_y = (at.y * p.groups + group) * kRows - p.skip_y;
    const int out_x = (at.x * lanes + lane) * kColumns;
    if (lane < lanes && image < p.images && first_image + image < p.major) {
      const int first_row = group * (kRows * kDown / kUp);
      T* const out = static_cast<T*>(p.y) + (first_image + image) * (int64_t(p.out_h) * p.out_w * channels);
      const auto read = [&](int row, float(&v)[kWindow]) {
        const T* from = samples + (image * p.tile_in_h + first_row + row) * (p.row_vectors * kCount);
        const int offset =
            distance(image, first_row + row) + lane * (kColumns * kDown / kUp) * channels + channel;
        if (kOneChannel) {
          read_adjacent(from, offset, v);
        } else {
#pragma unroll
          for (int i = 0; i < kWindow; ++i) v[i] = to_acc(from[offset + i * channels]);
        }
      };
      const auto store = [&](int y, float a, float b) {  // b: where there are two columns.
        if (unsigned(y) >= unsigned(p.out_h) || out_x >= p.out_w) return;
        T* to = out + (y * p.out_w + out_x) * channels + channel;
        if (kColumns == 2 && kOneChannel && p.pairs) {
          store_pair(a, b, to);
        } else {
          from_acc(a, to);
          if (kColumns == 2 && out_x + 1 < p.out_w) from_acc(b, to + channels);
        }
      };
      if (kUp == 1) {
        float sums[kColumns][kRows][1];
#pragma unroll
        for (int row = 0; row < input_span(1, kDown, kRows); ++row) {
          float v[kWindow];
          read(row, v);
#pragma unroll
          for (int column = 0; column < kColumns; ++column) {
            add_row<kDown, kSeparable>(row, sums[column], p,
                                              [&](int i, float(&w)[1]) { w[0] = v[column * kDown + i]; });
          }
          const int ready = row - (kTaps - 1);
          if (ready >= 0 && ready % kDown == 0) {
            store(out_y + ready / kDown, sums[0][ready / kDown][0], sums[kColumns - 1][ready / kDown][0]);
          }
        }
      } else {
        float v[kWindow], window[2][2][2][1];  // [column of the output][sample y][x]
        const auto fill = [&](int y) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            window[0][y][i][0] = v[i];
            window[1][y][i][0] = p.late ? v[i + 1] : v[i];
          }
        };
        read(0, v);
        fill(0);
#pragma unroll 2  // All of it takes too many registers.
        for (int row = 0; row < kRows; row += 2) {
          read(row / 2 + 1, v);
          fill(1);
#pragma unroll
          for (int second = 0; second < 2; ++second) {
            float a[1], b[1];
            sum_window(second * 2, window[0], a, p);
            sum_window(second * 2 + 1, window[1], b, p);
            store(out_y + row + second, a[0], b[0]);
          }
#pragma unroll
          for (int column = 0; column < 2; ++column) {
#pragma unroll
            for (int i = 0; i < 2; ++i) window[column][0][i][0] = window[column][1][i][0];
          }
        }
      }
    }
    __syncthreads();  // Before the next tile.
  }
}

template <typename T, int kUp, int kDown, bool kSeparable, bool kOneChannel>
const char* run(const StyleganUpFirDn2D& a, TileParams p, void* stream) {
  constexpr int kCount = Number<T>::kVector;
  constexpr int kRows = kOutputRows<kUp, kDown, kSeparable>;
  constexpr int kColumns = kOutputColumns<T, kUp, kDown, kOneChannel>;
  p.minor = int(a.minor);
  p.log_lanes = min_int(log2_ceil(ceil_div(a.out_w, kColumns) * a.minor), 7);
  p.groups = min_int(ceil_div(a.out_h + p.skip_y, kRows), min_int(kThreads >> p.log_lanes, 4));
  p.images = min_int(kThreads / (p.groups << p.log_lanes), a.major);
  const int lanes = (1 << p.log_lanes) / p.minor;
  p.tile_in_w = kUp == 2 ? lanes + 2 : input_span(1, kDown, lanes * kColumns);
  p.tile_in_h = input_span(kUp, kDown, p.groups * kRows);
  // A row may start anywhere in its first vector, and is read by words.
  p.row_vectors = int(ceil_div(p.tile_in_w * p.minor + kCount, kCount));
  const auto bytes = [&] { return 16 * p.images * p.tile_in_h * p.row_vectors; };
  while (p.images > 1 && bytes() > kSharedBytes) --p.images;
  while (p.groups > 1 && bytes() > kSharedBytes) p.tile_in_h = input_span(kUp, kDown, --p.groups * kRows);
  p.by_row = Divider<uint32_t>(p.row_vectors);
  p.by_height = Divider<uint32_t>(p.tile_in_h);
  p.by_minor = Divider<uint32_t>(p.minor);
  p.pairs = a.out_w % 2 == 0 && reinterpret_cast<uintptr_t>(a.y) % (2 * sizeof(T)) == 0;
  return launch_tiles<T>(rows_kernel<T, kUp, kDown, kSeparable, kOneChannel>, a, p, p.images, 1,
                         ceil_div(a.out_w, lanes * kColumns), ceil_div(a.out_h + p.skip_y, p.groups * kRows),
                         p.groups * p.images << p.log_lanes, bytes(), stream);
}

template <typename T, bool kOneChannel>
const char* run(const StyleganUpFirDn2D& a, const TileParams& p, bool separable, void* stream) {
  if (a.upx == 2) return run<T, 2, 1, false, kOneChannel>(a, p, stream);
  if (a.downx == 2) return run<T, 1, 2, false, kOneChannel>(a, p, stream);
  if constexpr (kOneChannel) {
    if (separable) return run<T, 1, 1, true, true>(a, p, stream);
  }
  return run<T, 1, 1, false, kOneChannel>(a, p, stream);
}

template <typename T>
const char* run(const StyleganUpFirDn2D& a, const TileParams& p, bool separable, void* stream) {
  return a.minor == 1 ? run<T, true>(a, p, separable, stream) : run<T, false>(a, p, separable, stream);
}

}  // namespace

const char* run_rows(const StyleganUpFirDn2D& args, TileParams p, bool separable, void* stream) {
  switch (args.dtype) {
    case STYLEGAN_FLOAT32: return run<float>(args, p, separable, stream);
    case STYLEGAN_FLOAT16: return run<Half>(args, p, separable, stream);
    default: return run<BFloat16>(args, p, separable, stream);
  }
}

}  // namespace stylegan
