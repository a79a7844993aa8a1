// What the kernels of upfirdn_2d that work on tiles have in common. See upfirdn_2d.cu.

#ifndef STYLEGAN_UPFIRDN_2D_TILES_H_
#define STYLEGAN_UPFIRDN_2D_TILES_H_

#include "kernels.h"

#include "cuda_common.h"
#include "epilogue_cuda.h"

namespace stylegan {

constexpr int kThreads = 256;
constexpr int kTaps = 4;              // Of the common filters, along each axis.
constexpr int kSharedBytes = 48 << 10;  // What every GPU grants a block without being asked.

// Rows of input that `rows` rows of output depend on; the tile starts so that for up = 2 the first two
// depend on the same ones.
__host__ __device__ constexpr int input_span(int up, int down, int size) {
  return up == 2 ? size / 2 + 1 : down * (size - 1) + kTaps;
}

struct TileParams {
  const void* x;
  void* y;
  unsigned tiles;
  int64_t first;                    // Image that this launch starts with ...
  int major;                        // ... and how many it has.
  int in_h, in_w, minor, out_h, out_w;
  Divider<uint32_t> by_chunks, by_tiles_x, by_tiles_y;  // Groups of channels, tiles per image.
  int first_x, first_y;             // Input column and row with which the first tile starts.
  int skip_x, skip_y;               // Outputs of the first tile that lie before the image.
  int log_vectors, log_lanes, groups, images;  // How the threads of a block are laid out.
  int tile_in_w, tile_in_h;
  int row_vectors;                  // 16-byte vectors per row of the tile ...
  Divider<uint32_t> by_row, by_height, by_minor;  // ... to divide by it, by tile_in_h, by minor.
  unsigned misaligned;              // Elements from the last 16-byte boundary to x.
  bool late;                        // rows, up = 2: the second column of a pair starts one sample later.
  bool pairs;                       // rows: two adjacent outputs can be stored at once.
  unsigned present;                 // Bit i is set where tap i exists: taps that do not must not make 0·∞.
  float k[kTaps * kTaps];           // Flipped taps [y][x]; for up = 2 [row of a pair][column][sample y][x].
  float ky[kTaps], kx[kTaps];       // The same where the filter is an outer product.
  Epilogue epilogue;                // run_pixels_with_epilogue: what follows, of all images.
};

__device__ inline bool is_present(const TileParams& p, int tap) { return p.present >> tap & 1; }

// Copies 16 bytes to shared memory; complete after wait_for_copies and __syncthreads.
__device__ inline void copy_async(uint4* to, const void* from) { __pipeline_memcpy_async(to, from, 16); }

__device__ inline void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

// Where a tile lies. The chunks of channels come first, then columns, rows, images.
struct Tile {
  int chunk, x, y, major;

  __device__ Tile(unsigned index, const TileParams& p) {
    unsigned rest = p.by_chunks.divide(index);
    chunk = int(index - rest * p.by_chunks.d);
    index = rest;
    rest = p.by_tiles_x.divide(index);
    x = int(index - rest * p.by_tiles_x.d);
    major = int(p.by_tiles_y.divide(rest));
    y = int(rest - major * p.by_tiles_y.d);
  }
};

// One row of a thread's inputs, added to the outputs that depend on it. sums: the outputs of one column,
// kCount numbers each. at(i): gives the i-th input of the row, kCount numbers.
template <int kDown, bool kSeparable, int kRows, int kCount, typename At>
__device__ inline void add_row(int row, float (&sums)[kRows][kCount], const TileParams& p, At at) {
  float v[kCount], across[kCount];
#pragma unroll
  for (int i = 0; i < kTaps; ++i) {
    at(i, v);
    if constexpr (kSeparable) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) across[j] = i == 0 ? p.kx[0] * v[j] : across[j] + p.kx[i] * v[j];
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int tap = row - kDown * r;
        if (tap < 0 || tap >= kTaps || !is_present(p, tap * kTaps + i)) continue;
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          sums[r][j] = tap == 0 && i == 0 ? p.k[0] * v[j] : sums[r][j] + p.k[tap * kTaps + i] * v[j];
        }
      }
    }
  }
  if constexpr (kSeparable) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int tap = row - kDown * r;
      if (tap < 0 || tap >= kTaps) continue;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        sums[r][j] = tap == 0 ? p.ky[0] * across[j] : sums[r][j] + p.ky[tap] * across[j];
      }
    }
  }
}

// The same for up = 2: one output of a 2x2 block. window: two rows of inputs of the two columns that it
// depends on.
template <int kCount>
__device__ inline void sum_window(int output, const float (&window)[2][2][kCount], float (&sum)[kCount],
                                  const TileParams& p) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) sum[j] = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!is_present(p, output * 4 + i)) continue;
#pragma unroll
    for (int j = 0; j < kCount; ++j) sum[j] += p.k[output * 4 + i] * window[i / 2][i % 2][j];
  }
}

inline int min_int(int64_t a, int64_t b) { return int(a < b ? a : b); }

// Starts kernel(p) for all images, in launches of fewer than 2^31 tiles. At most `per_block` images share a
// tile; `chunks`, `tiles_x` and `tiles_y` are for one image, of less than 2^30 elements.
template <typename T>
const char* launch_tiles(void (*kernel)(TileParams), const StyleganUpFirDn2D& a, TileParams p, int per_block,
                         int64_t chunks, int64_t tiles_x, int64_t tiles_y, int threads, int bytes,
                         void* stream) {
  const int64_t tiles = chunks * tiles_x * tiles_y;
  const int64_t most = (tiles < STYLEGAN_TILES ? STYLEGAN_TILES / tiles : 1) * per_block;  // Images at once.
  p.by_chunks = Divider<uint32_t>(chunks);
  p.by_tiles_x = Divider<uint32_t>(tiles_x);
  p.by_tiles_y = Divider<uint32_t>(tiles_y);
  for (int64_t first = 0; first < a.major; first += most) {
    p.x = static_cast<const T*>(a.x) + first * a.in_h * a.in_w * a.minor;
    p.y = static_cast<T*>(a.y) + first * a.out_h * a.out_w * a.minor;
    p.misaligned = unsigned(reinterpret_cast<uintptr_t>(p.x) % 16 / sizeof(T));
    p.first = first;
    p.major = min_int(a.major - first, most);
    p.tiles = unsigned(ceil_div(p.major, per_block) * tiles);
    const char* error = launch(kernel, p.tiles, threads, bytes, stream, p);
    if (error) return error;
  }
  return nullptr;
}

// upfirdn_2d for arguments that `p` has been prepared for, by the kernels of upfirdn_2d_pixels.cu and
// upfirdn_2d_rows.cu; separable: p.ky and p.kx may be used.
const char* run_pixels(const StyleganUpFirDn2D& args, TileParams p, bool separable, void* stream);
const char* run_rows(const StyleganUpFirDn2D& args, TileParams p, bool separable, void* stream);

// run_pixels for separable filters, with p.epilogue in the same pass.
const char* run_pixels_with_epilogue(const StyleganUpFirDn2D& args, TileParams p, void* stream);

}  // namespace stylegan

#endif  // STYLEGAN_UPFIRDN_2D_TILES_H_
